#include "runtime/core/target_protocol.h"

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

using base::Error;
using base::ErrorKind;
using wire::FrameType;
using wire::LaneRole;
using Effect = TargetEffect::Kind;
using Input = TargetInput::Kind;
using Job = TargetTask::Kind;

// Under a sanitizer a step takes many times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kDeep = 3;
#else
constexpr int kDeep = 4;
#endif

constexpr base::PageCount kPages{64};
constexpr std::uint64_t kAllFeatures =
    wire::kFeatureReplaceLane | wire::kFeatureWaitForRoom | wire::kFeatureCountFrames;
constexpr LaneName kUrgentLane{LaneRole::kUrgent, 0};
constexpr LaneName kBulkLane{LaneRole::kBulk, 0};

wire::Hello hello_of(std::uint64_t epoch, LaneRole role = LaneRole::kControl) {
  wire::Hello hello;
  hello.role = role;
  hello.epoch = epoch;
  hello.features = kAllFeatures;
  hello.id.fill(std::byte{7});
  return hello;
}

wire::Hello hello_of(std::uint64_t epoch, LaneName lane, std::uint32_t attempt) {
  wire::Hello hello = hello_of(epoch, lane.role);
  hello.lane = lane.number;
  hello.attempt = attempt;
  return hello;
}

Error error_of(ErrorKind kind, const char* detail = "the cable") {
  return Error{kind, 0, "receive", detail};
}

/// What an input led to.
struct Fed {
  base::Outcome outcome = base::Done{};
  std::vector<TargetEffect> effects;
  std::vector<TargetTask> tasks;

  [[nodiscard]] bool did(Effect kind) const {
    return std::any_of(effects.begin(), effects.end(),
                       [kind](const TargetEffect& one) { return one.kind == kind; });
  }

  [[nodiscard]] bool gave(Job kind) const { return task(kind) != nullptr; }

  [[nodiscard]] const TargetTask* task(Job kind) const {
    const auto found = std::find_if(tasks.begin(), tasks.end(),
                                    [kind](const TargetTask& one) { return one.kind == kind; });
    return found == tasks.end() ? nullptr : &*found;
  }

  [[nodiscard]] std::size_t place_of(Effect kind) const {
    return static_cast<std::size_t>(
        std::find_if(effects.begin(), effects.end(),
                     [kind](const TargetEffect& one) { return one.kind == kind; }) -
        effects.begin());
  }
};

/// A target's brain, and what happens to it, in short.
class End {
 public:
  explicit End(MigrationOptions options = {}, std::span<const TargetRule> rules = kTargetRules)
      : brain(options, kPages, rules) {}

  Fed feed(TargetInput input) {
    input.at = now;
    Fed fed;
    fed.outcome = brain.on(input);
    fed.effects = brain.take_effects();
    fed.tasks = brain.take_tasks();
    return fed;
  }

  Fed greet(std::uint64_t epoch) {
    return feed({.kind = Input::kControlProven, .hello = hello_of(epoch)});
  }

  Fed frame(FrameType type, std::uint64_t count = 0, std::uint32_t round = 0,
            std::uint16_t flags = 0) {
    wire::FrameHeader header;
    header.type = type;
    header.count = count;
    header.round = round;
    header.flags = flags;
    return feed({.kind = Input::kFrame, .frame = header, .text = "words"});
  }

  Fed done(TargetTask task, std::uint64_t number = 0, const std::string& text = {}) {
    return feed({.kind = Input::kDone, .task = std::move(task), .number = number, .text = text});
  }

  Fed done(Job kind) { return done(TargetTask{.kind = kind}); }

  Fed lanes_here(FrameType frame) {
    return done(TargetTask{.kind = Job::kAwaitLanes, .frame = frame});
  }

  Fed fail_load() {
    return feed({.kind = Input::kDone,
                 .task = TargetTask{.kind = Job::kLoad},
                 .error = error_of(ErrorKind::kFailed, "no such device")});
  }

  Fed control_ended(ErrorKind kind = ErrorKind::kDisconnected) {
    return feed({.kind = Input::kControlEnded, .error = error_of(kind)});
  }

  Fed prove_lane(LaneName lane, std::uint32_t attempt = 0, std::uint64_t epoch = 1) {
    return feed({.kind = Input::kLaneProven, .hello = hello_of(epoch, lane, attempt)});
  }

  Fed lane_ended(LaneName lane, ErrorKind kind = ErrorKind::kDisconnected,
                 std::uint64_t attempt = 0) {
    return feed(
        {.kind = Input::kLaneEnded, .error = error_of(kind), .lane = lane, .number = attempt});
  }

  Fed lane_replaced(LaneName lane, std::uint64_t attempt) {
    return feed({.kind = Input::kLaneReplaced, .lane = lane, .number = attempt});
  }

  Fed fenced(std::uint64_t epoch) { return feed({.kind = Input::kFenced, .epoch = epoch}); }

  Fed signs(TargetSigns signs, std::uint64_t epoch = 1) {
    return feed({.kind = Input::kSigns, .signs = std::move(signs), .epoch = epoch});
  }

  Fed word(Input kind) { return feed({.kind = kind}); }

  Fed give_up(SourceLoss how) { return feed({.kind = Input::kGiveUpSource, .policy = how}); }

  Fed nothing_arrives(std::uint64_t pages) {
    return feed({.kind = Input::kNothingArrives, .number = pages, .text = "9 pages"});
  }

  /// What a load thread takes; none: kTakeSource, which it never does.
  Job load_task() {
    const auto task = brain.take_load_task();
    return task.has_value() ? task->kind : Job::kTakeSource;
  }

  // ---- as far as a state, on a link that holds ----

  void receive() {
    REQUIRE(greet(1).outcome.ok());
    REQUIRE(feed({.kind = Input::kDescribed, .number = 1}).outcome.ok());
    attach_lanes(1);
  }

  void attach_lanes(std::uint64_t epoch) {
    REQUIRE(prove_lane(kUrgentLane, 0, epoch).gave(Job::kAttachLane));
    REQUIRE(prove_lane(kBulkLane, 0, epoch).gave(Job::kAttachLane));
  }

  void apply_last_delta() {
    REQUIRE(frame(FrameType::kRoundEnd, 0, 1, wire::kFlagFinal).outcome.ok());
    REQUIRE(done(Job::kAwaitMarkers).outcome.ok());
    REQUIRE(done(Job::kApplyStale).did(Effect::kOpenPostcopy));
  }

  void begin_loading() {
    receive();
    apply_last_delta();
    REQUIRE(frame(FrameType::kState).outcome.ok());
    REQUIRE(lanes_here(FrameType::kState).outcome.ok());
    REQUIRE(load_task() == Job::kLoad);
  }

  void load() {
    begin_loading();
    REQUIRE(done(Job::kLoad).outcome.ok());
  }

  void enter() {
    REQUIRE(feed({.kind = Input::kGuestEntered, .number = 5}).gave(Job::kTellRunning));
    REQUIRE(done(Job::kTellRunning).outcome.ok());
  }

