#include "runtime/core/source_protocol.h"

#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

using base::ErrorKind;
using Effect = SourceEffect::Kind;
using Input = SourceInput::Kind;
using Task = SourceTask::Kind;

// One thread walks: nothing for a sanitizer to find in the number of walks.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kWalks = 500;
#else
constexpr std::uint64_t kWalks = 20'000;
#endif

constexpr std::uint64_t kPages = 1000;
constexpr std::uint64_t kIncarnation = 7;
constexpr std::uint64_t kFeaturesOfTarget =
    wire::kFeatureReplaceLane | wire::kFeatureWaitForRoom | wire::kFeatureCountFrames;

base::Error lost_error() {
  return base::Error{ErrorKind::kDisconnected, 0, "test", "it broke"};
}

/// A brain, and what it asked for so far.
struct Source {
  explicit Source(const MigrationOptions& options = {},
                  std::span<const SourceRule> rules = kSourceRules)
      : brain(Uri{}, options, base::PageCount{kPages}, rules) {}

  base::Outcome feed(SourceInput input) {
    now += std::chrono::milliseconds(1);
    input.at = now;
    auto taken = brain.on(input);
    for (SourceEffect& effect : brain.take_effects()) {
      effects.push_back(std::move(effect));
    }
    return taken;
  }

  /// The task that is under way ends; what it found is as a willing target lets it be.
  void finish(Task kind) {
    REQUIRE(brain.task().has_value());
    REQUIRE(to_string(brain.task()->kind) == to_string(kind));
    REQUIRE(feed({.kind = Input::kDone,
                  .task = kind,
                  .number = kind == Task::kOpenControl ? kIncarnation : 0,
                  .features = kFeaturesOfTarget})
                .ok());
  }

  void fail(Task kind, base::Error error = lost_error()) {
    REQUIRE(brain.task().has_value());
    REQUIRE(to_string(brain.task()->kind) == to_string(kind));
    REQUIRE(feed({.kind = Input::kDone, .task = kind, .error = std::move(error)}).ok());
  }

  [[nodiscard]] std::size_t times(Effect kind) const {
    std::size_t found = 0;
    for (const SourceEffect& effect : effects) {
      found += effect.kind == kind ? 1 : 0;
    }
    return found;
  }

  void to_passing() {
    REQUIRE(feed({.kind = Input::kBegin}).ok());
    finish(Task::kOpenControl);
    finish(Task::kDescribe);
    REQUIRE(feed({.kind = Input::kAccept}).ok());
    finish(Task::kOpenLanes);
    finish(Task::kFindPageServer);
    REQUIRE(brain.state() == SourceState::kPassing);
  }

  void to_flight() {
    to_passing();
    finish(Task::kBeginLog);
    finish(Task::kRunPass);
    finish(Task::kSendRound);
    REQUIRE(feed({.kind = Input::kStaleApplied}).ok());
    finish(Task::kAwaitPageServer);
    finish(Task::kPark);
    REQUIRE(brain.task()->kind == Task::kPrepareFlight);
  }

  void to_ordered() {
    to_flight();
    finish(Task::kPrepareFlight);
    finish(Task::kSendFlight);
    REQUIRE(brain.state() == SourceState::kOrdered);
  }

  void to_paused() {
    to_ordered();
    lose();
    pass_time();  // Nobody says anything more.
    finish(Task::kReadToTheEnd);
    finish(Task::kDropEpoch);
    REQUIRE(brain.state() == SourceState::kOrderedPaused);
  }

  void to_serving() {
    to_ordered();
    REQUIRE(feed({.kind = Input::kRunning}).ok());
    finish(Task::kStartPush);
  }

  void lose() {
    REQUIRE(feed({.kind = Input::kLinkLost, .error = lost_error(), .epoch = brain.epoch()}).ok());
  }

  void pass_time() {
    REQUIRE(brain.deadline().has_value());
    now = std::max(now, *brain.deadline());
    REQUIRE(feed({.kind = Input::kTime}).ok());
  }

