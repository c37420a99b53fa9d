#include "uffd/capabilities.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "uffd/uapi.h"

namespace towline::uffd {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail_errno;
using base::OwnedFd;

constexpr int kDescriptorFlags = O_CLOEXEC | O_NONBLOCK;

constexpr std::array kFeatureNames{
    "pagefault-flag-wp", "event-fork",    "event-remap",      "event-remove",   "missing-hugetlb",
    "missing-shmem",     "event-unmap",   "sigbus",           "thread-id",      "minor-hugetlb",
    "minor-shmem",       "exact-address", "wp-hugetlb-shmem", "wp-unpopulated", "poison",
    "wp-async",          "move",
};

OwnedFd open_device(const char* path) {
  const OwnedFd device(::open(path, O_RDWR | O_CLOEXEC));
  if (!device.valid()) {
    return OwnedFd{};
  }
  return OwnedFd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, kDescriptorFlags));
}

OwnedFd open_by_system_call(const Doors& doors) {
  if (doors.system_call != nullptr) {
    return OwnedFd(doors.system_call(kDescriptorFlags));
  }
  return OwnedFd(static_cast<int>(::syscall(SYS_userfaultfd, kDescriptorFlags)));
}

// Of this moment, and no answer to what was asked.
bool means_full(int error) {
  return error == EMFILE || error == ENFILE || error == ENOMEM;
}

Expected<bool> has_pagemap_scan() {
  const OwnedFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid() && means_full(errno)) {
    return fail_errno(ErrorKind::kOverloaded, "open /proc/self/pagemap",
                      "no further file can be opened; raise the limit on open files");
  }
  if (!pagemap.valid()) {
    return false;
  }
  // An empty range is scanned successfully by a kernel that knows the request at all.
  uapi::PagemapScan scan{};
  scan.size = sizeof scan;
  scan.category_anyof_mask = uapi::kPageIsWritten;
  return ::ioctl(pagemap.get(), uapi::kPagemapScan, &scan) == 0;
}

}  // namespace

std::string to_string(FeatureSet features) {
  std::string text;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((features.bits >> bit & 1U) == 0) {
      continue;
    }
    text += text.empty() ? "" : " ";
    text += bit < kFeatureNames.size() ? kFeatureNames[bit] : "bit-" + std::to_string(bit);
  }
  return text;
}

Expected<RawDescriptor> open_descriptor(const Doors& doors) {
  if (OwnedFd fd = open_device(doors.device); fd.valid()) {
    return RawDescriptor{std::move(fd), Door::kDevice};
  }
  const int device_errno = errno;
  if (OwnedFd fd = open_by_system_call(doors); fd.valid()) {
    return RawDescriptor{std::move(fd), Door::kSystemCall};
  }
  const int call_errno = errno;
  // The call says that it is not permitted before it looks for a free descriptor.
  if (means_full(call_errno) || means_full(device_errno)) {
    return fail_errno(ErrorKind::kOverloaded, "userfaultfd",
                      "no further userfaultfd can be opened; raise the limit on open files");
  }
  if (call_errno == ENOSYS && device_errno == ENOENT) {
    return fail_errno(ErrorKind::kUnsupported, "userfaultfd",
                      "this kernel has no userfaultfd (CONFIG_USERFAULTFD)");
  }
  return fail_errno(
      ErrorKind::kUnsupported, "userfaultfd",
      std::string("not permitted to handle page faults of the kernel: run as root or "
                  "with CAP_SYS_PTRACE, or give this user read and write access to ") +
          doors.device + " (Linux 6.1), or set the sysctl vm.unprivileged_userfaultfd=1");
}

Expected<Capabilities> probe(const Doors& doors) {
  const RawDescriptor raw = TRY(open_descriptor(doors));
  uffdio_api api{};
  api.api = UFFD_API;
  if (::ioctl(raw.fd.get(), UFFDIO_API, &api) != 0) {
    return fail_errno(ErrorKind::kUnsupported, "UFFDIO_API",
                      "this kernel speaks another userfaultfd");
  }
  return Capabilities{FeatureSet{api.features}, raw.door, TRY(has_pagemap_scan())};
}

Expected<Capabilities> CapabilityMemory::ask(const Doors& doors) {
  const base::Lock lock(mutex_);
  if (!known_.has_value()) {
    known_ = TRY(probe(doors));
  }
  return *known_;
}

Expected<Capabilities> capabilities() {
  static CapabilityMemory memory;
  return memory.ask();
}

}  // namespace towline::uffd
