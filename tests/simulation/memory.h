#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "runtime/core/guest_pages.h"
#include "runtime/core/page_map.h"
#include "runtime/ports.h"
#include "tests/simulation/world.h"

namespace towline::simulation {

/// A page's content: the value of the write that filled it, at both of its ends, so that half a
/// page can be told from a whole one.
struct Content {
  std::uint64_t head = 0;
  std::uint64_t tail = 0;

  [[nodiscard]] bool zero() const { return head == 0 && tail == 0; }

  bool operator==(const Content&) const = default;
};

/// Content as the 4096 bytes that cross the wire, with the page's number in them.
void fill_page(Content content, base::PageIndex page, std::span<std::byte> bytes);

/// nullopt: these are the bytes of another page.
std::optional<Content> read_page(std::span<const std::byte> bytes, base::PageIndex page);

/// Guest memory at the source and its dirty log, as KVM keeps it: manual protect, initially set.
class SourceGuest final : public runtime::DirtyLog {
 public:
  explicit SourceGuest(World& world);

  // ---- the guest ----

  void write_something();

  /// A device fills a page now and its write is marked when it completes.
  void device_writes();
  void device_completes();

  [[nodiscard]] bool device_busy() const { return !device_.empty(); }

  // ---- the migration ----

  [[nodiscard]] Content content(base::PageIndex page) const { return memory_[page.value]; }

  /// Never written: the file has nothing there.
  [[nodiscard]] bool hole(base::PageIndex page) const { return !backed_[page.value]; }

  base::Outcome enable() override;
  void disable() override;
  base::Outcome read(std::size_t region, std::span<std::uint64_t> bitmap) override;
  base::Outcome clear(std::size_t region, std::uint64_t first, std::uint64_t count,
                      std::span<const std::uint64_t> bitmap) override;

 private:
  void mark(base::PageIndex page);
  void fill(base::PageIndex page);

  World& world_;
  std::vector<Content> memory_;
  std::vector<bool> backed_;
  std::vector<std::vector<std::uint64_t>> log_;  // By region.
  std::deque<base::PageIndex> device_;           // Written, not yet marked.
};

/// Guest memory at the target: the file's pages, the guest's mapping of them, and userfaultfd in
/// front of it. It knows what must never happen and says so.
class TargetGuest final : public runtime::GuestPages {
 public:
  TargetGuest(World& world, const runtime::PageMap& map, std::size_t threads);

  // ---- GuestPages ----

  base::Outcome write(base::PageRange range, std::span<const std::byte> bytes) override;
  base::Outcome punch(base::PageRange range) override;
  base::Outcome back_with_zeros(base::PageRange range) override;
  base::Outcome map(base::PageRange range) override;
  void zap(base::PageRange range) override;
  base::Outcome poison(base::PageRange range) override;
  void wake(base::PageRange range) override;

  // ---- threads of the guest (and the loader) ----

  /// One access. False: it waits for the page; try again when blocked() says so no longer.
  bool access(std::size_t thread, base::PageIndex page, bool writes);

  [[nodiscard]] bool blocked(std::size_t thread) const { return threads_[thread].waits; }

  [[nodiscard]] base::PageIndex waits_for(std::size_t thread) const {
    return threads_[thread].page;
  }

  /// Nobody has read the fault that it waits with.
  [[nodiscard]] bool unread(std::size_t thread) const;

  /// Waits, its fault was read, and yet the page is here. Asked while nobody is half-way.
  [[nodiscard]] bool forgotten(std::size_t thread) const;

  [[nodiscard]] std::size_t threads() const { return threads_.size(); }

  // ---- the kernel ----

  [[nodiscard]] bool has_faults() const { return !events_.empty(); }

  /// A batch of pages that threads wait for.
  std::vector<base::PageIndex> read_faults(std::size_t most);

  /// Takes a mapped page's entry away, as swap and collapse do: its content stays.
  void reclaim(base::PageIndex page);

  /// Ends the registration: from here on the kernel answers by itself.
  void release();

  // ---- checks ----

  /// What a touch of the page would show if nothing stood in front of the file.
  [[nodiscard]] Content in_file(base::PageIndex page) const;

  [[nodiscard]] bool poisoned(base::PageIndex page) const { return poisoned_[page.value]; }

  [[nodiscard]] bool hole(base::PageIndex page) const { return !file_[page.value].has_value(); }

 private:
  bool is_full();

  struct Thread {
    bool waits = false;
    base::PageIndex page;
  };

  void check_claimed(base::PageRange range, const char* what);
  void check_still_claimed(base::PageRange range, const char* what);
  void touch(base::PageIndex page, bool writes);

  World& world_;
  const runtime::PageMap& map_;
  std::vector<std::optional<Content>> file_;
  std::vector<bool> mapped_;
  std::vector<bool> poisoned_;
  std::vector<bool> seen_;      // By the guest, through the mapping.
  std::uint64_t full_for_ = 0;  // So many more writes before the switch find no room.
  bool registered_ = true;
  std::vector<Thread> threads_;
  std::deque<std::size_t> events_;  // Threads whose fault nobody has read.
};

}  // namespace towline::simulation