  base::Instant now{};
  SourceProtocol brain;
  std::vector<SourceEffect> effects;
};

MigrationOptions after_pass() {
  MigrationOptions options;
  options.switch_policy = SwitchPolicy::kAfterPass;
  return options;
}

TEST_CASE("a source that nothing disturbs goes through its states and gives its guest away once") {
  Source source(after_pass());
  source.to_serving();
  CHECK(source.times(Effect::kOrder) == 1);
  CHECK(source.times(Effect::kTargetRuns) == 1);
  CHECK(source.feed({.kind = Input::kComplete}).ok());
  source.finish(Task::kFinish);
  CHECK(source.brain.state() == SourceState::kCompleted);
  CHECK(source.brain.shown() == MigrationStatus::kCompleted);
  CHECK(source.brain.over());
  CHECK(source.times(Effect::kGiveBack) == 0);
}

TEST_CASE("a cancel counts until the order, and the guest goes on") {
  Source source(after_pass());
  source.to_flight();
  CHECK(source.feed({.kind = Input::kCancel}).ok());
  CHECK(source.brain.shown() == MigrationStatus::kCancelling);
  source.finish(Task::kPrepareFlight);
  source.finish(Task::kSayCancelled);
  CHECK(source.brain.state() == SourceState::kCancelled);
  CHECK(source.times(Effect::kOrder) == 0);
  CHECK(source.times(Effect::kGiveBack) == 1);

  Source later(after_pass());
  later.to_ordered();
  CHECK_FALSE(later.feed({.kind = Input::kCancel}).ok());
  CHECK(later.brain.state() == SourceState::kOrdered);
}

TEST_CASE("a state that cannot be saved gives the guest back, and is told as that") {
  Source source(after_pass());
  source.to_flight();
  source.fail(Task::kPrepareFlight, {ErrorKind::kFailed, 0, "save", "no"});
  CHECK(source.brain.state() == SourceState::kFailed);
  CHECK(source.times(Effect::kGiveBack) == 1);
  bool told = false;
  for (const SourceEffect& effect : source.effects) {
    told =
        told || (effect.kind == Effect::kStepped && effect.rule.on == SourceEvent::kSwitchFailed);
  }
  CHECK(told);
}

TEST_CASE("running is noted where it is read, in whatever ordered state, and never taken back") {
  Source source(after_pass());
  source.to_ordered();
  source.lose();
  source.pass_time();
  source.finish(Task::kReadToTheEnd);
  REQUIRE(source.brain.state() == SourceState::kOrderedPaused);
  CHECK(source.feed({.kind = Input::kRunning}).ok());
  CHECK(source.brain.state() == SourceState::kServingPaused);
  CHECK(source.times(Effect::kTargetRuns) == 1);
  CHECK_FALSE(source.feed({.kind = Input::kTakeBack}).ok());
  CHECK(source.times(Effect::kGiveBack) == 0);
}

TEST_CASE("a source that is taken back gives no order any more, whatever is under way") {
  Source source(after_pass());
  source.to_paused();
  REQUIRE(source.brain.task()->kind == Task::kOpenControl);
  CHECK(source.feed({.kind = Input::kTakeBack}).ok());
  CHECK(source.times(Effect::kGiveBack) == 1);
  source.finish(Task::kOpenControl);
  CHECK(source.brain.over());
  CHECK(source.brain.state() == SourceState::kFailed);
}

TEST_CASE("another process that answers proves nothing") {
  Source source(after_pass());
  source.to_paused();
  REQUIRE(source
              .feed({.kind = Input::kDone,
                     .task = Task::kOpenControl,
                     .number = kIncarnation + 1,
                     .features = kFeaturesOfTarget})
              .ok());
  CHECK(source.brain.state() == SourceState::kOrderedPaused);
  CHECK(source.times(Effect::kReadControl) == 1);  // Of the first epoch.
}

