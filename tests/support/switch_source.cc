// What may happen at the source: runtime/source/tasks.cc with every way in which a task can end.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "runtime/source/owner_changes.h"
#include "tests/support/switch_hands.h"
#include "tests/support/switch_world.h"

namespace towline::runtime::switch_model {
namespace {

using base::Error;
using base::ErrorKind;
using wire::FrameType;
using Kind = SourceTask::Kind;
using Input = SourceInput::Kind;

constexpr std::uint64_t kIncarnation = 7;
constexpr std::uint64_t kFeatures =
    wire::kFeatureReplaceLane | wire::kFeatureWaitForRoom | wire::kFeatureCountFrames;

Error broken(ErrorKind kind) {
  return {kind, 0, "lane", "it broke"};
}

SourceInput input_of(const Frame& frame) {
  wire::FrameHeader header;
  header.type = frame.type;
  header.count = frame.count;
  header.round = frame.round;
  header.flags = frame.flags;
  const std::vector<std::byte> clock(frame.type == FrameType::kRunning ? 8 : 0, std::byte{1});
  return source_input_of(header, clock).value();
}

}  // namespace

bool Steps::tell(World& world, SourceInput input) {
  const bool frame = input.kind >= Input::kAccept && input.kind <= Input::kBeat;
  const auto taken = world.source.on(input);
  if (!taken.ok()) {
    note(frame && taken.error().kind == ErrorKind::kCorrupt,
         "the source refuses what a target says: " + taken.error().detail);
  }
  for (const SourceEffect& effect : world.source.take_effects()) {
    perform(world, effect);
  }
  world.source_dump = world.source.dump();
  return taken.ok();
}

void Steps::perform(World& world, const SourceEffect& effect) {
  switch (effect.kind) {
    case SourceEffect::Kind::kStepped:
      notes_.source_taken.insert({effect.rule.from, effect.rule.on});
      break;
    case SourceEffect::Kind::kReadControl:
      world.source_reads = true;
      break;
    case SourceEffect::Kind::kEndFlight:
    case SourceEffect::Kind::kFinishSending:
      world.cut_there = true;
      break;
    case SourceEffect::Kind::kCloseLanes:
      world.cut_there = true;
      world.cut_back = true;
      break;
    case SourceEffect::Kind::kOrder:
      if (mistake_ != Mistake::kOrderUnnoted) {
        Hands(*this, world).change(OwnershipEvent::kOrder);
      }
      break;
    case SourceEffect::Kind::kTargetRuns:
      if (mistake_ != Mistake::kGateUntold) {
        Hands hands(*this, world);
        note_target_runs(hands);
      }
      break;
    case SourceEffect::Kind::kGiveBack: {
      Hands hands(*this, world);
      give_guest_back(hands, effect.rule);
      break;
    }
    case SourceEffect::Kind::kRelease:
      Hands(*this, world).note_over();
      break;
    case SourceEffect::Kind::kShow:
    case SourceEffect::Kind::kShowLink:
    case SourceEffect::Kind::kOweAll:
    case SourceEffect::Kind::kOweNothing:
    case SourceEffect::Kind::kOweNamed:
    case SourceEffect::Kind::kOwedKnown:
    case SourceEffect::Kind::kCutPass:
    case SourceEffect::Kind::kStopPass:
    case SourceEffect::Kind::kHoldBack:
    case SourceEffect::Kind::kGoOn:
    case SourceEffect::Kind::kEndWaiting:
    case SourceEffect::Kind::kLinkLost:
    case SourceEffect::Kind::kLaneLost:
    case SourceEffect::Kind::kLaneNotReplaced:
    case SourceEffect::Kind::kLaneReplaced:
    case SourceEffect::Kind::kNoRoom:
    case SourceEffect::Kind::kRoomAgain:
    case SourceEffect::Kind::kEnds:
    case SourceEffect::Kind::kAttemptFailed:
    case SourceEffect::Kind::kRecovered:
    case SourceEffect::Kind::kTakenBack:
      break;
  }
}

void Steps::done(World& world, const SourceInput& found) {
  SourceInput input = found;
  input.kind = Input::kDone;
  input.task = world.source.task()->kind;
  tell(world, std::move(input));
}

void Steps::task_fails(const World& world, ErrorKind kind, const Found& found) {
  World next = world;
  SourceInput input{.kind = Input::kDone};
  input.error = broken(kind);
  done(next, input);
  found(std::move(next));
}

void Steps::source_task(const World& world, const Found& found) {
  if (!world.source.task().has_value()) {
    return;
  }
  const SourceTask& task = *world.source.task();
  World next = world;
  switch (task.kind) {
    case Kind::kOpenControl:
      return open_control(world, found);
    case Kind::kDescribe:
      send_there(next, {FrameType::kDescribe});
      break;
    case Kind::kOpenLanes:
    case Kind::kOpenLanesAgain:
    case Kind::kRunPass:
      if (world.cut_there) {
        return task_fails(world, ErrorKind::kDisconnected, found);
      }
      break;
    case Kind::kSendRound:
      send_there(next, {FrameType::kRoundEnd, 0, task.pass});
      break;
    case Kind::kPark:
      Hands(*this, next).change(OwnershipEvent::kHold);
      break;
    case Kind::kPrepareFlight: {
      task_fails(world, ErrorKind::kFailed, found);  // The state cannot be saved.
      Hands hands(*this, next);
      note(!leave_to_heir(hands).ok(), "the ledger cannot be written");
      break;
    }
    case Kind::kSendFlight:
      if (world.cut_there) {
        task_fails(world, ErrorKind::kDisconnected, found);
      }
      send_there(next, {FrameType::kRoundEnd, 0, world.source.passes_done(), wire::kFlagFinal});
      send_there(next, {FrameType::kState});
      send_there(next, {FrameType::kRun});
      Hands(*this, next).after_flight();
      break;
    case Kind::kReadToTheEnd:
      next.cut_there = true;
      next.cut_back = true;
      if (mistake_ == Mistake::kRunningUnread) {
        next.heard = next.heard ||
                     std::any_of(next.to_source.begin(), next.to_source.end(),
                                 [](const Frame& one) { return one.type == FrameType::kRunning; });
        next.to_source.clear();
        next.source_reads = false;
      } else if (next.source_reads) {
        return world.cut_back ? void() : found(std::move(next));  // Its reader goes on.
      }
      break;
    case Kind::kSayCancelled:
      send_there(next, {FrameType::kCancel});
      break;
    case Kind::kDropEpoch:
      next.cut_there = true;
      next.cut_back = true;
      next.to_source.clear();
      next.source_reads = false;
      break;
    case Kind::kResume:
      send_there(next, {FrameType::kResume});
      break;
    case Kind::kOrderAgain:
      send_there(next, {FrameType::kRun});
      break;
    case Kind::kFindPageServer:
      Hands(*this, next).find();
      break;
    case Kind::kFinish:  // The target does nothing with the word that it is sent.
      Hands(*this, next).note_over();
      break;
    case Kind::kBeginLog:
    case Kind::kAwaitPageServer:
    case Kind::kStartPush:
      break;
    case Kind::kEndLane:
    case Kind::kOpenInPlace:
    case Kind::kPutInPlace:
      note(true, "a lane that did not break is replaced");
      break;
  }
  done(next, {.kind = Input::kDone});
  found(std::move(next));
}

/// Whoever answers is asked whether it lets this source in.
void Steps::open_control(const World& world, const Found& found) {
  const std::uint64_t epoch = world.source.task()->epoch;
  World next = world;
  Hands(*this, next).greet(epoch);
  if (may_break(world) || world.killed) {
    World failed = next;
    count_break(failed);
    task_fails(failed, ErrorKind::kDisconnected, found);
  }
  if (world.killed) {
    return;
  }
  if (epoch == 1 && limits_.refusals) {
    task_fails(next, ErrorKind::kRefused, found);  // Somebody else has the place.
  }
  wire::Hello hello;
  hello.epoch = epoch;
  hello.features = kFeatures;
  hello.id.fill(std::byte{7});
  const bool let_in =
      next.target.admit(hello, base::Done{}).refusal.empty() &&
      tell(next, TargetInput{.kind = TargetInput::Kind::kControlProven, .hello = hello});
  if (!let_in) {
    return task_fails(next, ErrorKind::kRefused, found);
  }
  next.cut_there = false;
  next.cut_back = false;
  next.loss_told = false;
  next.withheld.reset();
  SourceInput opened{.kind = Input::kDone};
  opened.number = kIncarnation;
  opened.features = kFeatures;
  done(next, opened);
  found(std::move(next));
}

/// What arrives on the control lane, in its order, and then its end.
void Steps::source_reads(const World& world, const Found& found) {
  if (!world.source_reads) {
    return;
  }
  World next = world;
  if (world.to_source.empty() && !world.cut_back) {
    return;
  }
  if (world.to_source.empty()) {
    next.source_reads = false;
    tell(next, {.kind = Input::kControlEnded,
                .error = broken(ErrorKind::kDisconnected),
                .epoch = world.source.epoch()});
    return found(std::move(next));
  }
  const Frame frame = world.to_source.front();
  next.to_source.erase(next.to_source.begin());
  const bool runs = frame.type == FrameType::kRunning;
  next.heard = next.heard || (runs && !before_order(world.source.state()));
  if (mistake_ == Mistake::kRunningWithheld && runs && is_recovering(world.source.state())) {
    next.withheld = frame;
    return found(std::move(next));
  }
  bool taken = tell(next, input_of(frame));
  if (next.withheld.has_value() && frame.type == FrameType::kMissingEnd) {
    taken = tell(next, input_of(*std::exchange(next.withheld, std::nullopt))) && taken;
  }
  if (!taken) {
    next.cut_there = true;
    next.cut_back = true;
  }
  found(std::move(next));
}

/// Its watch, and its clock: a peer that neither speaks nor closes is given up, and a target that
/// was lost is asked again.
void Steps::source_waits(const World& world, const Found& found) {
  if (world.cut_back && !world.loss_told && limits_.watch) {
    for (const bool silent : {false, true}) {
      World next = world;
      next.loss_told = true;
      tell(next, {.kind = Input::kLinkLost,
                  .error = broken(ErrorKind::kDisconnected),
                  .epoch = world.source.epoch(),
                  .flag = silent});
      found(std::move(next));
    }
  }
  const auto deadline = world.source.deadline();
  const bool paused = is_paused(world.source.state());
  if (paused && !world.source.task().has_value() && limits_.words &&
      world.source.epoch() < limits_.epochs) {
    World next = world;
    tell(next, {.kind = Input::kResume});
    found(std::move(next));
  }
  const bool may_pass =
      paused ? world.source.epoch() < limits_.epochs : world.cut_back && limits_.watch;
  if (deadline.has_value() && may_pass) {
    World next = world;
    tell(next, {.kind = Input::kTime, .at = *deadline});
    found(std::move(next));
  }
}

/// Each word once; and the last resort of a user, who may be wrong, but not against what the source
/// has heard.
void Steps::source_users(const World& world, const Found& found) {
  if (!world.switch_said && limits_.words) {
    World next = world;
    next.switch_said = true;
    tell(next, {.kind = Input::kSwitchWord});
    found(std::move(next));
  }
  if (!world.cancel_said && limits_.words) {
    World next = world;
    next.cancel_said = true;
    tell(next, {.kind = Input::kCancel});
    if (mistake_ == Mistake::kCancelled && world.here == Ownership::kOrdered) {
      gate(next.here, OwnershipEvent::kTargetRefused);
    }
    found(std::move(next));
  }
  if (world.source.state() != SourceState::kOrderedPaused) {
    return;
  }
  if (!world.killed) {
    World next = world;
    next.died_as_target = world.there == Ownership::kHere;
    next.killed = true;
    next.there = Ownership::kGone;
    found(std::move(next));
  }
  if (world.killed || world.heard) {
    World next = world;
    tell(next, {.kind = Input::kTakeBack});
    found(std::move(next));
  }
}

}  // namespace towline::runtime::switch_model