  void run() {
    load();
    REQUIRE(frame(FrameType::kRun).did(Effect::kOpenGate));
    REQUIRE(load_task() == Job::kStartGuest);
    enter();
  }

  void come_back(std::uint64_t epoch) {
    REQUIRE(greet(epoch).gave(Job::kBeginEpoch));
    REQUIRE(fenced(epoch).did(Effect::kUseLane));
  }

  void resume() {
    REQUIRE(frame(FrameType::kResume).gave(Job::kAwaitLanes));
    REQUIRE(lanes_here(FrameType::kResume).gave(Job::kAskAgain));
  }

  TargetProtocol brain;
  base::Instant now{};
};

// ---- a move, from end to end --------------------------------------------------------------------

TEST_CASE("a target receives, loads, runs at the order and is complete when nothing is missing") {
  End end;
  CHECK(end.greet(1).gave(Job::kTakeSource));
  CHECK(end.word(Input::kDescribed).did(Effect::kShow));
  CHECK(end.brain.state() == TargetState::kReceiving);
  CHECK(end.frame(FrameType::kStale, 4).gave(Job::kKeepStale));
  CHECK(end.frame(FrameType::kRoundEnd, 4, 1).task(Job::kAwaitMarkers)->number == 1);
  CHECK(end.done(Job::kAwaitMarkers).gave(Job::kApplyStale));
  const Fed applied = end.done(Job::kApplyStale);
  CHECK(applied.task(Job::kSayApplied)->count == 4);
  CHECK_FALSE(applied.did(Effect::kOpenPostcopy));
  end.apply_last_delta();
  CHECK(end.frame(FrameType::kPages, 1).gave(Job::kStorePages));
  CHECK(end.frame(FrameType::kState).task(Job::kAwaitLanes)->frame == FrameType::kState);
  CHECK(end.lanes_here(FrameType::kState).outcome.ok());
  CHECK(end.load_task() == Job::kLoad);
  CHECK(end.done(Job::kLoad).outcome.ok());
  CHECK_FALSE(end.brain.has_load_task());
  CHECK(end.frame(FrameType::kRun).did(Effect::kOpenGate));
  CHECK(end.load_task() == Job::kStartGuest);
  end.enter();
  CHECK_FALSE(end.brain.may_load());
  CHECK(end.word(Input::kNothingMissing).gave(Job::kFinish));
  CHECK(end.brain.state() == TargetState::kCompleted);
  CHECK(end.control_ended().gave(Job::kCloseLanes));
  CHECK(end.brain.state() == TargetState::kCompleted);
  CHECK_FALSE(end.brain.never());
}

// ---- the cases that lost guests -----------------------------------------------------------------

TEST_CASE("an order is obeyed once, and a second one on the same lane is refused") {
  End end;
  end.run();
  const std::string before = end.brain.dump();
  const Fed again = end.frame(FrameType::kRun);
  CHECK(again.outcome.error().kind == ErrorKind::kCorrupt);
  CHECK_FALSE(again.did(Effect::kOpenGate));
  CHECK(end.brain.dump() == before);
}

TEST_CASE("an order that is read while the machine is loaded is obeyed once it is") {
  End end;
  end.begin_loading();
  CHECK_FALSE(end.frame(FrameType::kRun).did(Effect::kOpenGate));
  CHECK_FALSE(end.frame(FrameType::kRun).outcome.ok());
  CHECK(end.done(Job::kLoad).did(Effect::kOpenGate));
  CHECK(end.load_task() == Job::kStartGuest);
  CHECK_FALSE(end.brain.has_load_task());
}

TEST_CASE("an order that a later epoch repeats changes nothing, once") {
  End end;
  end.run();
  CHECK(end.control_ended().outcome.ok());
  end.come_back(2);
  end.resume();
  const Fed again = end.frame(FrameType::kRun);
  CHECK(again.outcome.ok());
  CHECK_FALSE(again.did(Effect::kOpenGate));
  CHECK_FALSE(end.brain.has_load_task());
  CHECK_FALSE(end.frame(FrameType::kRun).outcome.ok());
}

TEST_CASE("a link that ends before the state drops the half, behind its tombstone") {
  End end;
  end.receive();
  const Fed ended = end.control_ended();
  CHECK(end.brain.never());
  CHECK(end.brain.state() == TargetState::kFailed);
  CHECK(ended.place_of(Effect::kTombstone) < ended.place_of(Effect::kStepped));
  CHECK(ended.place_of(Effect::kTombstone) < ended.place_of(Effect::kShow));
  REQUIRE(ended.tasks.size() == 2);
  CHECK(ended.tasks[0].kind == Job::kCloseLanes);
  CHECK(ended.tasks[0].flag);
  CHECK(ended.tasks[1].kind == Job::kDropHalf);
}

TEST_CASE("a source that comes back to a dropped half is told never, in its new epoch") {
  End end;
  end.receive();
  (void)end.control_ended();
  const TargetAdmission admission = end.brain.admit(hello_of(2), base::Done{});
  CHECK(admission.refusal.empty());
  CHECK(admission.proof == TargetAdmission::Proof::kSessionsSecret);
  CHECK(admission.phase == wire::TargetPhase::kRefused);
  (void)end.greet(2);
  const Fed fenced = end.fenced(2);
  CHECK_FALSE(fenced.task(Job::kAnswerNever)->text.empty());
  CHECK_FALSE(fenced.gave(Job::kTellMissing));
}

TEST_CASE("a failure after which the source may ask is shown when it was told, or does not ask") {
  End end;
  end.receive();
  (void)end.frame(FrameType::kRoundEnd, 0, 1);
  (void)end.done(Job::kAwaitMarkers);
  (void)end.done(Job::kApplyStale);
  const Fed ended = end.control_ended();
  CHECK(ended.did(Effect::kLinger));
  CHECK_FALSE(ended.did(Effect::kShow));
  CHECK_FALSE(end.word(Input::kLingerOver).outcome.ok());
  SUBCASE("told") {
    (void)end.greet(2);
    (void)end.fenced(2);
    CHECK(end.done(Job::kAnswerNever).outcome.ok());
    CHECK(end.brain.may_show());
    CHECK(end.word(Input::kLingerOver).did(Effect::kShow));
  }
  SUBCASE("not asked") {
    end.now = *end.brain.lingers_until();
    CHECK(end.word(Input::kLingerOver).did(Effect::kShow));
  }
  SUBCASE("ending") {
    CHECK(end.word(Input::kEnding).outcome.ok());
    CHECK_FALSE(end.word(Input::kLingerOver).did(Effect::kShow));
  }
  CHECK(end.brain.never());
}

TEST_CASE("a load that fails is written down before anybody is told") {
  End end;
  end.begin_loading();
  (void)end.frame(FrameType::kRun);
  const Fed failed = end.fail_load();
  CHECK(failed.place_of(Effect::kTombstone) == 0);
  CHECK(failed.gave(Job::kTellNever));
  CHECK_FALSE(failed.did(Effect::kOpenGate));
  CHECK_FALSE(end.brain.has_load_task());
  CHECK(end.frame(FrameType::kRun).outcome.ok());  // It is being told.
  CHECK_FALSE(end.brain.has_load_task());
  CHECK(end.brain.state() == TargetState::kFailed);
}