/// The last status that its user was shown.
MigrationStatus shown(const Source& source) {
  MigrationStatus status = MigrationStatus::kNone;
  for (const SourceEffect& effect : source.effects) {
    status = effect.kind == Effect::kShow ? effect.status : status;
  }
  return status;
}

TEST_CASE("a loss that heals by itself shows as the link's, and the status stays what it was") {
  Source source(after_pass());
  source.to_serving();
  REQUIRE(shown(source) == MigrationStatus::kPostcopyActive);
  source.lose();
  CHECK(source.brain.link() == LinkState::kLost);  // At once, though its last words are waited for.
  source.pass_time();
  source.finish(Task::kReadToTheEnd);
  source.finish(Task::kDropEpoch);
  source.finish(Task::kOpenControl);
  CHECK(source.brain.link() == LinkState::kRecovering);
  REQUIRE(source.brain.state() == SourceState::kServingRecovering);
  CHECK(shown(source) == MigrationStatus::kPostcopyActive);
  CHECK(source.times(Effect::kShowLink) == 2);
  source.now += std::chrono::seconds(3);
  CHECK(source.brain.owes_status(source.now));
  REQUIRE(source.feed({.kind = Input::kTime}).ok());
  CHECK(shown(source) == MigrationStatus::kPostcopyRecover);
  CHECK_FALSE(source.brain.owes_status(source.now));
}

TEST_CASE("a loss before *running* shows as what it interrupted, and later as a pause") {
  Source source(after_pass());
  source.to_paused();
  CHECK(source.brain.shown() == MigrationStatus::kPostcopyDevice);
  source.now += std::chrono::seconds(3);
  REQUIRE(source.feed({.kind = Input::kTime}).ok());
  CHECK(source.brain.shown() == MigrationStatus::kPostcopyPaused);
}

TEST_CASE("a loss that needs somebody's hand shows as a pause at once") {
  MigrationOptions options = after_pass();
  SUBCASE("nobody tries again") {
    options.auto_recover = false;
    Source source(options);
    source.to_paused();
    CHECK(source.brain.shown() == MigrationStatus::kPostcopyPaused);
  }
  SUBCASE("the user wanted it so") {
    options.paused_after = std::chrono::hours(1);
    Source source(options);
    source.to_serving();
    REQUIRE(source.feed({.kind = Input::kPause}).ok());
    source.pass_time();
    source.finish(Task::kReadToTheEnd);
    CHECK(source.brain.shown() == MigrationStatus::kPostcopyPaused);
  }
  SUBCASE("whoever answers turns it away") {
    options.paused_after = std::chrono::hours(1);
    Source source(options);
    source.to_paused();
    source.fail(Task::kOpenControl,
                base::Error{base::ErrorKind::kDisconnected, 0, "connect", "no"});
    source.finish(Task::kDropEpoch);
    CHECK(source.brain.shown() == MigrationStatus::kPostcopyDevice);  // The next try may succeed.
    source.pass_time();
    source.fail(Task::kOpenControl,
                base::Error{base::ErrorKind::kRefused, 0, "connect", "no room"});
    CHECK(source.brain.shown() == MigrationStatus::kPostcopyPaused);
  }
}

TEST_CASE("a pause that was shown is shown until the link is tied") {
  Source source(after_pass());
  source.to_paused();
  source.fail(Task::kOpenControl, base::Error{base::ErrorKind::kRefused, 0, "connect", "no room"});
  source.finish(Task::kDropEpoch);
  REQUIRE(source.brain.shown() == MigrationStatus::kPostcopyPaused);
  source.pass_time();
  source.fail(Task::kOpenControl);
  CHECK(source.brain.shown() == MigrationStatus::kPostcopyPaused);
}

