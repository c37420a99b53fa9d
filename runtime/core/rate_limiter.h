#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/sync.h"

namespace towline::runtime {

/// Bytes per second over all who call it; changeable at any time.
///
/// Threads: any.
class RateLimiter {
 public:
  /// 0: no limit. `clock` outlives this.
  explicit RateLimiter(std::uint64_t bytes_per_second,
                       const base::Clock& clock = base::system_clock())
      : clock_(clock), rate_(bytes_per_second) {}

  void set_rate(std::uint64_t bytes_per_second);

  /// Waits until `bytes` more may be sent. At once after stop().
  void take(std::uint64_t bytes);

  /// take() without waiting. False: it is not time, and nothing was taken.
  [[nodiscard]] bool try_take(std::uint64_t bytes);

  /// Lets everybody through from now on.
  void stop();

 private:
  bool take_now(std::uint64_t bytes) REQUIRES(mutex_);

  const base::Clock& clock_;
  base::Mutex mutex_;
  base::Condition changed_;
  std::uint64_t rate_ GUARDED_BY(mutex_);
  bool stopped_ GUARDED_BY(mutex_) = false;
  base::Instant next_ GUARDED_BY(mutex_);  // When the next byte is due.
};

}  // namespace towline::runtime
