#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace towline::runtime {

/// How long to wait before the next attempt: doubling from `first` to `most`, and a random part of
/// it, so that many sources that lost one network do not come back at the same moment.
class Backoff {
 public:
  Backoff(std::chrono::milliseconds first, std::chrono::milliseconds most)
      : first_(first), most_(most), next_(first) {}

  /// `random` is any number. In [half, whole] of the present step.
  std::chrono::milliseconds take(std::uint64_t random) {
    const auto whole = next_;
    next_ = std::min(most_, next_ * 2);
    const auto half = static_cast<std::uint64_t>(whole.count()) / 2;
    return std::chrono::milliseconds(static_cast<std::int64_t>(half + random % (half + 1)));
  }

  void reset() { next_ = first_; }

 private:
  std::chrono::milliseconds first_;
  std::chrono::milliseconds most_;
  std::chrono::milliseconds next_;
};

}  // namespace towline::runtime
