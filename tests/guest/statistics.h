#pragma once

#include <cstdint>

#include "tests/guest/text.h"

/// Sums over all vCPUs, as fields of a line.
namespace guest {

/// Since the guest started. Microseconds.
std::uint64_t uptime_us(std::uint64_t now);

/// As told by the command line or CPUID; 0 if unknown.
std::uint64_t known_tsc_khz();

/// Finds out the TSC's frequency and starts the clock.
void start_clock();

/// Longest gaps: since the last reset and since the last report, one that goes on now included.
Line& add_gaps(Line& line, std::uint64_t now);

/// All fields of a report.
Line& add_statistics(Line& line, std::uint64_t now);

/// True when every vCPU has dropped its statistics since the last command to do so.
bool all_reset();

/// The histogram and the gap log, a line a step; false after the last.
void begin_listing();
bool listing_step();

}  // namespace guest
