#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "base/units.h"
#include "runtime/owed_pages.h"

namespace towline::runtime {

/// What the source sends next. A policy, replaceable and testable without I/O.
///
/// Threads: any; the implementations lock for a few instructions.
class PushOrder {
 public:
  PushOrder() = default;
  PushOrder(const PushOrder&) = delete;
  PushOrder& operator=(const PushOrder&) = delete;
  virtual ~PushOrder() = default;

  /// The guest waited for `page`: it, or the pages near it, are hot.
  virtual void on_demand(base::PageIndex page) = 0;

  /// These pages were dirtied shortly before the switch: sent before the rest.
  virtual void on_recently_dirty(base::PageRange range) = 0;

  /// Takes the next run to send from `owed`, at most `limit` pages. nullopt: nothing is owed.
  [[nodiscard]] virtual std::optional<base::PageRange> next(OwedPages& owed,
                                                            base::PageCount limit) = 0;
};

/// Near a demand first, then recently dirtied, then the rest in address order.
///
/// A demand opens a window after it (and, for descending or strided walks, along the stride); the
/// window doubles while demands keep hitting its edge or following the stride, and collapses to
/// its smallest size on a miss. Several windows (8) are kept, the least recently used is replaced.
std::unique_ptr<PushOrder> make_window_order(base::PageCount pages);

/// Address order only: the baseline for benchmarks and tests.
std::unique_ptr<PushOrder> make_address_order(base::PageCount pages);

}  // namespace towline::runtime
