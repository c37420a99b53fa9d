#include "base/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace towline::base {

std::size_t LatencyHistogram::bucket_of(std::uint64_t ns) {
  constexpr std::uint64_t kLinear = 1U << kSubBits;
  if (ns < kLinear) {
    return static_cast<std::size_t>(ns);
  }
  const auto octave = static_cast<unsigned>(std::bit_width(ns)) - 1 - kSubBits;
  const std::uint64_t within = (ns >> octave) - kLinear;
  return std::min<std::size_t>(((octave + 1) << kSubBits) + static_cast<std::size_t>(within),
                               kBuckets - 1);
}

std::uint64_t LatencyHistogram::upper_end(std::size_t bucket) {
  constexpr std::uint64_t kLinear = 1U << kSubBits;
  if (bucket < kLinear) {
    return bucket;
  }
  const std::size_t octave = (bucket >> kSubBits) - 1;
  const std::uint64_t within = bucket & (kLinear - 1);
  return ((kLinear + within + 1) << octave) - 1;
}

void LatencyHistogram::record(Duration value) {
  const std::int64_t ns = std::max<std::int64_t>(value.count(), 0);
  ++buckets_[bucket_of(static_cast<std::uint64_t>(ns))];
  ++count_;
  std::int64_t seen = max_;
  while (ns > seen && !max_.compare_exchange_weak(seen, ns)) {
  }
}

Duration LatencyHistogram::quantile(double fraction) const {
  const std::uint64_t total = count_;
  if (total == 0) {
    return Duration(0);
  }
  const auto wanted = static_cast<std::uint64_t>(
      std::ceil(std::clamp(fraction, 0.0, 1.0) * static_cast<double>(total)));
  std::uint64_t seen = 0;
  for (std::size_t bucket = 0; bucket < kBuckets; ++bucket) {
    seen += buckets_[bucket];
    if (seen >= std::max<std::uint64_t>(wanted, 1)) {
      return std::min(Duration(static_cast<std::int64_t>(upper_end(bucket))), max());
    }
  }
  return max();
}

std::array<std::uint64_t, 24> LatencyHistogram::log2_us() const {
  std::array<std::uint64_t, 24> result{};
  for (std::size_t bucket = 0; bucket < kBuckets; ++bucket) {
    const std::uint64_t us = upper_end(bucket) / 1000;
    const auto octave = us == 0 ? 0U : static_cast<unsigned>(std::bit_width(us)) - 1;
    result[std::min<std::size_t>(octave, result.size() - 1)] += buckets_[bucket];
  }
  return result;
}

}  // namespace towline::base