TEST_CASE("a loss after a recovery by hand heals by itself again") {
  Source source(after_pass());
  source.to_serving();
  source.lose();
  source.pass_time();
  source.finish(Task::kReadToTheEnd);
  REQUIRE(source.feed({.kind = Input::kResume}).ok());
  source.finish(Task::kDropEpoch);
  source.finish(Task::kOpenControl);
  CHECK(source.brain.shown() == MigrationStatus::kPostcopyRecover);
  REQUIRE(source.feed({.kind = Input::kRunning}).ok());
  REQUIRE(source.feed({.kind = Input::kMissingEnd}).ok());
  source.finish(Task::kOpenLanesAgain);
  source.finish(Task::kResume);
  REQUIRE(source.brain.state() == SourceState::kServing);
  source.finish(Task::kStartPush);
  source.lose();
  source.pass_time();
  source.finish(Task::kReadToTheEnd);
  REQUIRE(source.brain.state() == SourceState::kServingPaused);
  CHECK(source.brain.shown() == MigrationStatus::kPostcopyActive);
}

TEST_CASE("the reason of a loss is known as soon as the loss") {
  Source source(after_pass());
  source.to_serving();
  CHECK(source.brain.reason().empty());
  source.lose();
  REQUIRE(source.brain.link() == LinkState::kLost);
  CHECK_FALSE(source.brain.reason().empty());
}

TEST_CASE("lanes that close behind *complete* are no loss") {
  Source source(after_pass());
  source.to_serving();
  REQUIRE(source.feed({.kind = Input::kComplete}).ok());
  source.lose();
  CHECK(source.brain.link() == LinkState::kUp);
  CHECK(source.times(Effect::kShowLink) == 0);
}

TEST_CASE("a guest that is taken back has no link by that") {
  Source source(after_pass());
  source.to_paused();
  REQUIRE(source.brain.link() == LinkState::kLost);
  const std::size_t told = source.times(Effect::kShowLink);
  REQUIRE(source.feed({.kind = Input::kTakeBack}).ok());
  CHECK(source.times(Effect::kShowLink) == told);
}

MigrationOptions with_a_pause() {
  MigrationOptions options = after_pass();
  options.pause_before_switchover = true;
  return options;
}

TEST_CASE("a switch that waits for its user's word stands between the guest's stop and the order") {
  Source source(with_a_pause());
  source.to_passing();
  CHECK_FALSE(source.feed({.kind = Input::kContinue}).ok());
  source.finish(Task::kBeginLog);
  source.finish(Task::kRunPass);
  source.finish(Task::kSendRound);
  REQUIRE(source.feed({.kind = Input::kStaleApplied}).ok());
  source.finish(Task::kAwaitPageServer);
  CHECK(shown(source) == MigrationStatus::kActive);
  source.finish(Task::kPark);
  REQUIRE_FALSE(source.brain.task().has_value());
  CHECK(source.brain.state() == SourceState::kSwitching);
  CHECK(shown(source) == MigrationStatus::kPreSwitchover);
  SUBCASE("it comes") {
    REQUIRE(source.feed({.kind = Input::kContinue}).ok());
    CHECK(shown(source) == MigrationStatus::kDevice);
    CHECK_FALSE(source.feed({.kind = Input::kContinue}).ok());
    source.finish(Task::kPrepareFlight);
    CHECK(source.brain.state() == SourceState::kOrdered);
  }
  SUBCASE("the user cancels instead") {
    REQUIRE(source.feed({.kind = Input::kCancel}).ok());
    source.finish(Task::kSayCancelled);
    CHECK(source.brain.state() == SourceState::kCancelled);
    CHECK(source.times(Effect::kGiveBack) == 1);
  }
  SUBCASE("the link is lost meanwhile") {
    source.lose();
    CHECK(source.brain.state() == SourceState::kFailed);
    CHECK(source.times(Effect::kGiveBack) == 1);
  }
  CHECK_FALSE(source.feed({.kind = Input::kContinue}).ok());
}

