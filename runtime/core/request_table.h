#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/sync.h"
#include "base/units.h"

namespace towline::runtime {

/// Outstanding faults at the target: one request per page, any number of waiters.
///
/// A page that must be asked for becomes due, and stays so until whoever sends says that its
/// request is on its way. So nobody has to send at the moment when a request is found to be
/// needed: it waits here.
///
/// Nobody is lost: the fault thread first adds the page here and then looks at the page map; who
/// ends a claim first writes the page map and then finishes the page here. Whichever is second
/// sees the other and wakes the waiters.
///
/// All memory is taken at construction, but for answers that are parked: add(), want(), next_due(),
/// sent() and finish() allocate nothing.
///
/// Threads: any.
class RequestTable {
 public:
  enum class Added : std::uint8_t {
    kFirst,   ///< Nobody waited for this page until now.
    kJoined,  ///< A request is under way, or a claim will answer it.
    kFull,    ///< The bound is reached. The event must be tried again.
  };

  struct Finished {
    base::PageIndex page;
    base::Instant since;  ///< When the first waiter was seen.
    std::uint32_t waiters = 0;
    bool asked = false;  ///< A request was sent for it, or was due.
  };

  /// For at most `bound` pages: 84 bytes each.
  explicit RequestTable(std::size_t bound);

  [[nodiscard]] Added add(base::PageIndex page, base::Instant now);

  /// The page must be asked for: its request is due from now on. False: it was already, or nobody
  /// waits.
  [[nodiscard]] bool want(base::PageIndex page);

  /// As want() for every page of `range` that has waiters; returns how many became due. For the
  /// claim's holder that gives up.
  [[nodiscard]] std::size_t want_range(base::PageRange range);

  /// Every outstanding page is due again, the one first that waits longest; returns how many those
  /// are. For requests that may be lost with their lane.
  std::size_t want_all();

  /// Writes the pages that are due to `into`, as many as it takes, in the order in which they are
  /// to be asked for; returns how many. They stay due until sent().
  [[nodiscard]] std::size_t next_due(std::span<base::PageIndex> into) const;

  /// The requests for `pages` are on their way. Not beside want_all(), which speaks of another
  /// lane: their callers exclude each other.
  void sent(std::span<const base::PageIndex> pages);

  /// The page is here: forgets the request and what is parked on it.
  std::optional<Finished> finish(base::PageIndex page);

  /// As finish() for every page of `range` that has waiters. Cheap when nobody waits at all.
  void finish_range(base::PageRange range, const std::function<void(const Finished&)>& each);

  /// An answer came while somebody else holds the claim: keeps a copy until the claim ends. False:
  /// nobody waits for the page, and the bytes are of no use. The claim may have ended between its
  /// refusal and this call: look at the page map once more afterwards, and if the page is missing
  /// claim it and take_parked() (docs/state-machines.md, "Who wakes whom").
  [[nodiscard]] bool park(base::PageIndex page, std::span<const std::byte> bytes);

  /// The parked answer, if there is one; it is no longer in the table.
  [[nodiscard]] std::optional<std::vector<std::byte>> take_parked(base::PageIndex page);

  [[nodiscard]] std::size_t size() const;

 private:
  using Slot = std::uint32_t;  // A place in entries_.
  static constexpr Slot kNone = ~Slot{0};

  enum class Request : std::uint8_t { kNotNeeded, kDue, kSent };

  struct Entry {
    std::uint64_t page = 0;
    base::Instant since;
    std::uint32_t waiters = 0;
    Request request = Request::kNotNeeded;
    Slot next_alike = kNone;  // Of the same bucket; of free entries and of finished ones: the next.
    std::optional<std::vector<std::byte>> parked;
  };

  /// A doubly linked list of slots, in an order of its own. All its memory is taken at once.
  class Order {
   public:
    explicit Order(std::size_t slots);

    [[nodiscard]] Slot first() const { return links_.back().next; }

    /// kNone behind the last one.
    [[nodiscard]] Slot after(Slot slot) const { return links_[slot].next; }

    void append(Slot slot);
    void remove(Slot slot);

   private:
    struct Links {
      Slot before = kNone;
      Slot next = kNone;
    };

    // kNone stands for the last element: the place before the first slot and behind the last one.
    Links& at(Slot slot) { return slot == kNone ? links_.back() : links_[slot]; }

    std::vector<Links> links_;
  };

  [[nodiscard]] Slot& bucket(std::uint64_t page) REQUIRES(mutex_);
  [[nodiscard]] Slot find(std::uint64_t page) REQUIRES(mutex_);
  void make_due(Slot slot) REQUIRES(mutex_);
  void forget(Slot slot) REQUIRES(mutex_);

  /// Calls `each` with the slot of every page in `range` that has waiters, ascending or, if the
  /// range is large, the oldest first. `each` may forget that one.
  template <typename Each>
  void for_each_in(base::PageRange range, Each each) REQUIRES(mutex_);

  mutable base::Mutex mutex_;
  std::vector<Entry> entries_ GUARDED_BY(mutex_);
  std::vector<Slot> buckets_ GUARDED_BY(mutex_);  // The first entry of each; a power of two.
  Order by_age_ GUARDED_BY(mutex_);               // All entries that are in use.
  Order due_ GUARDED_BY(mutex_);                  // Those of them that are due.
  Slot free_ GUARDED_BY(mutex_) = kNone;
  std::atomic<std::size_t> size_{0};  // Changed under mutex_; read without it by finish_range().
};

}  // namespace towline::runtime
