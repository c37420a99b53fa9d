#pragma once

#include <chrono>
#include <cstdint>

namespace towline::base {

using Instant = std::chrono::steady_clock::time_point;
using Duration = std::chrono::nanoseconds;

/// Where the time comes from. The fake is in tests/support.
class Clock {
 public:
  Clock() = default;
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;
  virtual ~Clock() = default;

  [[nodiscard]] virtual Instant now() const = 0;
};

/// For the wire: nanoseconds of that clock.
inline std::uint64_t to_ns(Instant instant) {
  return static_cast<std::uint64_t>(instant.time_since_epoch().count());
}

/// CLOCK_MONOTONIC. Threads: any.
const Clock& system_clock();

}  // namespace towline::base
