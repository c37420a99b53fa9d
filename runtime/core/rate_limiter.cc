#include "runtime/core/rate_limiter.h"

#include <algorithm>
#include <chrono>

namespace towline::runtime {
namespace {

// Unused time is not saved up beyond this, so that a pause is not followed by a burst.
constexpr std::chrono::milliseconds kMaxCredit{20};

}  // namespace

void RateLimiter::set_rate(std::uint64_t bytes_per_second) {
  const base::Lock lock(mutex_);
  rate_ = bytes_per_second;
  next_ = base::Instant{};  // What was owed under the old rate is forgiven.
  changed_.notify_all();
}

bool RateLimiter::take_now(std::uint64_t bytes) {
  if (rate_ == 0 || stopped_) {
    return true;
  }
  const base::Instant now = clock_.now();
  next_ = std::max(next_, now - kMaxCredit);
  if (next_ > now) {
    return false;
  }
  const double seconds = static_cast<double>(bytes) / static_cast<double>(rate_);
  next_ += std::chrono::duration_cast<base::Duration>(std::chrono::duration<double>(seconds));
  return true;
}

bool RateLimiter::try_take(std::uint64_t bytes) {
  const base::Lock lock(mutex_);
  return take_now(bytes);
}

void RateLimiter::take(std::uint64_t bytes) {
  const base::Lock lock(mutex_);
  while (!take_now(bytes)) {
    const base::Instant due = next_;
    // Another taker may be first when it is due, or the rate may change: look again then.
    [[maybe_unused]] const bool early =
        changed_.wait_until(mutex_, due, [&]() UNDER_LOCK { return next_ != due || stopped_; });
  }
}

void RateLimiter::stop() {
  const base::Lock lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

}  // namespace towline::runtime
