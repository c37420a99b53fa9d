#include "uffd/write_protect.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "uffd/uapi.h"

namespace towline::uffd {
namespace {

using base::Done;
using base::ErrorKind;
using base::Expected;
using base::fail;
using base::fail_errno;
using base::Outcome;
using base::OwnedFd;

constexpr std::size_t kScanBatch = 64;  // A guess: 1.5 KiB of stack, a system call per 64 runs.
constexpr int kMostAttempts = 16;       // As in installer.cc.

}  // namespace

Expected<WriteTracker> WriteTracker::start(HostAddress start, Bytes length, Backing backing) {
  const Capabilities can = TRY(capabilities());
  if (!can.tracks_writes()) {
    return fail(ErrorKind::kUnsupported, "PAGEMAP_SCAN",
                "tracking writes without faults needs Linux 6.7; use KVM's dirty log");
  }
  const Mode mode{.missing = false, .minor = false, .write_protect = true};
  Userfault userfault = TRY(
      Userfault::open(features_for(backing, mode) | feature::kWpAsync | feature::kWpUnpopulated));
  TRY(userfault.register_range(start, length, mode, backing));
  OwnedFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) {
    return fail_errno(ErrorKind::kUnsupported, "open /proc/self/pagemap");
  }
  WriteTracker tracker(std::move(userfault), std::move(pagemap));
  TRY(tracker.arm(start, length));
  return tracker;
}

Outcome WriteTracker::arm(HostAddress start, Bytes length) const {
  uffdio_writeprotect request{};
  request.range = {.start = start.value, .len = length.value};
  request.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  for (int attempt = 0; ::ioctl(userfault_.fd(), UFFDIO_WRITEPROTECT, &request) != 0; ++attempt) {
    if (errno != EAGAIN || attempt == kMostAttempts) {
      return fail_errno(ErrorKind::kFailed, "UFFDIO_WRITEPROTECT");
    }
  }
  return Done{};
}

Expected<WriteTracker::Collected> WriteTracker::collect(HostAddress from, HostAddress end,
                                                        std::span<WrittenRun> into) const {
  Collected collected{0, from};
  std::array<uapi::PageRegion, kScanBatch> regions{};
  while (collected.next.value < end.value && collected.runs < into.size()) {
    uapi::PagemapScan scan{};
    scan.size = sizeof scan;
    scan.flags = uapi::kScanWriteProtectMatching | uapi::kScanCheckWpAsync;
    scan.start = collected.next.value;
    scan.end = end.value;
    scan.vec = reinterpret_cast<std::uintptr_t>(regions.data());
    scan.vec_len = std::min(regions.size(), into.size() - collected.runs);
    scan.category_mask = uapi::kPageIsWritten;
    scan.return_mask = uapi::kPageIsWritten;
    const int found = ::ioctl(pagemap_.get(), uapi::kPagemapScan, &scan);
    if (found < 0) {
      if (errno == EINTR) {
        continue;
      }
      return fail_errno(ErrorKind::kFailed, "PAGEMAP_SCAN");
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(found); ++i) {
      into[collected.runs++] = {HostAddress{regions[i].start},
                                Bytes{regions[i].end - regions[i].start}};
    }
    collected.next = HostAddress{scan.walk_end};
  }
  return collected;
}

}  // namespace towline::uffd
