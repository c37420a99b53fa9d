#include "runtime/core/rate_limiter.h"

#include <atomic>
#include <chrono>
#include <future>

#include <doctest/doctest.h>

#include "base/thread.h"

namespace towline::runtime {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t kRate = 1'000'000;  // Bytes a second: 1000 are a millisecond.

class FakeClock final : public base::Clock {
 public:
  [[nodiscard]] base::Instant now() const override { return now_; }

  void advance(base::Duration by) { now_ = now_.load() + by; }

 private:
  // Not the beginning of time, where a limiter begins; and so far ahead of the real clock that who
  // waits for an instant of this one waits until he is woken.
  std::atomic<base::Instant> now_ = std::chrono::steady_clock::now() + std::chrono::hours(1000);
};

struct Limited {
  FakeClock clock;
  RateLimiter limiter{kRate, clock};

  /// Uses up what a limiter saved while nobody took anything.
  Limited() {
    while (limiter.try_take(1000)) {
    }
  }

  /// How many takers of 1000 bytes get through now.
  int through() {
    int count = 0;
    while (limiter.try_take(1000)) {
      ++count;
    }
    return count;
  }
};

TEST_CASE("what was taken is waited for before the next may be taken") {
  Limited limited;
  CHECK_FALSE(limited.limiter.try_take(1));
  limited.clock.advance(milliseconds(1));
  CHECK(limited.limiter.try_take(10'000));
  limited.clock.advance(milliseconds(9));
  CHECK_FALSE(limited.limiter.try_take(1));
  limited.clock.advance(milliseconds(2));
  CHECK(limited.limiter.try_take(1));
}

TEST_CASE("over a long time no more than the rate gets through, in however large pieces") {
  Limited limited;
  std::uint64_t bytes = 0;
  for (int i = 0; i < 1000; ++i) {
    limited.clock.advance(milliseconds(1));
    const std::uint64_t piece = 1 + static_cast<std::uint64_t>(i) * 37 % 5000;
    bytes += limited.limiter.try_take(piece) ? piece : 0;
  }
  // A second: a million bytes, and the last piece on credit.
  CHECK(bytes <= kRate + 5000);
  CHECK(bytes >= kRate - 10'000);
}

TEST_CASE("time that nobody used is not saved up: no burst follows a pause") {
  Limited limited;
  limited.clock.advance(std::chrono::seconds(10));
  CHECK(limited.through() <= 21);  // 20 ms and the one that is due.
}

TEST_CASE("without a limit nobody waits, and a limit can be lifted and set at any time") {
  Limited limited;
  limited.limiter.set_rate(0);
  CHECK(limited.limiter.try_take(1ULL << 50U));
  CHECK(limited.limiter.try_take(1ULL << 50U));
  limited.limiter.set_rate(kRate);
  limited.through();
  CHECK_FALSE(limited.limiter.try_take(1));
}

TEST_CASE("what was owed under an old rate is forgiven with it") {
  FakeClock clock;
  RateLimiter limiter(1, clock);
  while (limiter.try_take(1'000'000)) {  // Days of waiting.
  }
  limiter.set_rate(kRate);
  CHECK(limiter.try_take(1000));
}

/// Somebody who waits in take(), for an instant that does not come by itself.
class Taker {
 public:
  explicit Taker(RateLimiter& limiter)
      : thread_("taker", [this, &limiter] {
          limiter.take(1);
          through_.set_value();
        }) {}

  /// Hangs if he is not woken.
  ~Taker() {
    through_.get_future().wait();
    thread_.join();
  }

 private:
  std::promise<void> through_;
  base::NamedThread thread_;
};

TEST_CASE("who waits is let through when the limit is lifted, and when it is raised") {
  for (const std::uint64_t rate : {std::uint64_t{0}, 2 * kRate}) {
    Limited limited;
    const Taker taker(limited.limiter);
    limited.limiter.set_rate(rate);
  }
}

TEST_CASE("who waits is let through when sending ends, and so is everybody after that") {
  Limited limited;
  {
    const Taker one(limited.limiter);
    const Taker other(limited.limiter);
    limited.limiter.stop();
  }
  CHECK(limited.limiter.try_take(1ULL << 50U));
  limited.limiter.take(1ULL << 50U);
}

}  // namespace
}  // namespace towline::runtime