TEST_CASE("a loaded half without a link keeps itself and does not run") {
  End end;
  end.load();
  const Fed ended = end.control_ended();
  CHECK(end.brain.state() == TargetState::kLoadedAlone);
  CHECK_FALSE(ended.gave(Job::kDropHalf));
  CHECK_FALSE(end.brain.never());
  CHECK_FALSE(end.give_up(SourceLoss::kGiveUp).outcome.ok());
  end.come_back(2);
  CHECK_FALSE(end.frame(FrameType::kRun).outcome.ok());  // Not before it was compared.
  end.resume();
  CHECK(end.frame(FrameType::kRun).did(Effect::kOpenGate));
}

TEST_CASE("a link that is lost while the machine is loaded is looked at afterwards") {
  End end;
  end.begin_loading();
  (void)end.frame(FrameType::kRun);
  (void)end.control_ended();
  CHECK(end.brain.state() == TargetState::kLoading);
  SUBCASE("still lost") {
    const Fed loaded = end.done(Job::kLoad);
    CHECK(loaded.did(Effect::kOpenGate));
    CHECK(loaded.did(Effect::kSourceAway));
    CHECK(end.brain.state() == TargetState::kRunningAlone);
  }
  SUBCASE("being compared: what is missing is not told twice") {
    (void)end.greet(2);
    CHECK(end.fenced(2).gave(Job::kTellMissing));
    const Fed loaded = end.done(Job::kLoad);
    CHECK(end.brain.state() == TargetState::kRunningRecovering);
    CHECK_FALSE(loaded.gave(Job::kTellMissing));
  }
}

TEST_CASE("running is told before complete") {
  End end;
  end.load();
  (void)end.frame(FrameType::kRun);
  CHECK_FALSE(end.word(Input::kNothingMissing).outcome.ok());
  CHECK(end.feed({.kind = Input::kGuestEntered, .number = 5}).gave(Job::kTellRunning));
  CHECK_FALSE(end.word(Input::kNothingMissing).outcome.ok());
  CHECK(end.brain.state() == TargetState::kRunning);
  CHECK(end.done(Job::kTellRunning).outcome.ok());
  CHECK(end.word(Input::kNothingMissing).gave(Job::kFinish));
}

TEST_CASE("a source that was given up is let in by nothing") {
  End end;
  end.run();
  (void)end.control_ended();
  (void)end.greet(2);  // Proven, and its fence not yet behind it.
  const Fed given_up = end.give_up(SourceLoss::kPoison);
  CHECK(given_up.did(Effect::kShutOut));
  CHECK_FALSE(end.brain.admit(hello_of(3), base::Done{}).refusal.empty());
  CHECK_FALSE(end.greet(3).outcome.ok());
  CHECK_FALSE(end.fenced(2).outcome.ok());
  SUBCASE("everything had come") {
    CHECK(end.nothing_arrives(0).gave(Job::kFinish));
    CHECK(end.brain.state() == TargetState::kCompleted);
  }
  SUBCASE("what is missing is poisoned") {
    CHECK(end.nothing_arrives(9).task(Job::kPoison)->number == 9);
    CHECK(end.done(TargetTask{.kind = Job::kPoison}, 0, "poisoned").outcome.ok());
    CHECK(end.brain.state() == TargetState::kPoisoned);
    CHECK_FALSE(end.brain.admit(hello_of(4), base::Done{}).refusal.empty());
    CHECK_FALSE(end.greet(4).outcome.ok());
    CHECK_FALSE(end.fenced(4).outcome.ok());
  }
}

TEST_CASE("an end that is given up with its source stops its guest") {
  End end;
  end.run();
  (void)end.control_ended();
  (void)end.give_up(SourceLoss::kGiveUp);
  CHECK(end.nothing_arrives(9).gave(Job::kEndGuest));
  CHECK(end.done(TargetTask{.kind = Job::kEndGuest}, 0, "given up").outcome.ok());
  CHECK(end.brain.state() == TargetState::kLost);
  MigrationReport report;
  end.brain.report_to(report, end.now);
  CHECK(report.source_loss.guest_ended);
  CHECK(report.error == "given up");
}

TEST_CASE("a deadline counts the time without a source, and no other") {
  End end;
  (void)end.feed({.kind = Input::kSourceLoss,
                  .policy = SourceLoss::kPoison,
                  .deadline = std::chrono::seconds(10)});
  end.run();
  CHECK_FALSE(end.feed({.kind = Input::kTime, .flag = true}).outcome.ok());
  CHECK(end.control_ended().did(Effect::kSourceAway));
  end.now += std::chrono::seconds(9);
  CHECK_FALSE(end.feed({.kind = Input::kTime, .flag = true}).did(Effect::kShutOut));
  SUBCASE("an attempt that came to nothing changes nothing") {
    end.come_back(2);
    CHECK_FALSE(end.control_ended().did(Effect::kSourceAway));
    end.now += std::chrono::seconds(1);
    CHECK(end.feed({.kind = Input::kTime, .flag = true}).did(Effect::kShutOut));
  }
  SUBCASE("a target without room lets nobody in: that is not the source's time") {
    CHECK(end.feed({.kind = Input::kTime, .flag = false}).outcome.ok());
    end.now += std::chrono::seconds(9);
    CHECK_FALSE(end.feed({.kind = Input::kTime, .flag = true}).did(Effect::kShutOut));
    end.now += std::chrono::seconds(1);
    CHECK(end.feed({.kind = Input::kTime, .flag = true}).did(Effect::kShutOut));
  }
  SUBCASE("a source that is there again has all its time again") {
    end.come_back(2);
    end.resume();
    CHECK_FALSE(end.brain.counts_time_alone());
    end.now += std::chrono::seconds(100);
    CHECK(end.control_ended().did(Effect::kSourceAway));
    CHECK_FALSE(end.feed({.kind = Input::kTime, .flag = true}).did(Effect::kShutOut));
  }
}

