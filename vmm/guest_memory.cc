#include "vmm/guest_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "base/huge_pages.h"

namespace towline::vmm {
namespace {

using base::Bytes;
using base::ErrorKind;
using base::fail;
using base::fail_errno;
using runtime::Backing;

// User space ends at 47 bits on x86-64 with four page-table levels; half of it leaves room for the
// second mapping that a migration makes and for everything else.
constexpr Bytes kMostMappable{1UL << 46U};

Bytes limit_of(unsigned address_bits) {
  // The gap between low and high memory takes addresses too.
  const std::uint64_t addressable = 1UL << std::min(address_bits, 52U);
  const std::uint64_t gap = kHighMemoryStart.value - kLowMemoryEnd.value;
  return Bytes{std::min(addressable - gap, kMostMappable.value)};
}

Bytes page_size_of(Backing backing) {
  return backing == Backing::kHugetlb ? base::kHugePage : base::kSmallPage;
}

base::Outcome check_size(Bytes size, Bytes page_size, unsigned address_bits) {
  if (size.value == 0 || size.value % page_size.value != 0) {
    return fail(ErrorKind::kRefused, "guest memory",
                fmt::format("memory of {} bytes: give a multiple of {}, above zero", size.value,
                            page_size.value));
  }
  const Bytes limit = limit_of(address_bits);
  if (size.value > limit.value) {
    return fail(ErrorKind::kRefused, "guest memory",
                fmt::format("memory of {} MiB is larger than can be mapped here: the limit is {} "
                            "MiB ({} physical address bits)",
                            size.value >> 20U, limit.value >> 20U, address_bits));
  }
  return base::Done{};
}

base::Expected<base::OwnedFd> make_memfd() {
  base::OwnedFd fd(::memfd_create("towline-ram", MFD_CLOEXEC));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kFailed, "memfd_create");
  }
  return fd;
}

base::Expected<base::OwnedFd> make_huge_memfd() {
  base::OwnedFd fd(::memfd_create("towline-ram", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kUnsupported, "memfd_create",
                      "this kernel has no huge pages of 2 MiB; use --memory-backing memfd");
  }
  return fd;
}

/// A file of our own at `path`, empty.
base::Expected<base::OwnedFd> open_file(const std::string& path) {
  struct stat at {};

  const bool folder = ::stat(path.c_str(), &at) == 0 && S_ISDIR(at.st_mode);
  const int flags = O_RDWR | O_CLOEXEC | (folder ? O_TMPFILE : O_CREAT | O_NOFOLLOW);
  base::OwnedFd fd(::open(path.c_str(), flags, S_IRUSR | S_IWUSR));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kRefused, "open",
                      fmt::format("guest memory '{}' (--memory-path)", path));
  }

  struct statfs system {};

  if (::fstatfs(fd.get(), &system) != 0 || system.f_type != TMPFS_MAGIC) {
    return fail(
        ErrorKind::kRefused, "guest memory",
        fmt::format("'{}' is not on a tmpfs; other files cannot be moved (--memory-path)", path));
  }
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    return fail_errno(ErrorKind::kRefused, "flock",
                      fmt::format("'{}' is another machine's memory (--memory-path)", path));
  }
  if (::ftruncate(fd.get(), 0) != 0) {
    return fail_errno(ErrorKind::kFailed, "ftruncate", path);
  }
  return fd;
}

base::Expected<base::OwnedFd> make_file(const MemoryKind& kind) {
  if (kind.backing == Backing::kHugetlb) {
    return make_huge_memfd();
  }
  return kind.path.empty() ? make_memfd() : open_file(kind.path);
}

base::Outcome reserve_huge_pages(const base::OwnedFd& fd, Bytes size) {
  if (::fallocate(fd.get(), 0, 0, static_cast<off_t>(size.value)) == 0) {
    return base::Done{};
  }
  const int why = errno;
  // What it could give it has given: back, so that what is free is said truly.
  if (::ftruncate(fd.get(), 0) != 0) {
    return fail_errno(ErrorKind::kFailed, "ftruncate");
  }
  const std::uint64_t needed = size.value / base::kHugePage.value;
  return base::Err{base::Error{ErrorKind::kRefused, why, "fallocate",
                               fmt::format("memory of {} MiB has no room: {}", size.value >> 20U,
                                           base::explain(base::huge_pages(), needed))}};
}

