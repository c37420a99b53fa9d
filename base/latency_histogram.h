#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/clock.h"

namespace towline::base {

/// Counts durations in log-linear buckets: 16 to an octave, so that a quantile is right to 6 %.
///
/// Threads: any; lock-free. A reader may miss what is being recorded.
class LatencyHistogram {
 public:
  void record(Duration value);

  [[nodiscard]] std::uint64_t count() const { return count_; }

  [[nodiscard]] Duration max() const { return Duration(max_.load()); }

  /// The upper end of the bucket that holds the `fraction` (0..1) quantile; zero without values.
  [[nodiscard]] Duration quantile(double fraction) const;

  /// Values in [2^n, 2^(n+1)) µs for n in 0..22 (below 1 µs: in 0), the last one open.
  [[nodiscard]] std::array<std::uint64_t, 24> log2_us() const;

 private:
  static constexpr unsigned kSubBits = 4;
  static constexpr std::size_t kBuckets = 60U << kSubBits;

  static std::size_t bucket_of(std::uint64_t ns);
  static std::uint64_t upper_end(std::size_t bucket);

  std::array<std::atomic<std::uint64_t>, kBuckets> buckets_{};
  std::atomic<std::uint64_t> count_{0};
  std::atomic<std::int64_t> max_{0};
};

}  // namespace towline::base