TEST_CASE("a lane is replaced while the guest runs here and the link is tied, and never else") {
  End end;
  end.load();
  SUBCASE("before the guest runs here it takes the link with it") {
    const Fed lost = end.lane_ended(kBulkLane);
    CHECK(lost.did(Effect::kLanesLost));
    CHECK(lost.gave(Job::kFinishSending));
    CHECK_FALSE(lost.gave(Job::kTellLaneLost));
    return;
  }
  (void)end.frame(FrameType::kRun);
  end.enter();
  const wire::Hello hello = hello_of(1, kBulkLane, 4);
  CHECK(end.brain.admit(hello, base::Done{}).refusal.empty());
  SUBCASE("it broke: the source is told, and the others go on") {
    const Fed broken = end.lane_ended(kBulkLane);
    CHECK(broken.did(Effect::kShutLane));
    CHECK_FALSE(broken.did(Effect::kLanesLost));
    CHECK(broken.task(Job::kTellLaneLost)->lane == kBulkLane);
    CHECK(end.prove_lane(kBulkLane, 4).task(Job::kReplaceLane)->number == 4);
  }
  SUBCASE("there is no room for what it brings: it takes the link with it") {
    CHECK(end.lane_ended(kBulkLane, ErrorKind::kOverloaded).did(Effect::kLanesLost));
  }
  SUBCASE("what a bulk lane brought is told anew, what an urgent one was asked is asked anew") {
    REQUIRE(end.prove_lane(kBulkLane, 4).gave(Job::kReplaceLane));
    REQUIRE(end.prove_lane(kUrgentLane, 5).gave(Job::kReplaceLane));
    CHECK(end.lane_replaced(kBulkLane, 4).task(Job::kTellMissing)->number == 4);
    CHECK(end.lane_replaced(kUrgentLane, 5).task(Job::kAskAgain)->flag);
  }
  SUBCASE("its user has paused it") {
    CHECK(end.word(Input::kPause).did(Effect::kShutLanes));
    CHECK_FALSE(end.lane_ended(kUrgentLane).gave(Job::kTellLaneLost));
    CHECK_FALSE(end.brain.admit(hello, base::Done{}).refusal.empty());
    CHECK_FALSE(end.prove_lane(kBulkLane, 4).outcome.ok());
  }
  SUBCASE("the link is lost") {
    (void)end.control_ended();
    CHECK_FALSE(end.lane_ended(kUrgentLane).gave(Job::kTellLaneLost));
    CHECK_FALSE(end.prove_lane(kBulkLane, 4).outcome.ok());
  }
}

TEST_CASE("a source that cannot replace lanes is not told that one broke") {
  End old;
  wire::Hello plain = hello_of(1);
  plain.features = 0;
  (void)old.feed({.kind = Input::kControlProven, .hello = plain});
  (void)old.feed({.kind = Input::kDescribed, .number = 1});
  CHECK_FALSE(
      old.feed({.kind = Input::kNoRoom, .error = error_of(ErrorKind::kOverloaded)}).outcome.ok());
  CHECK_FALSE(old.brain.replaces_lanes());
}

TEST_CASE("one lane of each name in an epoch, and only those that were described") {
  End end;
  REQUIRE(end.greet(1).outcome.ok());
  CHECK_FALSE(end.prove_lane(kUrgentLane).outcome.ok());  // Nothing was described.
  REQUIRE(end.feed({.kind = Input::kDescribed, .number = 2}).outcome.ok());
  const LaneName second{LaneRole::kBulk, 1};
  const LaneName third{LaneRole::kBulk, 2};
  CHECK(end.prove_lane(kBulkLane).task(Job::kAttachLane)->lane == kBulkLane);
  CHECK(end.prove_lane(second).task(Job::kAttachLane)->lane == second);
  const std::string before = end.brain.dump();
  CHECK_FALSE(end.prove_lane(third).outcome.ok());
  CHECK_FALSE(end.prove_lane(kBulkLane).outcome.ok());
  CHECK_FALSE(end.prove_lane(kUrgentLane, 0, 2).outcome.ok());
  CHECK_FALSE(end.prove_lane(kUrgentLane, 1).outcome.ok());  // It is not there.
  wire::Hello stranger = hello_of(1, kUrgentLane, 0);
  stranger.id.fill(std::byte{8});
  CHECK_FALSE(end.feed({.kind = Input::kLaneProven, .hello = stranger}).outcome.ok());
  CHECK(end.brain.dump() == before);
}

TEST_CASE("the latest attempt at a lane is in its place, and no earlier one") {
  End end;
  end.run();
  REQUIRE(end.prove_lane(kBulkLane, 7).gave(Job::kReplaceLane));
  CHECK_FALSE(end.prove_lane(kBulkLane, 7).outcome.ok());
  CHECK_FALSE(end.prove_lane(kBulkLane, 6).outcome.ok());
  // The one before it ends for its sake, and says nothing of the link.
  CHECK_FALSE(end.lane_ended(kBulkLane).outcome.ok());
  REQUIRE(end.prove_lane(kBulkLane, 8).gave(Job::kReplaceLane));
  CHECK_FALSE(end.lane_replaced(kBulkLane, 7).outcome.ok());
  CHECK(end.lane_replaced(kBulkLane, 8).did(Effect::kLaneReplaced));
  MigrationReport report;
  end.brain.report_to(report, end.now);
  CHECK(report.lanes_replaced == 1);
}

TEST_CASE("a lane that comes when the link is lost is not let in, whatever ended the link") {
  End end;
  end.run();
  SUBCASE("its control lane") {
    (void)end.control_ended();
  }
  SUBCASE("the source was given up") {
    REQUIRE(end.control_ended().outcome.ok());
  }
  SUBCASE("its watch") {
    (void)end.signs({.verdict = LinkVerdict::kFrozen, .words = "frozen"});
  }
  SUBCASE("a new epoch") {
    REQUIRE(end.greet(2).gave(Job::kBeginEpoch));
  }
  SUBCASE("a lane without room") {
    (void)end.lane_ended(kUrgentLane, ErrorKind::kOverloaded);
  }
  SUBCASE("this end goes") {
    REQUIRE(end.word(Input::kEnding).outcome.ok());
  }
  CHECK_FALSE(end.prove_lane(kBulkLane, 1).outcome.ok());
  CHECK_FALSE(end.prove_lane(kBulkLane).outcome.ok());
}

TEST_CASE("a lane that was proven before the link was lost is not counted in its place after it") {
  End end;
  end.run();
  (void)end.lane_ended(kBulkLane);
  REQUIRE(end.prove_lane(kBulkLane, 1).gave(Job::kReplaceLane));
  (void)end.control_ended();
  CHECK_FALSE(end.lane_replaced(kBulkLane, 1).outcome.ok());
}

TEST_CASE("every epoch has lanes of its own, behind its fence") {
  End end;
  end.run();
  (void)end.control_ended();
  REQUIRE(end.greet(2).gave(Job::kBeginEpoch));
  CHECK_FALSE(end.prove_lane(kBulkLane, 0, 2).outcome.ok());
  REQUIRE(end.fenced(2).did(Effect::kUseLane));
  CHECK_FALSE(end.prove_lane(kBulkLane, 0, 1).outcome.ok());
  end.attach_lanes(2);
}

TEST_CASE("a lane without room that cannot wait ends the move before the switch, and says why") {
  End end;
  end.receive();
  const Fed lost = end.lane_ended(kBulkLane, ErrorKind::kOverloaded);
  REQUIRE(lost.tasks.size() == 2);
  CHECK(lost.did(Effect::kTombstone));
  CHECK(lost.tasks[0].kind == Job::kTellNever);
  CHECK(lost.tasks[1].kind == Job::kFinishSending);
  CHECK(end.brain.never());
  CHECK_FALSE(end.brain.takes_a_pass());
  end.apply_last_delta();
  (void)end.frame(FrameType::kState);
  CHECK_FALSE(end.lanes_here(FrameType::kState).outcome.ok());
  CHECK_FALSE(end.brain.has_load_task());
  CHECK(end.control_ended().gave(Job::kDropHalf));
}

