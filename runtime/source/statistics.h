#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "base/clock.h"
#include "base/units.h"
#include "runtime/source/clock_offset.h"

namespace towline::runtime {

/// What a source has measured of its migration, for the report. Guarded by the driver's mutex.
struct SourceStatistics {
  bool heir = false;  ///< It began after the order, in the place of a process that died.
  base::Instant started;
  base::Instant set_up;
  base::Instant ended;
  base::Instant parked_at;
  ClockOffset clock;
  std::uint64_t pings = 0;  ///< Before the switch: sent.
  std::uint64_t pongs = 0;  ///< Answered.
  std::optional<double> downtime_ms;
  std::uint64_t dirty_syncs = 0;
  std::uint64_t dirty_rate = 0;  ///< Pages/s.
  base::Instant last_sync;
  std::uint64_t bytes_before_flight = 0;
  std::uint64_t bytes_after_flight = 0;
  std::uint64_t bytes_of_past_epochs = 0;
  /// What was owed before a recovery, until the target has said what it misses.
  std::optional<base::PageCount> left_before;
  std::string overdue;  ///< An answer that was lost, the last one.

  // Rates are taken over windows between reports.
  struct Sample {
    base::Instant at;
    std::uint64_t bytes = 0;
    std::uint64_t pages = 0;
  };

  Sample window;
  double mbps = 0;
  std::uint64_t pages_per_second = 0;
};

}  // namespace towline::runtime
