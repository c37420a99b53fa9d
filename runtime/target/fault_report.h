#pragma once

#include <cstdint>

#include "base/latency_histogram.h"
#include "runtime/migration.h"

namespace towline::runtime {

/// The figures of a histogram of stalls, in the units that users see.
FaultReport fault_report(const base::LatencyHistogram& stalls, std::uint64_t local,
                         std::uint64_t outstanding);

}  // namespace towline::runtime
