#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/sync.h"
#include "base/units.h"

namespace towline::runtime {

/// Outstanding faults at the target: one request per page, any number of waiters.
///
/// Nobody is lost: the fault thread first adds the page here and then looks at the page map; who
/// ends a claim first writes the page map and then finishes the page here. Whichever is second
/// sees the other and wakes the waiters.
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
    bool asked = false;  ///< A request was sent for it.
  };

  explicit RequestTable(std::size_t bound) : bound_(bound) {}

  [[nodiscard]] Added add(base::PageIndex page, base::Instant now);

  /// Notes that the request is (about to be) sent. False: it was already, or nobody waits.
  [[nodiscard]] bool mark_asked(base::PageIndex page);

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

  /// Pages of `range` that have waiters and were not asked for; marks them asked. For the claim's
  /// holder that gives up.
  [[nodiscard]] std::vector<base::PageIndex> ask_unasked(base::PageRange range);

  /// All outstanding pages, oldest first; marks them asked. For a new epoch.
  [[nodiscard]] std::vector<base::PageIndex> ask_all();

  [[nodiscard]] std::size_t size() const;

 private:
  struct Entry {
    base::Instant since;
    std::uint32_t waiters = 1;
    bool asked = false;
    std::optional<std::vector<std::byte>> parked;
  };

  std::size_t bound_;
  mutable base::Mutex mutex_;
  std::map<std::uint64_t, Entry> entries_ GUARDED_BY(mutex_);
  std::atomic<std::size_t> size_{0};  // Read without the lock by finish_range().
};

}  // namespace towline::runtime
