#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "base/clock.h"
#include "base/error.h"
#include "base/latency_histogram.h"
#include "base/units.h"
#include "runtime/core/guest_pages.h"
#include "runtime/core/memory_layout.h"
#include "runtime/core/page_map.h"
#include "runtime/core/request_table.h"

namespace towline::runtime {

/// What becomes of pages and faults at the target. No sockets, no threads, no kernel: those are
/// around it, and the same code runs under the simulator.
///
/// A page's bytes are complete and their checksum is good before they come here; the claim is
/// taken here, before the first byte is written to the guest's file, and held until the page is
/// mapped. A page that the guest may have seen is never written.
///
/// Threads: any.
class PageReceiver {
 public:
  /// All references outlive this. `ask` sends the requests that are due in `requests`; it must not
  /// block.
  PageReceiver(const MemoryLayout& layout, GuestPages& pages, PageMap& map, RequestTable& requests,
               const base::Clock& clock, std::function<void()> ask);

  /// Pages that were sent because of their turn. Pages that are not missing are dropped.
  /// Errors: kOverloaded, kFailed: as GuestPages; the claims are given back.
  base::Outcome on_pages(base::PageRange range, std::span<const std::byte> bytes);

  /// Pages that were asked for. One that somebody else is just installing is kept until that is
  /// settled.
  base::Outcome on_demanded(base::PageRange range, std::span<const std::byte> bytes);

  /// The range holds zeros.
  base::Outcome on_zeros(base::PageRange range);

  /// The source wrote these pages after it sent them.
  void on_stale(base::PageRange range);

  /// The source is gone for good: makes every page that is missing an error, and nothing else. No
  /// page can arrive any more when this is called. Errors: as GuestPages; what is missing then is
  /// missing still.
  base::Outcome poison_missing();

  /// The guest waits for `page`. The kernel's MISSING or MINOR is only a hint and is not asked for:
  /// the page map alone decides. True: its request is due now, and the caller sees that it is sent.
  /// Allocates nothing, but for the words of an error.
  [[nodiscard]] bool on_fault(base::PageIndex page);

  struct Counters {
    std::atomic<std::uint64_t> installed{0};   ///< Pages.
    std::atomic<std::uint64_t> zeros{0};       ///< Pages.
    std::atomic<std::uint64_t> duplicates{0};  ///< Pages that arrived for nothing.
    std::atomic<std::uint64_t> local_faults{0};
    std::atomic<std::uint64_t> no_memory{0};  ///< Faults on zeros that could not be answered yet.
    base::LatencyHistogram stalls;            ///< Faults that were asked for, from event to wake.
  };

  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  base::Outcome settle(base::PageRange claimed, std::span<const std::byte> bytes);
  void finish(base::PageRange claimed, bool zero);
  base::Outcome give_up(base::PageRange claimed, base::Error reason);
  base::Outcome keep_for_later(base::PageIndex page, std::span<const std::byte> bytes);
  bool answer_fault(base::PageIndex page);
  base::Outcome poison(base::PageRange claimed);
  base::Outcome answer_with_zeros(base::PageIndex page);
  void wake_waiters(base::PageRange range);

  const MemoryLayout& layout_;
  GuestPages& pages_;
  PageMap& map_;
  RequestTable& requests_;
  const base::Clock& clock_;
  std::function<void()> ask_;
  Counters counters_;
};

}  // namespace towline::runtime
