// What may happen at the target: runtime/target/driver.cc with every way in which a task can end.
#include <utility>

#include <fmt/format.h>

#include "tests/support/switch_world.h"

namespace towline::runtime::switch_model {
namespace {

using base::Error;
using base::ErrorKind;
using wire::FrameType;
using Job = TargetTask::Kind;
using Input = TargetInput::Kind;

constexpr LaneName kBulkLane{wire::LaneRole::kBulk, 0};

Error broken(ErrorKind kind) {
  return {kind, 0, "lane", "it broke"};
}

}  // namespace

bool Steps::tell(World& world, TargetInput input) {
  const auto taken = world.target.on(input);
  note(!taken.ok() && input.kind == Input::kFrame && taken.error().kind == ErrorKind::kCorrupt,
       "the target refuses what a source says: " + (taken.ok() ? "" : taken.error().detail));
  for (const TargetEffect& effect : world.target.take_effects()) {
    perform(world, effect);
  }
  bool good = taken.ok();
  for (const TargetTask& task : world.target.take_tasks()) {
    good = carry_out(world, task) && good;
  }
  world.target_dump = world.target.dump();
  return good;
}

void Steps::perform(World& world, const TargetEffect& effect) {
  switch (effect.kind) {
    case TargetEffect::Kind::kStepped:
      notes_.target_taken.insert({effect.rule.from, effect.rule.on});
      break;
    case TargetEffect::Kind::kOpenGate:
      gate(world.there, OwnershipEvent::kTake);
      break;
    case TargetEffect::Kind::kShutOut:
      world.shut_out = true;
      world.given_up = true;
      world.cut_there = true;
      world.cut_back = true;
      break;
    case TargetEffect::Kind::kShow:
    case TargetEffect::Kind::kShowLink:
    case TargetEffect::Kind::kTombstone:
    case TargetEffect::Kind::kUseLane:
    case TargetEffect::Kind::kShutControl:
    case TargetEffect::Kind::kShutLanes:
    case TargetEffect::Kind::kShutLane:
    case TargetEffect::Kind::kLanesLost:
    case TargetEffect::Kind::kEndUrgent:
    case TargetEffect::Kind::kOpenPostcopy:
    case TargetEffect::Kind::kGiveUpMarkers:
    case TargetEffect::Kind::kLinger:
    case TargetEffect::Kind::kSourceAway:
    case TargetEffect::Kind::kFence:
    case TargetEffect::Kind::kLinkLost:
    case TargetEffect::Kind::kControlEnded:
    case TargetEffect::Kind::kLaneReplaced:
    case TargetEffect::Kind::kOverdue:
    case TargetEffect::Kind::kNoRoom:
    case TargetEffect::Kind::kRoomAgain:
      break;
  }
}

/// False: the control lane is read no further.
bool Steps::carry_out(World& world, const TargetTask& task) {
  const bool old_lane = world.fence.has_value();
  switch (task.kind) {
    case Job::kBeginEpoch:
      world.fence = task.epoch;
      return true;
    case Job::kAwaitMarkers:
    case Job::kAwaitLanes:
      world.waits.push_back(task);
      return true;
    case Job::kApplyStale:
    case Job::kPoison:
      return tell(world, TargetInput{.kind = Input::kDone, .task = task});
    case Job::kSayApplied:
      send_back(world,
                {FrameType::kStaleApplied, task.count, static_cast<std::uint32_t>(task.number)});
      return true;
    case Job::kEndReading:
      return false;
    case Job::kAnswerNever:
      send_back(world, {FrameType::kNever});
      return tell(world, TargetInput{.kind = Input::kDone, .task = task});
    case Job::kAnswerComplete:
      send_back(world, {FrameType::kRunning});
      send_back(world, {FrameType::kComplete});
      return true;
    case Job::kTellMissing:
      tell_missing(world, task);
      return true;
    case Job::kTellNever:
      send_back(world, {FrameType::kNever});
      return true;
    case Job::kFinishSending:
      world.cut_back = world.cut_back || !old_lane;
      world.cut_there = world.cut_there || (task.flag && !old_lane);
      return true;
    case Job::kCloseLanes:
      world.cut_back = world.cut_back || !old_lane;
      world.cut_there = world.cut_there || !old_lane;
      return true;
    case Job::kTellRunning:
      send_back(world, {FrameType::kRunning});
      return tell(world, TargetInput{.kind = Input::kDone, .task = task});
    case Job::kFinish:
      send_back(world, {FrameType::kComplete});
      return true;
    case Job::kEndGuest:
      world.there = Ownership::kGone;
      return tell(world, TargetInput{.kind = Input::kDone, .task = task});
    case Job::kTakeSource:
      world.target_reads = true;
      return true;
    case Job::kAttachLane:
    case Job::kReplaceLane:
    case Job::kAnswerPing:
    case Job::kKeepStale:
    case Job::kStorePages:
    case Job::kAskAgain:
    case Job::kDropHalf:
    case Job::kTellLaneLost:
    case Job::kTellNoRoom:
    case Job::kTellRoomAgain:
    case Job::kLoad:
    case Job::kStartGuest:
      return true;
  }
  __builtin_unreachable();
}

/// As runtime/target/recovery.cc says it: what is missing, that the guest runs, the end. How much
/// is missing matters to nobody here.
void Steps::tell_missing(World& world, const TargetTask& task) {
  if (world.target.entered_at().has_value() && task.number == 0 &&
      mistake_ != Mistake::kRunningUntold) {
    send_back(world, {FrameType::kRunning});
  }
  send_back(world, {FrameType::kMissingEnd, 0, static_cast<std::uint32_t>(task.number)});
}

/// The one data lane whose end matters here: a pass may have no room.
void Steps::attach_lane(World& world) {
  wire::Hello hello;
  hello.id.fill(std::byte{7});
  hello.role = kBulkLane.role;
  hello.epoch = world.target.epoch();
  tell(world, TargetInput{.kind = Input::kLaneProven, .hello = hello});
}

void Steps::end_reading(World& world, ErrorKind kind) {
  world.target_reads = false;
  world.waits.clear();
  tell(world, TargetInput{.kind = Input::kControlEnded, .error = broken(kind)});
  if (!world.fence.has_value()) {
    world.cut_there = true;  // Nobody reads it any more.
    world.cut_back = true;
  }
}

/// What arrives on the control lane, in its order, and then its end; behind the old lane's end a
/// new epoch begins.
void Steps::target_reads(const World& world, const Found& found) {
  const bool early = mistake_ == Mistake::kFencedEarly;
  if (world.fence.has_value() && (early || !world.target_reads)) {
    World next = world;
    const std::uint64_t epoch = *std::exchange(next.fence, std::nullopt);
    if (!early) {
      next.to_target.clear();  // What it did not read before it gave the lane up.
    }
    next.waits.clear();
    next.target_reads = true;
    tell(next, TargetInput{.kind = Input::kFenced, .epoch = epoch});
    return found(std::move(next));
  }
  if (!world.target_reads || !world.waits.empty()) {
    return;
  }
  World next = world;
  if (world.to_target.empty()) {
    if (world.cut_there || world.fence.has_value()) {
      end_reading(next, ErrorKind::kDisconnected);
      found(std::move(next));
    }
    return;
  }
  const Frame frame = world.to_target.front();
  next.to_target.erase(next.to_target.begin());
  if (frame.type == FrameType::kDescribe) {
    if (limits_.refusals) {
      World refused = next;
      tell(refused, TargetInput{.kind = Input::kMisdescribed});
      send_back(refused, {FrameType::kRefuse});
      refused.target_reads = false;
      refused.cut_there = true;
      refused.cut_back = true;
      found(std::move(refused));
    }
    tell(next, TargetInput{.kind = Input::kDescribed, .number = 1});
    attach_lane(next);
    send_back(next, {FrameType::kAccept});
    return found(std::move(next));
  }
  wire::FrameHeader header;
  header.type = frame.type;
  header.count = frame.count;
  header.round = frame.round;
  header.flags = frame.flags;
  const bool good =
      tell(next, TargetInput{.kind = Input::kFrame, .frame = header, .text = "words"});
  if (!good) {
    end_reading(next, ErrorKind::kDisconnected);
  }
  found(std::move(next));
}

/// What tl-control waits for comes, or a lane breaks first.
void Steps::target_waits(const World& world, const Found& found) {
  if (world.waits.empty()) {
    return;
  }
  World came = world;
  const TargetTask task = came.waits.front();
  came.waits.pop_front();
  if (!tell(came, TargetInput{.kind = Input::kDone, .task = task})) {
    end_reading(came, ErrorKind::kDisconnected);
  }
  found(std::move(came));
  if (world.cut_there || world.cut_back || world.fence.has_value()) {
    World broke = world;
    end_reading(broke, ErrorKind::kDisconnected);
    found(std::move(broke));
  }
}

/// Its machine: the state is loaded, or cannot be; the guest enters; its last page comes; there is
/// no room for a pass.
void Steps::target_machine(const World& world, const Found& found) {
  if (world.target.has_load_task()) {
    World next = world;
    const TargetTask task = *next.target.take_load_task();
    if (task.kind == Job::kLoad) {
      World failed = next;
      tell(failed,
           TargetInput{.kind = Input::kDone, .task = task, .error = broken(ErrorKind::kFailed)});
      found(std::move(failed));
      tell(next, TargetInput{.kind = Input::kDone, .task = task});
    } else {
      tell(next, TargetInput{.kind = Input::kGuestEntered, .number = 5});
    }
    found(std::move(next));
  }
  if (world.target.entered_at().has_value() && world.target.state() != TargetState::kCompleted &&
      !shuts_out(world.target.state())) {
    World next = world;
    if (tell(next, TargetInput{.kind = Input::kNothingMissing})) {
      found(std::move(next));
    }
  }
  if (world.target.state() == TargetState::kReceiving && !world.room_lost && limits_.refusals) {
    World next = world;
    next.room_lost = true;
    tell(next, TargetInput{.kind = Input::kLaneEnded,
                           .error = broken(ErrorKind::kOverloaded),
                           .lane = kBulkLane});
    found(std::move(next));
  }
}

/// Its user, or a deadline, gives the source up; then the old lanes have been read to their ends.
void Steps::target_alone(const World& world, const Found& found) {
  if (world.target.state() == TargetState::kRunningAlone && limits_.alone) {
    for (const SourceLoss how : {SourceLoss::kPoison, SourceLoss::kGiveUp}) {
      World next = world;
      if (tell(next, TargetInput{.kind = Input::kGiveUpSource, .policy = how})) {
        found(std::move(next));
      }
    }
  }
  if (world.shut_out && !world.target_reads) {
    for (const std::uint64_t missing : {0U, 1U}) {
      World next = world;
      next.shut_out = false;
      tell(next, TargetInput{.kind = Input::kNothingArrives, .number = missing, .text = "1 page"});
      found(std::move(next));
    }
  }
}

}  // namespace towline::runtime::switch_model