TEST_CASE("two lanes without room at once: the one that is second does not cut the other short") {
  End end;
  end.receive();
  const Fed first = end.lane_ended(kBulkLane, ErrorKind::kOverloaded);
  const Fed second = end.lane_ended(kUrgentLane, ErrorKind::kOverloaded);
  CHECK(first.gave(Job::kTellNever));
  CHECK(first.gave(Job::kFinishSending));
  CHECK(second.tasks.empty());
}

TEST_CASE("a lane that waits for room tells the source once, and once that there is room again") {
  End end;
  end.receive();
  const TargetInput no_room{.kind = Input::kNoRoom,
                            .error = error_of(ErrorKind::kOverloaded, "no room")};
  CHECK(end.feed(no_room).task(Job::kTellNoRoom)->text == "no room");
  CHECK_FALSE(end.feed(no_room).gave(Job::kTellNoRoom));
  MigrationReport report;
  end.brain.report_to(report, end.now);
  CHECK(report.waits_for == "no room");
  CHECK(end.word(Input::kRoomFound).gave(Job::kTellRoomAgain));
  CHECK_FALSE(end.word(Input::kRoomFound).outcome.ok());
}

TEST_CASE("what the first lane broke of is what the user is told") {
  End end;
  end.load();
  CHECK(end.lane_ended(kBulkLane, ErrorKind::kCorrupt).task(Job::kFinishSending)->flag);
  const Fed ended = end.control_ended();
  CHECK(ended.task(Job::kCloseLanes)->flag);
  MigrationReport report;
  end.brain.report_to(report, end.now);
  CHECK(report.error.find("the cable") != std::string::npos);
}

// ---- frames -------------------------------------------------------------------------------------

TEST_CASE("a frame that is not due ends its lane and changes nothing") {
  End end;
  end.receive();
  const std::string before = end.brain.dump();
  const auto refused = [&](const Fed& fed) {
    CHECK(fed.outcome.error().kind == ErrorKind::kCorrupt);
    CHECK(fed.effects.empty());
    CHECK(fed.tasks.empty());
    CHECK(end.brain.dump() == before);
  };
  refused(end.frame(FrameType::kPages, 1));
  refused(end.frame(FrameType::kState));
  refused(end.frame(FrameType::kResume));
  refused(end.frame(FrameType::kRun));
  refused(end.frame(FrameType::kStale, kPages.value + 1));
  refused(end.frame(FrameType::kRoundEnd, 1, 1));
  refused(end.frame(FrameType::kAccept));
  refused(end.frame(FrameType::kDescribe));
}

TEST_CASE("after the last delta no further set is taken") {
  End end;
  end.receive();
  end.apply_last_delta();
  CHECK_FALSE(end.frame(FrameType::kStale, 1).outcome.ok());
  CHECK_FALSE(end.frame(FrameType::kRoundEnd, 0, 2, wire::kFlagFinal).outcome.ok());
}

TEST_CASE("a last delta that is applied beside open claims does not open the time after it") {
  End end;
  end.receive();
  (void)end.frame(FrameType::kRoundEnd, 0, 1, wire::kFlagFinal);
  (void)end.done(Job::kAwaitMarkers);
  const Fed applied = end.done(TargetTask{.kind = Job::kApplyStale}, 1);
  CHECK_FALSE(applied.outcome.ok());
  CHECK_FALSE(applied.did(Effect::kOpenPostcopy));
  CHECK_FALSE(end.frame(FrameType::kState).outcome.ok());
}

TEST_CASE("a cancel buries the half and ends the reading") {
  End end;
  end.receive();
  const Fed cancelled = end.frame(FrameType::kCancel);
  CHECK(cancelled.gave(Job::kEndReading));
  CHECK(end.brain.never());
  CHECK(end.control_ended(ErrorKind::kRefused).gave(Job::kDropHalf));
  MigrationReport report;
  end.brain.report_to(report, end.now);
  CHECK(report.error == "cancelled by the source: words");
}

TEST_CASE("a resume that comes behind a link that was given up does not tie it again") {
  End end;
  end.run();
  (void)end.control_ended();
  end.come_back(2);
  REQUIRE(end.frame(FrameType::kResume).gave(Job::kAwaitLanes));
  REQUIRE(
      end.signs({.verdict = LinkVerdict::kFrozen, .words = "frozen"}, 2).did(Effect::kShutLanes));
  CHECK_FALSE(end.lanes_here(FrameType::kResume).outcome.ok());
  CHECK_FALSE(end.brain.tied());
  CHECK_FALSE(end.brain.replaces_lanes());
}

TEST_CASE("a load that fails while its source comes back: the resume is refused, and no fault") {
  End end;
  end.begin_loading();
  (void)end.control_ended();
  end.come_back(2);
  REQUIRE(end.frame(FrameType::kResume).gave(Job::kAwaitLanes));
  REQUIRE(end.fail_load().did(Effect::kTombstone));
  const auto resumed = end.lanes_here(FrameType::kResume).outcome;
  REQUIRE_FALSE(resumed.ok());
  CHECK(resumed.error().kind == ErrorKind::kRefused);
}

TEST_CASE("an order that is read behind a link that was given up is not obeyed, and no fault") {
  End end;
  end.begin_loading();
  REQUIRE(
      end.signs({.verdict = LinkVerdict::kFrozen, .words = "frozen"}).did(Effect::kShutControl));
  REQUIRE(end.done(Job::kLoad).outcome.ok());
  REQUIRE(end.brain.state() == TargetState::kLoadedAlone);
  const Fed order = end.frame(FrameType::kRun);
  CHECK(order.outcome.error().kind == ErrorKind::kDisconnected);
  CHECK_FALSE(end.brain.order_read());
  CHECK_FALSE(end.brain.has_load_task());
}

// ---- who is let in ------------------------------------------------------------------------------

TEST_CASE("one source at a time, with the secret that both were given") {
  MigrationOptions options;
  options.secret = "hush";
  End end(options);
  wire::Hello hello = hello_of(1);
  CHECK(end.brain.admit(hello, base::Done{}).refusal.find("was started with a secret") !=
        std::string::npos);
  hello.has_secret = true;
  const TargetAdmission admission = end.brain.admit(hello, base::Done{});
  CHECK(admission.refusal.empty());
  CHECK(admission.proof == TargetAdmission::Proof::kUsersSecret);
  CHECK(admission.speaks_first);
  CHECK(End().brain.admit(hello, base::Done{}).refusal.find("was given a secret") !=
        std::string::npos);
  (void)end.greet(1);
  CHECK(end.brain.admit(hello, base::Done{}).refusal.find("busy") != std::string::npos);
  CHECK_FALSE(end.greet(1).outcome.ok());
  CHECK(end.word(Input::kMisdescribed).outcome.ok());
  CHECK(end.brain.admit(hello, base::Done{}).refusal.empty());
}

TEST_CASE("a source that comes back to another process hears that nothing of it is there") {
  CHECK(End().brain.admit(hello_of(2), base::Done{}).refusal.find("another one") !=
        std::string::npos);
}

TEST_CASE("a source that says nothing loses its place") {
  End end;
  (void)end.greet(1);
  CHECK(end.word(Input::kGreetingOverdue).did(Effect::kShutControl));
  CHECK(end.word(Input::kDescribed).outcome.ok());
  CHECK_FALSE(end.word(Input::kGreetingOverdue).outcome.ok());
}

