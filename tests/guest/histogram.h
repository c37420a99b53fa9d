#pragma once

#include <cstdint>

namespace guest {

/// Log-linear histogram: 16 steps in each octave, so a value is known to 6 %. Values are cycles.
class Histogram {
 public:
  static constexpr std::uint32_t kSteps = 16;
  // 44 octaves of cycles are hours; what is longer counts in the last bucket.
  static constexpr std::uint32_t kBuckets = 44 * kSteps;

  void add(std::uint64_t value) { ++counts_[bucket_of(value)]; }

  void clear() {
    for (std::uint64_t& count : counts_) {
      count = 0;
    }
  }

  [[nodiscard]] std::uint64_t count(std::uint32_t bucket) const { return counts_[bucket]; }

  void add_all(const Histogram& other) {
    for (std::uint32_t i = 0; i < kBuckets; ++i) {
      counts_[i] += other.counts_[i];
    }
  }

  /// Highest value of the bucket in which the `per_mille`th part of all values ends; 0 if empty.
  [[nodiscard]] std::uint64_t quantile(std::uint64_t per_mille) const {
    std::uint64_t all = 0;
    for (const std::uint64_t count : counts_) {
      all += count;
    }
    const std::uint64_t wanted = (all * per_mille + 999) / 1000;
    std::uint64_t seen = 0;
    for (std::uint32_t i = 0; i < kBuckets; ++i) {
      seen += counts_[i];
      if (seen >= wanted && counts_[i] != 0) {
        return lower_bound(i + 1) - 1;
      }
    }
    return 0;
  }

  static constexpr std::uint32_t bucket_of(std::uint64_t value) {
    if (value < kSteps) {
      return static_cast<std::uint32_t>(value);
    }
    const auto top = 63U - static_cast<std::uint32_t>(__builtin_clzll(value));
    const std::uint32_t bucket =
        (top - 3) * kSteps + static_cast<std::uint32_t>((value >> (top - 4)) & (kSteps - 1));
    return bucket < kBuckets ? bucket : kBuckets - 1;
  }

  static constexpr std::uint64_t lower_bound(std::uint32_t bucket) {
    if (bucket < kSteps) {
      return bucket;
    }
    const std::uint32_t top = bucket / kSteps + 3;
    return (std::uint64_t{kSteps} + bucket % kSteps) << (top - 4);
  }

 private:
  std::uint64_t counts_[kBuckets] = {};
};

static_assert(Histogram::bucket_of(16) == 16 && Histogram::bucket_of(33) == 32 &&
              Histogram::lower_bound(Histogram::bucket_of(4096)) == 4096);

}  // namespace guest
