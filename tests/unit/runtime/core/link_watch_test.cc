#include "runtime/core/link_watch.h"

#include <chrono>
#include <string>

#include <doctest/doctest.h>

#include "runtime/core/backoff.h"

namespace towline::runtime {
namespace {

using std::chrono::milliseconds;

constexpr LinkWatch::Limits kLimits{milliseconds(100), milliseconds(250), milliseconds(2000)};

/// A link that is looked at every 100 ms of an invented clock.
class Bench {
 public:
  /// The verdict after `ticks` looks; the last one is late by `late`.
  LinkVerdict after(int ticks, bool speaks, std::optional<base::Duration> unacknowledged,
                    milliseconds late = milliseconds(0)) {
    LinkVerdict verdict = LinkVerdict::kAlive;
    for (int i = 0; i < ticks && verdict == LinkVerdict::kAlive; ++i) {
      now_ += kLimits.interval + (i == ticks - 1 ? late : milliseconds(0));
      bytes_ += speaks ? 1 : 0;
      verdict = watch_.look(now_, LinkSigns{bytes_, unacknowledged});
    }
    return verdict;
  }

  [[nodiscard]] std::string explain(LinkVerdict verdict) const { return watch_.explain(verdict); }

 private:
  base::Instant now_{};
  std::uint64_t bytes_ = 0;
  LinkWatch watch_{kLimits, now_};
};

TEST_CASE("a peer that speaks is alive, for ever") {
  CHECK(Bench().after(1000, true, std::nullopt) == LinkVerdict::kAlive);
}

TEST_CASE("unacknowledged data for longer than the patience is a dead link") {
  Bench bench;
  CHECK(bench.after(3, false, milliseconds(10'000)) == LinkVerdict::kAlive);
  CHECK(bench.after(1, false, milliseconds(10'000)) == LinkVerdict::kDead);
  CHECK(bench.explain(LinkVerdict::kDead).find("acknowledged") != std::string::npos);
}

TEST_CASE("data that is acknowledged now and then is no dead link, however much is on its way") {
  CHECK(Bench().after(15, false, milliseconds(120)) == LinkVerdict::kAlive);
}

TEST_CASE("an acknowledgement in between begins the patience anew") {
  Bench bench;
  CHECK(bench.after(3, true, milliseconds(10'000)) == LinkVerdict::kAlive);
  CHECK(bench.after(1, true, std::nullopt) == LinkVerdict::kAlive);
  CHECK(bench.after(3, true, milliseconds(10'000)) == LinkVerdict::kAlive);
}

TEST_CASE("fresh acknowledgements and silence are a frozen peer") {
  Bench bench;
  CHECK(bench.after(19, false, milliseconds(5)) == LinkVerdict::kAlive);
  CHECK(bench.after(2, false, milliseconds(5)) == LinkVerdict::kFrozen);
  CHECK(bench.explain(LinkVerdict::kFrozen).find("frozen") != std::string::npos);
}

TEST_CASE("one's own lateness is not counted against the peer") {
  Bench bench;
  CHECK(bench.after(15, false, std::nullopt, milliseconds(60'000)) == LinkVerdict::kAlive);
  CHECK(bench.after(1, false, milliseconds(60'000), milliseconds(60'000)) == LinkVerdict::kAlive);
  CHECK(bench.after(1, false, milliseconds(60'000), milliseconds(60'000)) == LinkVerdict::kAlive);
  CHECK(bench.after(10, false, std::nullopt) == LinkVerdict::kFrozen);
}

TEST_CASE("a link is heard while the peer spoke in the last two looks") {
  LinkWatch watch(kLimits, base::Instant{});
  base::Instant now{};
  CHECK(watch.look(now += kLimits.interval, LinkSigns{1, std::nullopt}) == LinkVerdict::kAlive);
  CHECK(watch.hears());
  CHECK(watch.look(now += kLimits.interval, LinkSigns{1, std::nullopt}) == LinkVerdict::kAlive);
  CHECK(watch.hears());
  CHECK(watch.look(now += kLimits.interval, LinkSigns{1, std::nullopt}) == LinkVerdict::kAlive);
  CHECK_FALSE(watch.hears());
  CHECK(watch.look(now += kLimits.interval, LinkSigns{2, std::nullopt}) == LinkVerdict::kAlive);
  CHECK(watch.hears());
}

TEST_CASE("a lane is silent when nothing on it is acknowledged for longer than the patience") {
  LaneWatch lane(kLimits.interval, kLimits.patience, base::Instant{});
  base::Instant now{};
  const auto look = [&](std::optional<base::Duration> unacknowledged,
                        milliseconds late = milliseconds(0)) {
    now += kLimits.interval + late;
    return lane.look(now, unacknowledged);
  };
  for (int i = 0; i < 3; ++i) {
    CHECK_FALSE(look(milliseconds(10'000)));
  }
  CHECK(look(milliseconds(10'000)));
  CHECK(lane.explain().find("acknowledged") != std::string::npos);
  CHECK_FALSE(look(std::nullopt));
  CHECK_FALSE(look(milliseconds(10'000)));
  CHECK_FALSE(look(milliseconds(60'000), milliseconds(60'000)));  // Its own lateness.
  CHECK_FALSE(look(milliseconds(120)));
}

TEST_CASE("only TCP tells of acknowledgements") {
  CHECK_FALSE(unacknowledged_for(-1).has_value());
}

TEST_CASE("pauses between attempts double up to the longest, and differ between sources") {
  Backoff backoff(milliseconds(10), milliseconds(80));
  for (const int whole : {10, 20, 40, 80, 80}) {
    const auto pause = backoff.take(12345);
    CHECK(pause >= milliseconds(whole / 2));
    CHECK(pause <= milliseconds(whole));
  }
  backoff.reset();
  CHECK(backoff.take(0) == milliseconds(5));
  CHECK(Backoff(milliseconds(10), milliseconds(80)).take(5) == milliseconds(10));
}

}  // namespace
}  // namespace towline::runtime