TEST_CASE("an epoch is let in once, behind its fence, and an older one never") {
  End end;
  end.run();
  CHECK_FALSE(end.greet(1).outcome.ok());
  const Fed second = end.greet(2);
  CHECK(second.did(Effect::kShutLanes));
  CHECK_FALSE(end.fenced(2).outcome.ok());  // Its predecessor's lane was not read to the end.
  (void)end.control_ended();
  (void)end.greet(3);
  CHECK_FALSE(end.fenced(2).outcome.ok());
  CHECK(end.fenced(3).gave(Job::kTellMissing));
  CHECK_FALSE(end.fenced(3).outcome.ok());
  CHECK(end.brain.admit(hello_of(3), base::Done{}).refusal.find("epoch 3 is over") !=
        std::string::npos);
  CHECK(
      end.brain.admit(hello_of(2, LaneRole::kUrgent), base::Done{}).refusal.find("no migration") !=
      std::string::npos);
  CHECK(end.brain.admit(hello_of(3, LaneRole::kUrgent), base::Done{}).refusal.empty());
}

TEST_CASE("without room for guest memory nobody is let in again, except to be told never") {
  const base::Outcome no_room = base::fail(ErrorKind::kOverloaded, "receive", "no room");
  End end;
  end.run();
  (void)end.control_ended();
  CHECK(end.brain.admit(hello_of(2), no_room).refusal == "no room");
  End dropped;
  dropped.receive();
  (void)dropped.control_ended();
  CHECK(dropped.brain.admit(hello_of(2), no_room).refusal.empty());
}

TEST_CASE("a target that its user has paused lets nobody in before its user says so") {
  End end;
  end.run();
  CHECK_FALSE(end.brain.may_let_in().ok());
  CHECK(end.word(Input::kPause).did(Effect::kShutControl));
  CHECK_FALSE(end.control_ended().did(Effect::kLinkLost));
  CHECK_FALSE(end.greet(2).outcome.ok());
  CHECK(end.brain.may_let_in().ok());
  CHECK(end.word(Input::kLetIn).outcome.ok());
  end.come_back(2);
}

// ---- signs of life ------------------------------------------------------------------------------

TEST_CASE("a link without signs of life is lost, and its lanes are shut") {
  End end;
  end.run();
  CHECK(end.signs({}).effects.empty());
  const Fed dead = end.signs({.verdict = LinkVerdict::kDead, .hears = false, .words = "dead"});
  CHECK(dead.did(Effect::kShutControl));
  CHECK(dead.did(Effect::kShutLanes));
  CHECK_FALSE(end.brain.is_watched());
  CHECK_FALSE(end.control_ended().did(Effect::kLinkLost));  // Said once.
  CHECK(end.brain.state() == TargetState::kRunningAlone);
}

TEST_CASE("an urgent lane that is dead beside a living control lane ends alone") {
  End end;
  end.run();
  const TargetSigns signs{.verdict = LinkVerdict::kDead, .urgent_dead = true, .words = "dead"};
  CHECK(end.signs(signs).did(Effect::kEndUrgent));
  CHECK(end.brain.tied());
  TargetSigns both = signs;
  both.control_unacknowledged = MigrationOptions().patience;
  CHECK(end.signs(both).did(Effect::kShutLanes));
}

TEST_CASE("a lane that waits in vain for its replacement takes the link with it") {
  End end;
  end.run();
  (void)end.lane_ended(kBulkLane);
  const MigrationOptions options;
  end.now += options.handshake_timeout - std::chrono::milliseconds(1);
  CHECK_FALSE(end.signs({}).did(Effect::kShutLanes));
  SUBCASE("none comes") {
    end.now += std::chrono::milliseconds(1);
    CHECK(end.signs({}).did(Effect::kShutLanes));
  }
  SUBCASE("another lane comes in its place") {
    REQUIRE(end.prove_lane(kBulkLane, 1).gave(Job::kReplaceLane));
    REQUIRE(end.lane_replaced(kBulkLane, 1).outcome.ok());
    end.now += std::chrono::milliseconds(1);
    CHECK_FALSE(end.signs({}).did(Effect::kShutLanes));
  }
}

TEST_CASE("signs of an epoch that is over say nothing of the next one") {
  End end;
  end.run();
  (void)end.control_ended();
  end.come_back(2);
  const std::string before = end.brain.dump();
  CHECK_FALSE(end.signs({.verdict = LinkVerdict::kDead}, 1).outcome.ok());
  CHECK(end.brain.dump() == before);
}

TEST_CASE("a marker that is silent for too long ends the waiting for it") {
  End end;
  end.receive();
  TargetInput silent{.kind = Input::kMarkerSilent,
                     .lane = kBulkLane,
                     .number = 1,
                     .silent = MigrationOptions().frozen_patience};
  CHECK_FALSE(end.feed(silent).outcome.ok());
  (void)end.frame(FrameType::kRoundEnd, 0, 1);
  CHECK(end.feed(silent).did(Effect::kGiveUpMarkers));
  silent.silent -= std::chrono::milliseconds(1);
  CHECK_FALSE(end.feed(silent).outcome.ok());
}

// ---- what its user sees -------------------------------------------------------------------------

TEST_CASE(
    "a source that is away for a moment shows as the link, and the status stays what it was") {
  End end;
  end.run();
  const Fed lost = end.control_ended();
  CHECK(end.brain.link() == LinkState::kLost);
  CHECK(lost.did(Effect::kShowLink));
  CHECK(end.brain.shown() == MigrationStatus::kPostcopyActive);
  SUBCASE("it comes back in time") {
    end.come_back(2);
    CHECK(end.brain.link() == LinkState::kRecovering);
    end.resume();
    CHECK(end.brain.link() == LinkState::kUp);
    CHECK(end.brain.shown() == MigrationStatus::kPostcopyActive);
    end.now += std::chrono::seconds(3);
    CHECK_FALSE(end.brain.owes_status(end.now));
  }
  SUBCASE("it stays away") {
    end.now += std::chrono::seconds(3) - std::chrono::milliseconds(1);
    CHECK_FALSE(end.brain.owes_status(end.now));
    end.now += std::chrono::milliseconds(1);
    CHECK(end.brain.owes_status(end.now));
    CHECK(end.feed({.kind = Input::kTime, .flag = true}).did(Effect::kShow));
    CHECK(end.brain.shown() == MigrationStatus::kPostcopyPaused);
  }
  SUBCASE("its user names another address meanwhile") {
    CHECK(end.brain.may_let_in().ok());
  }
  SUBCASE("it is given up") {
    CHECK(end.give_up(SourceLoss::kPoison).did(Effect::kShow));
    CHECK(end.brain.shown() == MigrationStatus::kPostcopyPaused);
  }
}

