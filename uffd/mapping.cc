#include "uffd/mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/ensure.h"
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

void* pointer(HostAddress at) {
  return reinterpret_cast<void*>(at.value);  // NOLINT(performance-no-int-to-ptr): the only door.
}

bool aligned(std::uint64_t value, Bytes page_size) {
  return value % page_size.value == 0;
}

Outcome advise_all(HostAddress start, Bytes length, const std::array<int, 3>& advices) {
  for (const int advice : advices) {
    // Kernels without transparent huge pages answer EINVAL to the advice about them.
    if (::madvise(pointer(start), length.value, advice) != 0 && errno != EINVAL) {
      return fail_errno(ErrorKind::kFailed, "madvise");
    }
  }
  return Done{};
}

}  // namespace

Outcome zap(HostAddress start, Bytes length, Bytes page_size) {
  if (!aligned(start.value, page_size) || !aligned(length.value, page_size)) {
    return fail(ErrorKind::kRefused, "MADV_DONTNEED", "whole pages of the mapping are zapped");
  }
  if (::madvise(pointer(start), length.value, MADV_DONTNEED) != 0) {
    return fail_errno(ErrorKind::kFailed, "MADV_DONTNEED");
  }
  return Done{};
}

Outcome punch(int fd, Extent extent, Bytes page_size) {
  if (!aligned(extent.offset, page_size) || !aligned(extent.length, page_size)) {
    return fail(ErrorKind::kRefused, "punch hole", "whole pages of the file are punched");
  }
  int result = 0;
  do {
    result = ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         static_cast<off_t>(extent.offset), static_cast<off_t>(extent.length));
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    return fail_errno(ErrorKind::kFailed, "punch hole");
  }
  return Done{};
}

Expected<Allocation> allocate(int fd, Extent extent) {
  int result = 0;
  do {
    result = ::fallocate(fd, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(extent.offset),
                         static_cast<off_t>(extent.length));
  } while (result != 0 && errno == EINTR);
  if (result == 0) {
    return Allocation::kDone;
  }
  if (errno == ENOSPC || errno == ENOMEM) {
    return Allocation::kNoMemory;
  }
  return fail_errno(ErrorKind::kFailed, "allocate pages");
}

Expected<std::optional<Extent>> next_data(int fd, std::uint64_t from, std::uint64_t end) {
  if (from >= end) {
    return std::optional<Extent>{};
  }
  const off_t data = ::lseek(fd, static_cast<off_t>(from), SEEK_DATA);
  if (data < 0) {
    if (errno == ENXIO) {
      return std::optional<Extent>{};
    }
    return fail_errno(ErrorKind::kFailed, "SEEK_DATA");
  }
  const auto begin = static_cast<std::uint64_t>(data);
  if (begin >= end) {
    return std::optional<Extent>{};
  }
  const off_t hole = ::lseek(fd, data, SEEK_HOLE);
  if (hole < 0) {
    return fail_errno(ErrorKind::kFailed, "SEEK_HOLE");
  }
  return std::optional<Extent>(
      Extent{begin, std::min(static_cast<std::uint64_t>(hole), end) - begin});
}

Expected<Collapse> collapse(HostAddress start, Bytes length) {
  if (::madvise(pointer(start), length.value, uapi::kMadvCollapse) == 0) {
    return Collapse::kDone;
  }
  switch (errno) {
    case EAGAIN:
    case EBUSY:
    case ENOMEM:
      return Collapse::kNotNow;
    case EINVAL:
      return Collapse::kNotPossible;
    default:
      return fail_errno(ErrorKind::kFailed, "MADV_COLLAPSE");
  }
}

Outcome keep_private(HostAddress start, Bytes length) {
  return advise_all(start, length, {MADV_DONTFORK, MADV_DONTDUMP, MADV_NOHUGEPAGE});
}

Expected<Alias> Alias::map(int fd, Extent extent, Access access) {
  const int protection = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* mapped = ::mmap(nullptr, extent.length, protection, MAP_SHARED | MAP_NORESERVE, fd,
                        static_cast<off_t>(extent.offset));
  if (mapped == MAP_FAILED) {
    return fail_errno(
        ErrorKind::kFailed, "mmap",
        "no second mapping of " + std::to_string(extent.length) + " bytes of guest memory");
  }
  Alias alias(static_cast<std::byte*>(mapped), extent);
  TRY(keep_private(HostAddress{reinterpret_cast<std::uintptr_t>(mapped)}, Bytes{extent.length}));
  return alias;
}

Alias& Alias::operator=(Alias&& other) noexcept {
  if (this != &other) {
    std::swap(start_, other.start_);
    std::swap(extent_, other.extent_);
  }
  return *this;
}

Alias::~Alias() {
  if (start_ != nullptr) {
    (void)::munmap(start_, extent_.length);
  }
}

std::span<std::byte> Alias::bytes(Extent part) const {
  ENSURE(part.offset >= extent_.offset && part.length <= extent_.length &&
             part.offset - extent_.offset <= extent_.length - part.length,
         "a part of the alias lies inside it");
  return {start_ + (part.offset - extent_.offset), part.length};
}

Outcome Alias::release(Extent part, Bytes page_size) const {
  const std::span<std::byte> area = bytes(part);
  const auto start = reinterpret_cast<std::uintptr_t>(area.data());
  const std::uint64_t first = (start + page_size.value - 1) / page_size.value * page_size.value;
  const std::uint64_t last = (start + area.size()) / page_size.value * page_size.value;
  if (first >= last) {
    return Done{};
  }
  return zap(HostAddress{first}, Bytes{last - first}, page_size);
}

Expected<Pagemap> Pagemap::open() {
  OwnedFd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kUnsupported, "open /proc/self/pagemap");
  }
  return Pagemap(std::move(fd));
}

Expected<bool> Pagemap::is_mapped(HostAddress at) const {
  std::uint64_t entry = 0;
  const std::uint64_t page = at.value / base::kSmallPage.value;
  const ssize_t got =
      ::pread(fd_.get(), &entry, sizeof entry, static_cast<off_t>(page * sizeof entry));
  if (got != static_cast<ssize_t>(sizeof entry)) {
    return fail_errno(ErrorKind::kFailed, "read /proc/self/pagemap");
  }
  return (entry & uapi::kPagemapPresent) != 0;
}

}  // namespace towline::uffd
