#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/units.h"
#include "runtime/core/owed_pages.h"

namespace towline::runtime {

/// What the source sends next. A policy, replaceable and testable without I/O.
///
/// Threads: any.
class PushOrder {
 public:
  PushOrder() = default;
  PushOrder(const PushOrder&) = delete;
  PushOrder& operator=(const PushOrder&) = delete;
  virtual ~PushOrder() = default;

  /// The guest waited for `page`: it, or the pages near it, are hot. Takes no lock and waits for
  /// nobody: it is told between two answers to a guest that waits.
  virtual void on_demand(base::PageIndex page) = 0;

  /// These pages were dirtied shortly before the switch, and after those of every earlier call:
  /// the newest are the hottest, and go first. Ascending. Bounded in memory; what is told later is
  /// never dropped in favour of what was told before.
  virtual void on_recently_dirty(std::span<const base::PageRange> round) = 0;

  /// Takes the next run to send from `owed`, at most `limit` pages. nullopt: nothing is owed.
  /// Threads beside each other wait for a short piece of the search at a time, never for all of it.
  [[nodiscard]] virtual std::optional<base::PageRange> next(OwedPages& owed,
                                                            base::PageCount limit) = 0;
};

/// Near a demand first, then recently dirtied (newest first), then the rest in address order.
///
/// A demand opens a window after it (and, for descending or strided walks, along the stride); the
/// window doubles while demands keep hitting its edge or following the stride, and collapses to
/// its smallest size on a miss. Several windows (8) are kept, the least recently used is replaced.
std::unique_ptr<PushOrder> make_window_order(base::PageCount pages);

/// Address order only: the baseline for benchmarks and tests.
std::unique_ptr<PushOrder> make_address_order(base::PageCount pages);

}  // namespace towline::runtime