TEST_CASE("*complete* ends a recovery, whatever word before it was lost") {
  Source source(after_pass());
  source.to_serving();
  source.lose();
  source.pass_time();
  source.finish(Task::kReadToTheEnd);
  source.finish(Task::kDropEpoch);
  REQUIRE(source.brain.state() == SourceState::kServingPaused);
  source.finish(Task::kOpenControl);
  REQUIRE(source.brain.state() == SourceState::kServingRecovering);
  REQUIRE(source.feed({.kind = Input::kComplete}).ok());
  source.finish(Task::kFinish);
  CHECK(source.brain.state() == SourceState::kCompleted);
}

TEST_CASE("a verdict on an epoch that is over changes nothing") {
  Source source(after_pass());
  source.to_serving();
  const std::string before = source.brain.dump();
  CHECK(source.feed({.kind = Input::kLinkLost, .error = lost_error(), .epoch = 0}).ok());
  CHECK(
      source
          .feed({.kind = Input::kLaneBroken, .error = lost_error(), .lane = LaneName{}, .epoch = 2})
          .ok());
  CHECK(source.brain.dump() == before);
}

TEST_CASE("a lane that is lost alone is replaced, three tries at most") {
  Source source(after_pass());
  source.to_serving();
  const LaneName bulk{wire::LaneRole::kBulk, 1};
  CHECK(source.feed({.kind = Input::kLaneBroken, .error = lost_error(), .lane = bulk, .epoch = 1})
            .ok());
  source.finish(Task::kEndLane);
  source.fail(Task::kOpenInPlace);
  source.finish(Task::kOpenInPlace);
  CHECK_FALSE(source.brain.task().has_value());  // What is missing has to be told first.
  CHECK(source.feed({.kind = Input::kMissing, .number = 3}).ok());
  CHECK(source.feed({.kind = Input::kMissingEnd, .number = 3, .attempt = 2}).ok());
  source.finish(Task::kPutInPlace);
  CHECK(source.brain.attempt_in_use(bulk) == 2);
  CHECK(source.brain.lanes_replaced() == 1);

  CHECK(
      source
          .feed({.kind = Input::kLaneBroken, .error = lost_error(), .lane = LaneName{}, .epoch = 1})
          .ok());
  source.finish(Task::kEndLane);
  for (int tries = 0; tries < 3; ++tries) {
    source.fail(Task::kOpenInPlace);
  }
  CHECK_FALSE(source.brain.task().has_value());
  source.pass_time();
  source.finish(Task::kReadToTheEnd);
  CHECK(source.brain.state() == SourceState::kServingPaused);
}

// ---- whatever comes, in whatever order ----------------------------------------------------------

class Walk {
 public:
  explicit Walk(std::uint64_t seed) : random_(seed), source_(options()) {}

  void go() {
    REQUIRE(source_.feed(first()).ok());
    for (int steps = 0; steps < 250 && !source_.brain.over(); ++steps) {
      const std::string before = source_.brain.dump();
      const std::size_t effects = source_.effects.size();
      const auto taken = source_.feed(next());
      if (!taken.ok()) {
        REQUIRE(source_.brain.dump() == before);
        REQUIRE(effects == source_.effects.size());
      }
      check();
    }
  }

