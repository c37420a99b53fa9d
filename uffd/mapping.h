#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/fd.h"
#include "base/units.h"

/// Guest memory is one file mapped twice: the guest mapping, where faults are reported, and the
/// alias, where pages are written before the guest may see them. These are the calls on both.
namespace towline::uffd {

using base::Bytes;
using base::HostAddress;

/// Bytes [offset, offset + length) of a file.
struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;

  [[nodiscard]] std::uint64_t end() const { return offset + length; }

  bool operator==(const Extent&) const = default;
};

/// Removes the page-table entries of [start, start + length) of a mapping: the next touch faults
/// again. The file keeps its pages. 0.12 µs a page in ranges, 1 µs singly
/// (docs/kernel-contract.md).
///
/// Errors: kRefused if either end is no multiple of `page_size`, the mapping's own: the kernel
///         rounds a part of a huge page down to nothing and says it did it. kFailed otherwise.
/// Source: madvise(2), MADV_DONTNEED; tests/contract/zap_test.cc.
base::Outcome zap(HostAddress start, Bytes length, Bytes page_size);

/// Frees the file's pages in `extent`; they read as zeros and every mapping loses them.
///
/// Errors: kRefused if either end is no multiple of `page_size` (the kernel would zero parts of
///         pages instead, under the guest). kFailed otherwise.
/// Source: fallocate(2), FALLOC_FL_PUNCH_HOLE.
base::Outcome punch(int fd, Extent extent, Bytes page_size);

enum class Allocation : std::uint8_t {
  kDone,
  kNoMemory,  ///< ENOSPC, ENOMEM. Shmem keeps nothing of it, hugetlb the part that it could give.
              ///< Pause and try again later.
};

/// Gives the file pages in `extent` without touching them. What is there stays.
///
/// Only for claimed pages: UFFDIO_CONTINUE of a page that was only allocated succeeds as zeros.
/// Source: fallocate(2).
base::Expected<Allocation> allocate(int fd, Extent extent);

/// The first extent at or after `from` and before `end` that may hold anything but zeros; nothing
/// if there is none. Extents are whole pages of the file and cut at `end`. Pages that were only
/// allocated are holes. On hugetlb every byte counts as data.
///
/// Threads: any: the file's own position, which it moves, is nobody's.
/// Source: lseek(2), SEEK_DATA; tests/contract/hole_test.cc.
base::Expected<std::optional<Extent>> next_data(int fd, std::uint64_t from, std::uint64_t end);

enum class Collapse : std::uint8_t {
  kDone,
  kNotNow,       ///< EAGAIN, EBUSY, ENOMEM: a page is in use, or no huge page is free.
  kNotPossible,  ///< EINVAL: not eligible (size, alignment, userfaultfd still armed).
};

/// Makes huge pages of whole 2 MiB ranges, now. After completion only: a collapse maps every page
/// of the range, received or not.
///
/// Source: madvise(2), MADV_COLLAPSE, Linux 6.1.
base::Expected<Collapse> collapse(HostAddress start, Bytes length);

/// Keeps a mapping of guest memory out of children, core dumps and transparent huge pages.
base::Outcome keep_private(HostAddress start, Bytes length);

/// A second, shared mapping of guest memory's file, never registered with a userfaultfd.
///
/// Nobody reads a page through it that has not been written through it: the read itself would fill
/// the hole with a page of zeros.
class Alias {
 public:
  enum class Access : std::uint8_t { kRead, kReadWrite };

  Alias() = default;

  /// Errors: kFailed with mmap()'s errno.
  static base::Expected<Alias> map(int fd, Extent extent, Access access);

  Alias(Alias&& other) noexcept
      : start_(std::exchange(other.start_, nullptr)), extent_(std::exchange(other.extent_, {})) {}

  Alias& operator=(Alias&& other) noexcept;
  Alias(const Alias&) = delete;
  Alias& operator=(const Alias&) = delete;
  ~Alias();

  /// The mapped bytes of `part`, which lies inside extent(), in offsets of the file.
  [[nodiscard]] std::span<std::byte> bytes(Extent part) const;

  [[nodiscard]] std::span<std::byte> bytes() const { return {start_, extent_.length}; }

  [[nodiscard]] Extent extent() const { return extent_; }

  /// Gives back the page tables of `part` behind a receiver: two full mappings double them. The
  /// file keeps the bytes. Ends need no alignment on 4096-byte pages: the inner pages are released.
  base::Outcome release(Extent part, Bytes page_size) const;

 private:
  Alias(std::byte* start, Extent extent) : start_(start), extent_(extent) {}

  std::byte* start_ = nullptr;  // Owned mapping of extent_.length bytes.
  Extent extent_;
};

/// /proc/self/pagemap: whether a page-table entry is there. For tests and diagnosis.
class Pagemap {
 public:
  static base::Expected<Pagemap> open();

  /// A page is mapped at `at`, present in memory.
  [[nodiscard]] base::Expected<bool> is_mapped(HostAddress at) const;

 private:
  explicit Pagemap(base::OwnedFd fd) : fd_(std::move(fd)) {}

  base::OwnedFd fd_;
};

}  // namespace towline::uffd