TEST_CASE("a pause by hand that is lifted is shown until the link is tied") {
  End end;
  end.run();
  REQUIRE(end.word(Input::kPause).outcome.ok());
  (void)end.control_ended();
  REQUIRE(end.brain.shown() == MigrationStatus::kPostcopyPaused);
  REQUIRE(end.word(Input::kLetIn).outcome.ok());
  CHECK(end.brain.shown() == MigrationStatus::kPostcopyPaused);
  end.come_back(2);
  CHECK(end.brain.shown() == MigrationStatus::kPostcopyRecover);
  end.resume();
  CHECK(end.brain.shown() == MigrationStatus::kPostcopyActive);
}

TEST_CASE("a source that was given up has no link by that") {
  End end;
  end.run();
  (void)end.control_ended();
  REQUIRE(end.give_up(SourceLoss::kPoison).outcome.ok());
  (void)end.nothing_arrives(9);
  const Fed settled = end.done(Job::kPoison);
  REQUIRE(end.brain.state() == TargetState::kPoisoned);
  CHECK_FALSE(settled.did(Effect::kShowLink));
  CHECK(end.brain.link() == LinkState::kLost);
}

TEST_CASE("a loaded guest whose order is not here shows as a pause only when time is over") {
  End end;
  end.load();
  (void)end.control_ended();
  CHECK(end.brain.shown() == MigrationStatus::kPostcopyDevice);
  end.now += std::chrono::seconds(3);
  CHECK(end.feed({.kind = Input::kTime, .flag = true}).outcome.ok());
  CHECK(end.brain.shown() == MigrationStatus::kPostcopyPaused);
  CHECK_FALSE(end.feed({.kind = Input::kTime, .flag = true}).outcome.ok());
}

TEST_CASE("a target that needs somebody's hand shows a pause at once") {
  End end;
  end.run();
  SUBCASE("its user wanted it so") {
    REQUIRE(end.word(Input::kPause).outcome.ok());
  }
  SUBCASE("there is no room for what the source brings") {
    REQUIRE(end.lane_ended(kBulkLane, ErrorKind::kOverloaded).did(Effect::kLanesLost));
  }
  (void)end.control_ended();
  CHECK(end.brain.shown() == MigrationStatus::kPostcopyPaused);
}

// ---- every input in every state -----------------------------------------------------------------

struct Named {
  std::string name;
  TargetInput input;
};

std::vector<Named> every_input() {
  std::vector<Named> inputs;
  const auto add = [&inputs](TargetInput input, const std::string& more = {}) {
    inputs.push_back({std::string(to_string(input.kind)) + " " + more, std::move(input)});
  };
  for (const std::uint64_t epoch : {1U, 2U, 3U}) {
    add({.kind = Input::kControlProven, .hello = hello_of(epoch)}, std::to_string(epoch));
    add({.kind = Input::kFenced, .epoch = epoch}, std::to_string(epoch));
    add({.kind = Input::kSigns, .epoch = epoch}, std::to_string(epoch));
    add({.kind = Input::kSigns,
         .signs = {.verdict = LinkVerdict::kFrozen, .words = "frozen"},
         .epoch = epoch},
        "frozen " + std::to_string(epoch));
    add({.kind = Input::kSigns,
         .signs = {.verdict = LinkVerdict::kDead, .urgent_dead = true, .words = "dead"},
         .epoch = epoch},
        "dead " + std::to_string(epoch));
  }
  for (std::uint16_t type = 1; type <= static_cast<std::uint16_t>(FrameType::kRequest); ++type) {
    wire::FrameHeader frame;
    frame.type = static_cast<FrameType>(type);
    frame.count = frame.type == FrameType::kStale ? 1 : 0;
    frame.round = 1;
    if (wire::to_string(frame.type).empty() || wire::to_string(frame.type) == "unknown") {
      continue;
    }
    add({.kind = Input::kFrame, .frame = frame, .text = "words"},
        std::string(wire::to_string(frame.type)));
  }
  wire::FrameHeader last;
  last.type = FrameType::kRoundEnd;
  last.round = 1;
  last.flags = wire::kFlagFinal;
  add({.kind = Input::kFrame, .frame = last}, "last");
  for (const Input kind :
       {Input::kGreetingOverdue, Input::kDescribed, Input::kMisdescribed, Input::kRoomFound,
        Input::kNothingMissing, Input::kGuestEntered, Input::kLingerOver, Input::kPause,
        Input::kLetIn, Input::kEnding, Input::kTime}) {
    add({.kind = kind, .number = 5});
  }
  for (const ErrorKind kind :
       {ErrorKind::kDisconnected, ErrorKind::kCorrupt, ErrorKind::kOverloaded}) {
    const std::string name = std::to_string(static_cast<int>(kind));
    add({.kind = Input::kControlEnded, .error = error_of(kind)}, name);
    add({.kind = Input::kLaneEnded, .error = error_of(kind), .lane = kBulkLane}, name);
    add({.kind = Input::kLaneEnded, .error = error_of(kind), .lane = kUrgentLane, .number = 1},
        name + " again");
    add({.kind = Input::kNoRoom, .error = error_of(kind)}, name);
  }
  for (const LaneName lane : {kUrgentLane, kBulkLane}) {
    add({.kind = Input::kLaneReplaced, .lane = lane, .number = 1}, to_string(lane));
    for (const std::uint32_t attempt : {0U, 1U}) {
      add({.kind = Input::kLaneProven, .hello = hello_of(2, lane, attempt)},
          to_string(lane) + " " + std::to_string(attempt));
    }
  }
  add({.kind = Input::kMarkerSilent, .number = 1, .silent = std::chrono::hours(1)});
  for (int job = 0; job <= static_cast<int>(Job::kStartGuest); ++job) {
    const TargetTask task{.kind = static_cast<Job>(job), .frame = FrameType::kState};
    add({.kind = Input::kDone, .task = task}, std::string(to_string(task.kind)));
  }
  add({.kind = Input::kDone,
       .task = TargetTask{.kind = Job::kAwaitLanes, .frame = FrameType::kResume}},
      "resume");
  add({.kind = Input::kDone,
       .task = TargetTask{.kind = Job::kLoad},
       .error = error_of(ErrorKind::kFailed)},
      "load failed");
  for (const SourceLoss how : {SourceLoss::kWait, SourceLoss::kPoison, SourceLoss::kGiveUp}) {
    add({.kind = Input::kGiveUpSource, .policy = how}, std::string(to_string(how)));
    add({.kind = Input::kSourceLoss, .policy = how}, std::string(to_string(how)));
  }
  for (const std::uint64_t missing : {0U, 9U}) {
    add({.kind = Input::kNothingArrives, .number = missing}, std::to_string(missing));
  }
  return inputs;
}

/// What may be taken without any effect: news that change nothing.
bool may_be_quiet(const TargetInput& input) {
  const bool frame = input.kind == Input::kFrame && (input.frame.type == FrameType::kCompleteAck ||
                                                     input.frame.type == FrameType::kRun);
  return frame || input.kind == Input::kSigns || input.kind == Input::kNoRoom ||
         input.kind == Input::kSourceLoss || input.kind == Input::kTime;
}

/// A brain somewhere on its way, and what has happened to the guest on it.
struct Place {
  End end;
  int gates = 0;  ///< Opened.
  int depth = 0;
  std::string way;
};