 private:
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }

  MigrationOptions options() {
    MigrationOptions chosen;
    chosen.passes = static_cast<std::uint32_t>(below(3));
    chosen.switch_policy = static_cast<SwitchPolicy>(below(3));
    chosen.auto_recover = below(4) != 0;
    chosen.pause_before_switchover = below(3) == 0;
    chosen.paused_after = std::chrono::milliseconds(below(2) * 3000);
    chosen.reconnect_deadline = std::chrono::seconds(below(2));
    if (below(2) == 0) {
      chosen.alternates.emplace_back();
    }
    return chosen;
  }

  SourceInput first() {
    heir_ = below(4) == 0;
    if (!heir_) {
      return {.kind = Input::kBegin};
    }
    runs_ = below(2) == 0;
    ordered_ = true;
    return {.kind = Input::kInherit, .number = kIncarnation, .epoch = 1, .flag = runs_};
  }

  SourceInput next() {
    const auto& task = source_.brain.task();
    if (task.has_value() && below(2) == 0) {
      return done(task->kind);
    }
    if (source_.brain.deadline().has_value() && below(4) == 0) {
      source_.now = std::max(source_.now, *source_.brain.deadline());
      return {.kind = Input::kTime};
    }
    static constexpr std::array kAny{
        Input::kTime,       Input::kAccept,       Input::kRefuse,       Input::kStaleApplied,
        Input::kRunning,    Input::kNever,        Input::kComplete,     Input::kMissing,
        Input::kMissingEnd, Input::kLaneLost,     Input::kNoRoom,       Input::kRoomAgain,
        Input::kBeat,       Input::kControlEnded, Input::kLinkLost,     Input::kLaneBroken,
        Input::kSwitchWord, Input::kCancel,       Input::kPause,        Input::kResume,
        Input::kTakeBack,   Input::kLeave,        Input::kAccept,       Input::kStaleApplied,
        Input::kRunning,    Input::kMissingEnd,   Input::kStaleApplied, Input::kContinue};
    SourceInput input{.kind = kAny[below(kAny.size())]};
    // What ends a move at once is rare, or nothing else would be seen.
    if ((input.kind == Input::kLeave || input.kind == Input::kNever ||
         input.kind == Input::kRefuse || input.kind == Input::kCancel) &&
        below(8) != 0) {
      input.kind = Input::kStaleApplied;
    }
    input.error = base::Error{static_cast<ErrorKind>(below(6)), 0, "test", "any"};
    input.lane = LaneName{below(2) == 0 ? wire::LaneRole::kUrgent : wire::LaneRole::kBulk,
                          static_cast<std::uint8_t>(below(2))};
    input.number = below(8) == 0 ? random_() : below(3);
    input.epoch = below(4) == 0 ? below(4) : source_.brain.epoch();
    input.attempt = static_cast<std::uint32_t>(below(4));
    input.flag = below(2) == 0;
    return input;
  }

  SourceInput done(Task kind) {
    SourceInput input{.kind = Input::kDone, .task = kind, .features = kFeaturesOfTarget};
    input.number = kind == Task::kOpenControl && below(6) != 0 ? kIncarnation : below(400);
    input.flag = below(3) == 0;
    const bool may_fail = kind != Task::kDropEpoch && kind != Task::kReadToTheEnd;
    if (may_fail && below(8) == 0) {
      input.error = base::Error{static_cast<ErrorKind>(below(6)), 0, "test", "any"};
    }
    return input;
  }

  void check() {
    for (; seen_ < source_.effects.size(); ++seen_) {
      const SourceEffect& effect = source_.effects[seen_];
      if (effect.kind == Effect::kOrder) {
        REQUIRE_FALSE(ordered_);
        REQUIRE_FALSE(back_);
        ordered_ = true;
      } else if (effect.kind == Effect::kTargetRuns) {
        REQUIRE(ordered_);
        REQUIRE_FALSE(back_);
        runs_ = true;
      } else if (effect.kind == Effect::kGiveBack) {
        REQUIRE_FALSE(runs_);
        REQUIRE_FALSE(back_);
        REQUIRE((!ordered_ || effect.rule.on == SourceEvent::kTargetNever ||
                 effect.rule.on == SourceEvent::kTakeBack));
        back_ = true;
      } else if (effect.kind == Effect::kRelease) {
        REQUIRE(runs_);
      }
    }
    REQUIRE((!source_.brain.task().has_value() || !source_.brain.deadline().has_value()));
  }

  std::mt19937_64 random_;
  Source source_;
  std::size_t seen_ = 0;
  bool heir_ = false;
  bool ordered_ = false;
  bool runs_ = false;
  bool back_ = false;
};

TEST_CASE(
    "whatever comes in whatever order: nothing refused changes anything, the guest is given "
    "away once, and given back only while nobody can run it") {
  for (std::uint64_t seed = 0; seed < kWalks; ++seed) {
    CAPTURE(seed);
    Walk(seed).go();
  }
}

}  // namespace
}  // namespace towline::runtime