base::Outcome reserve_all(const base::OwnedFd& fd, Bytes size, const std::string& path) {
  struct statfs system {};

  ::fstatfs(fd.get(), &system);
  if (::fallocate(fd.get(), 0, 0, static_cast<off_t>(size.value)) != 0) {
    const auto unit = static_cast<std::uint64_t>(system.f_bsize);
    return fail_errno(ErrorKind::kRefused, "fallocate",
                      fmt::format("memory of {} MiB has no room at '{}', whose file system has {} "
                                  "MiB free of {} MiB; make room, or give it a larger size",
                                  size.value >> 20U, path, system.f_bavail * unit >> 20U,
                                  system.f_blocks * unit >> 20U));
  }
  return base::Done{};
}

}  // namespace

base::Expected<GuestMemory> GuestMemory::create(Bytes size, unsigned address_bits,
                                                const MemoryKind& kind) {
  TRY(check_size(size, page_size_of(kind.backing), address_bits));
  base::OwnedFd fd = TRY(make_file(kind));
  if (::ftruncate(fd.get(), static_cast<off_t>(size.value)) != 0) {
    return fail_errno(ErrorKind::kRefused, "ftruncate",
                      fmt::format("memory of {} MiB is larger than a file may be here (limit of "
                                  "the shell: ulimit -f)",
                                  size.value >> 20U));
  }
  if (kind.reserve && kind.backing == Backing::kHugetlb) {
    TRY(reserve_huge_pages(fd, size));
  } else if (kind.reserve && !kind.path.empty()) {
    TRY(reserve_all(fd, size, kind.path));
  }
  void* mapping =
      ::mmap(nullptr, size.value, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (mapping == MAP_FAILED) {
    return fail_errno(ErrorKind::kRefused, "mmap",
                      fmt::format("memory of {} MiB is larger than can be mapped now (limits: "
                                  "ulimit -v, vm.overcommit_memory)",
                                  size.value >> 20U));
  }
  GuestMemory memory(std::move(fd), mapping, size, kind.backing);
  for (const int advice : {MADV_DONTFORK, MADV_DONTDUMP, MADV_NOHUGEPAGE}) {
    // Large pages would be installed and zapped as one while a migration works page by page. A
    // kernel built without them answers EINVAL, which is as good.
    if (::madvise(mapping, size.value, advice) != 0 && errno != EINVAL) {
      return fail_errno(ErrorKind::kFailed, "madvise");
    }
  }
  return memory;
}

GuestMemory::GuestMemory(base::OwnedFd fd, void* mapping, Bytes size, Backing backing)
    : fd_(std::move(fd)), mapping_(mapping), size_(size) {
  const auto address = reinterpret_cast<std::uintptr_t>(mapping);
  const std::uint64_t low = std::min(size.value, kLowMemoryEnd.value);
  const auto add = [&](const char* name, base::GuestAddress start, std::uint64_t offset,
                       std::uint64_t length) {
    runtime::Region region;
    region.name = name;
    region.start = start;
    region.size = Bytes{length};
    region.page_size = page_size_of(backing);
    region.backing = backing;
    region.fd = fd_.get();
    region.fd_offset = offset;
    region.mapping = base::HostAddress{address + offset};
    regions_.push_back(std::move(region));
  };
  add("ram.low", base::GuestAddress{0}, 0, low);
  if (size.value > low) {
    add("ram.high", kHighMemoryStart, low, size.value - low);
  }
}

GuestMemory::GuestMemory(GuestMemory&& other) noexcept
    : fd_(std::move(other.fd_)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      size_(other.size_),
      regions_(std::move(other.regions_)) {
}

GuestMemory::~GuestMemory() {
  if (mapping_ != nullptr) {
    ::munmap(mapping_, size_.value);
  }
}

std::optional<std::span<std::byte>> GuestMemory::slice(base::GuestAddress at, Bytes size) const {
  for (const runtime::Region& region : regions_) {
    if (at.value < region.start.value || at.value - region.start.value >= region.size.value) {
      continue;
    }
    const std::uint64_t offset = at.value - region.start.value;
    if (size.value > region.size.value - offset) {
      return std::nullopt;
    }
    auto* first = static_cast<std::byte*>(mapping_) + region.fd_offset + offset;
    return std::span<std::byte>(first, size.value);
  }
  return std::nullopt;
}

std::optional<base::PageIndex> GuestMemory::page_of(base::GuestAddress at) const {
  std::uint64_t before = 0;
  for (const runtime::Region& region : regions_) {
    if (at.value >= region.start.value && at.value - region.start.value < region.size.value) {
      return base::PageIndex{before + (at.value - region.start.value) / region.page_size.value};
    }
    before += region.size.value / region.page_size.value;
  }
  return std::nullopt;
}

}  // namespace towline::vmm
