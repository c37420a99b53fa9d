// The target's brain in this world: what runtime/target/driver.cc does with its effects and tasks.
#include <deque>
#include <string>
#include <utility>

#include "tests/simulation/target_end.h"

namespace towline::simulation {

using base::ErrorKind;
using base::fail;
using base::Outcome;
using base::PageIndex;
using base::PageRange;
using runtime::TargetEffect;
using runtime::TargetTask;
using runtime::wire::FrameType;

/// Tells the brain, and performs its effects at once: nobody can cut in.
std::vector<TargetTask> TargetEnd::ask_brain(Input input, Outcome& outcome) {
  input.at = world_.clock.now();
  const bool looks = ++inputs_ % 16 == 0;  // It costs more than the input.
  const std::string before = looks ? brain_.dump() : std::string();
  outcome = brain_.on(input);
  if (looks && !outcome.ok() && brain_.dump() != before) {
    world_.fail("a refused input changed the target: " + std::string(to_string(input.kind)));
  }
  for (const TargetEffect& effect : brain_.take_effects()) {
    world_.coverage.target_effects.insert(effect.kind);
    perform(effect);
  }
  auto tasks = brain_.take_tasks();
  for (const TargetTask& task : tasks) {
    world_.coverage.target_tasks.insert(task.kind);
  }
  return tasks;
}

/// For whoever does not wait. The driver holds a lock of its own while room is told of, and
/// tl-listen takes one lane after the other.
Outcome TargetEnd::feed(Input input) {
  Outcome outcome = base::Done{};
  for (const TargetTask& task : ask_brain(std::move(input), outcome)) {
    const bool alone = task.kind == Job::Kind::kTellNoRoom ||
                       task.kind == Job::Kind::kTellRoomAgain ||
                       task.kind == Job::Kind::kBeginEpoch;
    if (!alone) {
      world_.preempt();
    }
    auto done = carry_out(task);
    if (!done.ok()) {
      return done;
    }
  }
  return outcome;
}

/// For tl-control, which waits.
Task TargetEnd::obey(Receivers& lanes, const Input& input, Outcome& outcome) {
  const auto first = ask_brain(input, outcome);
  std::deque<TargetTask> tasks(first.begin(), first.end());
  while (!tasks.empty() && outcome.ok()) {
    const TargetTask task = tasks.front();
    tasks.pop_front();
    world_.preempt();
    if (task.kind == Job::Kind::kAwaitMarkers) {
      if (!world_.planted(Plant::kStaleBeforeMarkers)) {
        const auto pass = static_cast<std::uint32_t>(task.number);
        awaited_pass_ = pass;
        co_await until([this, &lanes, pass] {
          return lanes.lost || gave_up_markers_ || lanes.all_markers(pass);
        });
        awaited_pass_ = 0;
        if (!lanes.all_markers(pass) && gave_up_markers_) {
          outcome = fail(ErrorKind::kCorrupt, "wait for markers", "one is overdue");
          co_return;
        }
        if (!lanes.all_markers(pass)) {
          outcome = fail(ErrorKind::kDisconnected, "wait for markers", "a lane broke");
          co_return;
        }
      }
    } else if (task.kind == Job::Kind::kAwaitLanes) {
      const bool waits = !world_.planted(Plant::kResumeEarly) || task.frame != FrameType::kResume;
      co_await until([&lanes, waits] { return !waits || lanes.lost || lanes.all_attached(); });
      if (waits && !lanes.all_attached()) {
        outcome = fail(ErrorKind::kDisconnected, "wait for lanes", "one is not there");
        co_return;
      }
    } else {
      outcome = carry_out(task);
      continue;
    }
    outcome = feed_done(task);
  }
}

Outcome TargetEnd::feed_done(const TargetTask& task) {
  return feed({.kind = Input::Kind::kDone, .task = task});
}

void TargetEnd::perform(const TargetEffect& effect) {
  using Kind = TargetEffect::Kind;
  // clang-format off
  switch (effect.kind) {
    case Kind::kStepped: world_.coverage.target.emplace(effect.rule.from, effect.rule.on); return;
    case Kind::kTombstone: return write_tombstone();
    case Kind::kUseLane: return use_lanes(*next_);
    case Kind::kShutControl: return shut_control(*now_);
    case Kind::kShutLanes:
      if (!world_.planted(Plant::kOldFrameInstalled)) { shut_data(*now_); }
      return;
    case Kind::kShutLane: return refuse(*now_->place_of(effect.lane));
    case Kind::kLanesLost: now_->lost = true; return;
    case Kind::kEndUrgent:
      now_->urgent->to_source.close();
      return now_->urgent->to_target.shut(world_.random);
    case Kind::kOpenPostcopy:
      world_.switched = true;
      postcopy_ = !world_.planted(Plant::kPostcopyUnopened);
      return check_delta();
    case Kind::kGiveUpMarkers: gave_up_markers_ = true; return;
    case Kind::kOpenGate: return open_gate();
    case Kind::kLinger: return world_.add_actor(Process::kTarget, "target lingers", linger());
    case Kind::kShutOut: return shut_out();
    case Kind::kFence: newest_ = effect.epoch; return;
    case Kind::kShow: case Kind::kShowLink: case Kind::kSourceAway: case Kind::kLinkLost: case Kind::kControlEnded:
    case Kind::kLaneReplaced: case Kind::kOverdue: case Kind::kNoRoom: case Kind::kRoomAgain:
      return;
  }
  // clang-format on
}

Outcome TargetEnd::carry_out(const TargetTask& task) {
  using Kind = TargetTask::Kind;
  // clang-format off
  switch (task.kind) {
    case Kind::kBeginEpoch: begin_epoch(task.epoch); break;
    case Kind::kAttachLane:
      if (arrived_ != nullptr) { attach(task.lane, *arrived_); }  // Otherwise it is tied already.
      break;
    case Kind::kReplaceLane:
      replace(task.lane, *arrived_, static_cast<std::uint32_t>(task.number));
      break;
    case Kind::kKeepStale: return keep_stale();
    case Kind::kApplyStale: return apply_stale();
    case Kind::kSayApplied:
      now_->control->to_source.send({.type = FrameType::kStaleApplied, .count = task.count,
                                     .round = static_cast<std::uint32_t>(task.number)});
      break;
    case Kind::kStorePages:
      if (!world_.layout.valid(reading_.pages()) ||
          !settled(receiver_.on_pages(reading_.pages(), reading_.payload))) {
        return fail(ErrorKind::kCorrupt, "first pages", "not of the flight");
      }
      break;
    case Kind::kAskAgain: ask_again(task); break;
    case Kind::kEndReading: return fail(ErrorKind::kRefused, "cancel", task.text);
    case Kind::kAnswerNever:
      tell(FrameType::kNever);
      (void)feed_done(task);
      break;
    case Kind::kAnswerComplete:
      tell(FrameType::kRunning, std::vector<std::byte>(8));
      tell(FrameType::kComplete);
      break;
    case Kind::kTellMissing: return tell_missing(task);
    case Kind::kTellNever: tell(FrameType::kNever); break;
    case Kind::kFinishSending:
      if (world_.planted(Plant::kNeverThenRun) && !world_.runs_there) { tell(FrameType::kNever); }
      now_->control->to_source.close();
      if (task.flag) { now_->control->to_target.shut(world_.random); }
      finish_sending(*now_);
      break;
    case Kind::kCloseLanes:
      finish_sending(*now_);
      if (task.flag) { shut_data(*now_); }
      shut_control(*now_);
      break;
    case Kind::kTellLaneLost:
      now_->control->to_source.send({.type = FrameType::kLaneLost,
                                     .first = runtime::lane_code(task.lane),
                                     .round = static_cast<std::uint32_t>(task.number)});
      break;
    case Kind::kTellNoRoom:
      now_->control->to_source.send({.type = FrameType::kNoRoom},
                                    std::as_bytes(std::span("no room")));
      break;
    case Kind::kTellRoomAgain: tell(FrameType::kRoomAgain); break;
    case Kind::kTellRunning:
      if (!world_.planted(Plant::kCompleteUnannounced)) {
        tell(FrameType::kRunning, std::vector<std::byte>(8));
      }
      (void)feed_done(task);
      world_.preempt();
      progress();
      if (world_.planted(Plant::kCompleteUnannounced)) {
        tell(FrameType::kRunning, std::vector<std::byte>(8));
      }
      break;
    case Kind::kFinish:
      now_->control->to_source.send(
          {.type = FrameType::kComplete, .count = world_.layout.pages().value});
      guest_.release();
      break;
    case Kind::kPoison:
      if (!receiver_.poison_missing().ok()) { world_.fail("missing pages could not be poisoned"); }
      return feed_done(task);
    case Kind::kEndGuest: return feed_done(task);
    // Its memory is its own, and the lanes of the first epoch are tied from the start.
    case Kind::kDropHalf: case Kind::kTakeSource: break;
    case Kind::kAnswerPing: case Kind::kAwaitMarkers: case Kind::kAwaitLanes:
    case Kind::kLoad: case Kind::kStartGuest:
      world_.fail("a task on a thread that is not its own: " + std::string(to_string(task.kind)));
  }
  // clang-format on
  return base::Done{};
}

/// What others are bringing just now is missing and not told, or not missing, as it happens.
Outcome TargetEnd::tell_missing(const TargetTask& task) {
  if (task.number == 0 || !world_.planted(Plant::kLaneMissingEarly)) {
    world_.being_installed.clear();
    for (PageIndex page{0}; task.number != 0 && page.value < map_.pages().value; ++page.value) {
      if (is_claimed(map_.state(page))) {
        world_.being_installed.insert(page.value);
      }
    }
    tell_missing(static_cast<std::uint32_t>(task.number));
  }
  return base::Done{};
}

void TargetEnd::write_tombstone() {
  if (world_.planted(Plant::kTombstoneLate)) {
    return world_.add_actor(Process::kTarget, "target writes late", write_late());
  }
  tombstone_ = !world_.planted(Plant::kTombstoneForgotten);
}

Task TargetEnd::write_late() {
  for (int turns = 0; turns < 40; ++turns) {
    co_await simulation::step();
  }
  tombstone_ = true;
}

void TargetEnd::open_gate() {
  const runtime::Ownership from = gate_.ownership();
  if (!gate_.step(runtime::OwnershipEvent::kTake).ok()) {
    world_.fail("the target's gate does not open");
  }
  world_.coverage.gates.emplace(from, runtime::OwnershipEvent::kTake);
}

void TargetEnd::shut_out() {
  world_.link_harmed = true;
  world_.source_given_up = true;
  for (Receivers& one : epochs_) {
    shut(one);
  }
  world_.add_actor(Process::kTarget, "target abandons", abandon());
}

/// Its patience is longer than any run.
Task TargetEnd::linger() {
  co_await until([this] { return brain_.may_show(); });
  (void)feed({.kind = Input::Kind::kLingerOver});
}

Outcome TargetEnd::keep_stale() {
  const auto runs =
      runtime::wire::decode_runs(reading_.header, reading_.payload, world_.layout.pages());
  if (!runs.ok()) {
    world_.fail("a stale set that cannot be right");
    return base::Err{runs.error()};
  }
  stale_.insert(stale_.end(), runs.value().begin(), runs.value().end());
  return base::Done{};
}

Outcome TargetEnd::apply_stale() {
  for (const PageRange& run : stale_) {
    receiver_.on_stale(run);
  }
  stale_.clear();
  const auto claimed = map_.claimed().value;
  const auto applied = feed({.kind = Input::Kind::kDone,
                             .task = TargetTask{.kind = Job::Kind::kApplyStale},
                             .number = claimed});
  if (!applied.ok() && claimed != 0) {
    world_.fail("a claim of the pre-pass outlives the final delta");
  }
  return applied;
}

void TargetEnd::tell(FrameType type, std::span<const std::byte> payload) {
  now_->control->to_source.send({.type = type}, payload);
}

}  // namespace towline::simulation
