#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "runtime/core/guest_pages.h"
#include "runtime/core/memory_layout.h"
#include "runtime/ports.h"
#include "uffd/mapping.h"
#include "uffd/shards.h"

namespace towline::runtime {

/// Gives every hole of `extent` its page, a bounded part at a time: while one call lasts, every
/// fault that wants a page of the same file waits for it. `allocate` is uffd::allocate() of the
/// file. kNoMemory: the parts before have theirs.
base::Expected<uffd::Allocation> allocate_in_steps(
    uffd::Extent extent,
    const std::function<base::Expected<uffd::Allocation>(uffd::Extent)>& allocate);

/// What allocate_in_steps() asks for at most in one call, of any kind of memory. Guess: two huge
/// pages, some hundred microseconds.
inline constexpr base::Bytes kAllocateStep{4U << 20U};

/// Guest memory at the target: one file, mapped for the guest and watched by userfaultfd. Pages
/// get into the file by pwrite() and in front of the guest by UFFDIO_CONTINUE. On huge pages, whose
/// file takes no write(): by a second mapping, and never before the page was had by fallocate(),
/// because a store that finds no huge page free is SIGBUS.
///
/// Threads: any for GuestPages; one reader of the faults.
class TargetMemory final : public GuestPages {
 public:
  /// Empties the files, and registers every region MISSING|MINOR with exactly the features used.
  ///
  /// Errors: kUnsupported: userfaultfd is not permitted or cannot serve this kind of memory.
  static base::Expected<std::unique_ptr<TargetMemory>> prepare(const std::vector<Region>& regions,
                                                               const MemoryLayout& layout);

  base::Outcome write(base::PageRange range, std::span<const std::byte> bytes) override;
  base::Outcome punch(base::PageRange range) override;
  base::Outcome back_with_zeros(base::PageRange range) override;
  base::Outcome map(base::PageRange range) override;
  void zap(base::PageRange range) override;
  base::Outcome poison(base::PageRange range) override;
  void wake(base::PageRange range) override;

  [[nodiscard]] std::size_t shards() const { return faults_->shards().size(); }

  /// Readable when a shard has events. Borrowed.
  [[nodiscard]] int shard_fd(std::size_t shard) const { return faults_->userfault(shard).fd(); }

  /// Appends the pages of the faults that wait in `shard`, one batch.
  base::Outcome read_faults(std::size_t shard, std::vector<base::PageIndex>& into);

  /// Before the guest may run here: until release() nothing but the end of the process ends the
  /// guard, so that no missing page can be read as zeros. Errors: kFailed: no descriptors left.
  base::Outcome guard_for_good() { return faults_->keep_registered(); }

  /// Every page is installed or a verified hole: the kernel answers by itself from now on. On huge
  /// pages, and in a file system with a size, every hole gets its page before, because a guest that
  /// touched one without room would die of it.
  /// Errors: kOverloaded: there is no room for the holes; faults are reported as before.
  base::Outcome release();

  /// There is room again for what could not be stored, or nothing was refused yet.
  /// Errors: kOverloaded, naming the file system or the huge pages, and what is free.
  [[nodiscard]] base::Outcome room();

  /// Frees every page in the files: what arrived is of no use.
  void discard();

 private:
  TargetMemory(const std::vector<Region>& regions, const MemoryLayout& layout)
      : regions_(regions), layout_(layout) {}

  struct Place {
    std::size_t region = 0;
    int fd = -1;
    std::uint64_t offset = 0;  // In the file.
    base::HostAddress address;
    base::Bytes length;
    base::Bytes page_size;
  };

  base::Outcome map_alias(const Region& region);
  base::Outcome write_by_alias(const Place& at, std::span<const std::byte> bytes);
  base::Error no_room(int fd, const char* operation);
  [[nodiscard]] bool is_huge(int fd) const;
  [[nodiscard]] bool fits(int fd) const;  // All of it, also what has no page yet.
  [[nodiscard]] bool has_limit(const Region& region) const;
  base::Outcome fill_holes();
  [[nodiscard]] Place place(base::PageRange range) const;
  [[nodiscard]] std::optional<base::PageIndex> page_at(base::HostAddress address) const;

  const std::vector<Region>& regions_;  // The machine's; it outlives the migration.
  MemoryLayout layout_;
  std::vector<uffd::Alias> aliases_;  // One a region; of no bytes where nothing is written by it.
  std::optional<uffd::ShardedUserfault> faults_;
  std::atomic<int> full_{-1};  // The file that had no room when it was asked last.
};

}  // namespace towline::runtime