/// Ends in every state, most of them twice.
std::vector<Place> roots() {
  std::vector<Place> places;
  const auto add = [&places](const char* name, const std::function<void(End&)>& go) -> End& {
    Place place{.end = End(), .way = name};
    go(place.end);
    place.gates = place.end.brain.entered_at().has_value() ? 1 : 0;
    places.push_back(std::move(place));
    return places.back().end;
  };
  add("listening", [](End& /*end*/) {});
  add("greeted", [](End& end) { (void)end.greet(1); });
  add("receiving", [](End& end) { end.receive(); });
  add("round", [](End& end) {
    end.receive();
    (void)end.frame(FrameType::kRoundEnd, 0, 1);
  });
  add("delta", [](End& end) {
    end.receive();
    end.apply_last_delta();
  });
  add("failed", [](End& end) {
    end.receive();
    (void)end.control_ended();
  });
  add("lingering", [](End& end) {
    end.receive();
    end.apply_last_delta();
    (void)end.control_ended();
  });
  add("loading", [](End& end) { end.begin_loading(); });
  add("loading ordered", [](End& end) {
    end.begin_loading();
    (void)end.frame(FrameType::kRun);
  });
  add("loading again", [](End& end) {
    end.begin_loading();
    (void)end.control_ended();
    end.come_back(2);
  });
  add("load failed", [](End& end) {
    end.begin_loading();
    (void)end.fail_load();
  });
  add("loaded", [](End& end) { end.load(); });
  add("loaded alone", [](End& end) {
    end.load();
    (void)end.control_ended();
  });
  add("loaded recovering", [](End& end) {
    end.load();
    (void)end.control_ended();
    end.come_back(2);
  });
  add("running", [](End& end) { end.run(); });
  add("running alone", [](End& end) {
    end.run();
    (void)end.control_ended();
  });
  add("running recovering", [](End& end) {
    end.run();
    (void)end.control_ended();
    end.come_back(2);
  });
  add("abandoning", [](End& end) {
    end.run();
    (void)end.control_ended();
    (void)end.give_up(SourceLoss::kPoison);
  });
  add("poisoned", [](End& end) {
    end.run();
    (void)end.control_ended();
    (void)end.give_up(SourceLoss::kPoison);
    (void)end.nothing_arrives(9);
    (void)end.done(TargetTask{.kind = Job::kPoison}, 0, "poisoned");
  });
  add("lost", [](End& end) {
    end.run();
    (void)end.control_ended();
    (void)end.give_up(SourceLoss::kGiveUp);
    (void)end.nothing_arrives(9);
    (void)end.done(TargetTask{.kind = Job::kEndGuest}, 0, "given up");
  });
  add("completed", [](End& end) {
    end.run();
    (void)end.word(Input::kNothingMissing);
  });
  return places;
}

/// What must hold of every step, whatever came before it.
void check_step(const TargetInput& input, const Place& before, const Place& after, const Fed& fed) {
  const TargetProtocol& was = before.end.brain;
  const TargetProtocol& is = after.end.brain;
  if (!fed.outcome.ok()) {
    CHECK(is.dump() == was.dump());
    CHECK(fed.effects.empty());
    CHECK(fed.tasks.empty());
    return;
  }
  const bool quiet = is.dump() == was.dump() && fed.effects.empty() && fed.tasks.empty();
  CHECK((!quiet || may_be_quiet(input)));
  // The guest: once, by the order, and never where it never will.
  CHECK(after.gates <= 1);
  CHECK((!fed.did(Effect::kOpenGate) || (is.order_read() && !is.never())));
  CHECK((!was.never() || is.never()));
  CHECK((!is.entered_at().has_value() || !is.never()));
  // The tombstone comes before whatever somebody may act on.
  CHECK((!fed.gave(Job::kDropHalf) || is.never()));
  CHECK((!fed.gave(Job::kTellNever) || is.never()));
  CHECK((!fed.gave(Job::kAnswerNever) || is.never()));
  CHECK((is.state() != TargetState::kFailed || is.never()));
  if (fed.did(Effect::kTombstone)) {
    CHECK(fed.place_of(Effect::kTombstone) < fed.place_of(Effect::kStepped) + 1);
    CHECK(fed.place_of(Effect::kTombstone) < fed.place_of(Effect::kShow) + 1);
  }
  // A source that is given up, and one whose epoch is over.
  const bool lets_in = fed.did(Effect::kUseLane) || fed.gave(Job::kBeginEpoch);
  CHECK((!lets_in || !shuts_out(was.state())));
  CHECK((is.epoch() >= was.epoch() || was.state() == TargetState::kListening));
  // Lanes are replaced, and complete is said, only where both ends know what that means.
  CHECK((!fed.gave(Job::kTellLaneLost) || was.replaces_lanes()));
  CHECK((!fed.gave(Job::kFinish) || is.state() == TargetState::kCompleted));
  CHECK((is.state() != TargetState::kCompleted || is.entered_at().has_value()));
}

TEST_CASE("every input in every state has an effect, or is refused and changes nothing") {
  const std::vector<Named> inputs = every_input();
  std::deque<Place> todo;
  std::set<std::string> seen;
  std::set<TargetState> states;
  std::set<std::pair<TargetState, TargetEvent>> steps;
  for (Place& root : roots()) {
    states.insert(root.end.brain.state());
    seen.insert(root.end.brain.dump());
    todo.push_back(std::move(root));
  }
  CHECK(states.size() == static_cast<std::size_t>(TargetState::kFailed) + 1);
  while (!todo.empty()) {
    const Place place = std::move(todo.front());
    todo.pop_front();
    for (const Named& one : inputs) {
      Place next = place;
      CAPTURE(place.way);
      CAPTURE(one.name);
      const Fed fed = next.end.feed(one.input);
      next.gates += fed.did(Effect::kOpenGate) ? 1 : 0;
      for (const TargetEffect& effect : fed.effects) {
        if (effect.kind == Effect::kStepped) {
          steps.emplace(effect.rule.from, effect.rule.on);
        }
      }
      check_step(one.input, place, next, fed);
      ++next.depth;
      if (next.depth < kDeep && seen.insert(next.end.brain.dump()).second) {
        next.way += ", " + one.name;
        todo.push_back(std::move(next));
      }
    }
  }
  for (const TargetRule& rule : kTargetRules) {
    CAPTURE(to_string(rule.from));
    CAPTURE(to_string(rule.on));
    CHECK(steps.contains({rule.from, rule.on}));
  }
  CHECK(seen.size() > 1000);
}

TEST_CASE("the brain takes its steps from the table that it was given") {
  std::vector<TargetRule> rules(kTargetRules.begin(), kTargetRules.end());
  for (TargetRule& rule : rules) {
    if (rule.from == TargetState::kReceiving && rule.on == TargetEvent::kLinkLost) {
      rule.to = TargetState::kRunning;
      rule.act = TargetAction::kRun;
    }
  }
  End end({}, rules);
  end.receive();
  CHECK(end.control_ended().did(Effect::kOpenGate));
}

}  // namespace
}  // namespace towline::runtime
