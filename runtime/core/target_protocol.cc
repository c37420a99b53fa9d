#include "runtime/core/target_protocol.h"

#include <utility>

#include <fmt/format.h>

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

}  // namespace

TargetProtocol::TargetProtocol(const MigrationOptions& options, base::PageCount pages,
                               std::span<const TargetRule> rules)
    : options_(options), pages_(pages), rules_(rules) {
}

Outcome TargetProtocol::on(const TargetInput& input) {
  now_ = input.at;
  TRY(take(input));
  if (owes_status(now_)) {
    show();
  }
  show_link();
  return base::Done{};
}

std::vector<TargetEffect> TargetProtocol::take_effects() {
  return std::exchange(effects_, {});
}

std::vector<TargetTask> TargetProtocol::take_tasks() {
  return std::exchange(tasks_, {});
}

std::optional<TargetTask> TargetProtocol::take_load_task() {
  if (load_tasks_.empty()) {
    return std::nullopt;
  }
  TargetTask task = std::move(load_tasks_.front());
  load_tasks_.pop_front();
  return task;
}

bool TargetProtocol::may_load() const {
  return !ending_ && state_ != TargetState::kFailed && !entered_at_ns_.has_value();
}

// ---- inputs -------------------------------------------------------------------------------------

Outcome TargetProtocol::take(const TargetInput& input) {
  using Kind = TargetInput::Kind;
  // clang-format off
  switch (input.kind) {
    case Kind::kControlProven:   return on_control_proven(input);
    case Kind::kLaneProven:      return on_lane_proven(input.hello);
    case Kind::kGreetingOverdue: return on_greeting_overdue();
    case Kind::kDescribed:       return on_described(input.number);
    case Kind::kMisdescribed:    return on_misdescribed();
    case Kind::kFrame:           return on_frame(input);
    case Kind::kControlEnded:    return on_control_ended(input);
    case Kind::kFenced:          return on_fenced(input.epoch);
    case Kind::kNothingArrives:  return on_nothing_arrives(input);
    case Kind::kLaneEnded:       return on_lane_ended(input);
    case Kind::kLaneReplaced:    return on_lane_replaced(input);
    case Kind::kNoRoom:          return on_no_room(*input.error);
    case Kind::kRoomFound:       return on_room_found();
    case Kind::kNothingMissing:  return on_nothing_missing();
    case Kind::kGuestEntered:    return on_guest_entered(input.number);
    case Kind::kTime:            return on_time(input.flag);
    case Kind::kSigns:           return on_signs(input);
    case Kind::kMarkerSilent:    return on_marker_silent(input);
    case Kind::kLingerOver:      return on_linger_over();
    case Kind::kDone:            return on_done(input);
    case Kind::kPause:           return on_pause();
    case Kind::kLetIn:           return on_let_in();
    case Kind::kSourceLoss:      return on_source_loss(input);
    case Kind::kGiveUpSource:    return on_give_up_source(input.policy);
    case Kind::kEnding:          return on_ending();
  }
  // clang-format on
  __builtin_unreachable();
}

// Only these are waited for.
Outcome TargetProtocol::on_done(const TargetInput& input) {
  using Kind = TargetTask::Kind;
  const Kind kind = input.task->kind;
  if (kind == Kind::kAwaitMarkers && round_.has_value()) {
    give(Kind::kApplyStale);
    return base::Done{};
  }
  if (kind == Kind::kApplyStale && round_.has_value()) {
    return on_stale_applied(input.number);
  }
  if (kind == Kind::kAwaitLanes) {
    return on_lanes_here(input.task->frame);
  }
  if (kind == Kind::kAnswerNever && tombstone_ == Tombstone::kWritten) {
    tombstone_ = Tombstone::kTold;
    return base::Done{};
  }
  if (kind == Kind::kLoad) {
    return on_loaded(input.error);
  }
  if (kind == Kind::kTellRunning && entered_at_ns_.has_value() && !told_running_) {
    told_running_ = true;
    return base::Done{};
  }
  if (kind == Kind::kPoison || kind == Kind::kEndGuest) {
    return on_loss_settled(input);
  }
  return fail(ErrorKind::kRefused, "task", "nobody waits for that");
}

// ---- the session --------------------------------------------------------------------------------

bool TargetProtocol::may(TargetEvent event) const {
  return runtime::step(rules_, state_, event).ok();
}

// The one writer of state_. A tombstone comes first of all: whoever sees the state, or its status,
// may act on it at once.
Outcome TargetProtocol::step(TargetEvent event) {
  const TargetRule rule = TRY(runtime::step(rules_, state_, event));
  if (rule.act == TargetAction::kNeverWill || rule.act == TargetAction::kDropHalf) {
    bury();
  }
  state_ = rule.to;
  emit(TargetEffect::Kind::kStepped).rule = rule;
  if (is_final(status_of(state_))) {
    ended_ = now_;
  }
  note_alone();
  show();
  act(rule);
  return base::Done{};
}

void TargetProtocol::act(const TargetRule& rule) {
  switch (rule.act) {
    case TargetAction::kLoad:
      load_tasks_.push_back({.kind = TargetTask::Kind::kLoad});
      break;
    case TargetAction::kRun:
      emit(TargetEffect::Kind::kOpenGate);
      load_tasks_.push_back({.kind = TargetTask::Kind::kStartGuest});
      break;
    case TargetAction::kFinish:
      give(TargetTask::Kind::kFinish);
      break;
    case TargetAction::kTellMissing:
      if (link_ != Link::kComparing) {  // Otherwise it was told while the machine was loaded.
        give(TargetTask::Kind::kTellMissing);
      }
      break;
    case TargetAction::kAskAgain:
      give(TargetTask::Kind::kAskAgain);
      break;
    case TargetAction::kShutOut:
      lanes_end_ = true;
      emit(TargetEffect::Kind::kShutOut).policy = giving_up_;
      break;
    case TargetAction::kNeverWill:  // Done already: the tombstone.
    case TargetAction::kDropHalf:
    case TargetAction::kNone:
      break;
  }
}

void TargetProtocol::bury() {
  if (tombstone_ == Tombstone::kNone) {
    tombstone_ = Tombstone::kWritten;
    emit(TargetEffect::Kind::kTombstone);
  }
}

void TargetProtocol::note_alone() {
  const bool away = state_ == TargetState::kRunningAlone || state_ == TargetState::kLoadedAlone;
  if (away && !lost_since_.has_value()) {
    lost_since_ = now_;
  } else if (state_ == TargetState::kRunning || state_ == TargetState::kLoaded) {
    lost_since_.reset();
    no_room_for_more_ = false;
  }
  if (state_ == TargetState::kRunning) {
    alone_since_.reset();
  } else if (state_ == TargetState::kRunningAlone && !alone_since_.has_value()) {
    alone_since_ = now_;
    emit(TargetEffect::Kind::kSourceAway);
  }
}

Outcome TargetProtocol::on_described(std::uint64_t bulk_lanes) {
  if (source_ != Source::kGreeted) {
    return fail(ErrorKind::kRefused, "description", "no source is to describe its guest");
  }
  TRY(step(TargetEvent::kDescriptionAccepted));
  source_ = Source::kKnown;
  lanes_.push_back({.name = {wire::LaneRole::kUrgent, 0}});
  for (std::uint64_t number = 0; number < bulk_lanes; ++number) {
    lanes_.push_back({.name = {wire::LaneRole::kBulk, static_cast<std::uint8_t>(number)}});
  }
  return base::Done{};
}

// ---- loading and starting -----------------------------------------------------------------------

// An order that was read meanwhile is obeyed now; what became of the link is looked at after it.
Outcome TargetProtocol::on_loaded(const std::optional<base::Error>& error) {
  if (!error.has_value()) {
    TRY(step(TargetEvent::kStateLoaded));
    if (order_read_) {
      TRY(step(TargetEvent::kRunOrdered));
    }
    settle_link();
    return base::Done{};
  }
  if (!may(TargetEvent::kLoadFailed)) {
    return fail(ErrorKind::kRefused, "load", "nothing is being loaded");
  }
  error_ = base::to_string(*error);
  if (!ending_) {
    lingers_until_ = now_ + kLinger;
  }
  TRY(step(TargetEvent::kLoadFailed));
  if (lingers_until_.has_value()) {
    emit(TargetEffect::Kind::kLinger);
  }
  give(TargetTask::Kind::kTellNever).text = error_;
  return base::Done{};
}

// What happened to the link while nobody could step.
void TargetProtocol::settle_link() {
  if (link_ == Link::kTied) {
    return;
  }
  [[maybe_unused]] const auto lost = step(TargetEvent::kLinkLost);
  if (link_ == Link::kComparing) {
    [[maybe_unused]] const auto again = step(TargetEvent::kReconnected);
  }
}

Outcome TargetProtocol::on_guest_entered(std::uint64_t at_ns) {
  const bool ordered = state_ == TargetState::kRunning || state_ == TargetState::kRunningAlone ||
                       state_ == TargetState::kRunningRecovering || shuts_out(state_);
  if (!ordered || entered_at_ns_.has_value()) {
    return fail(ErrorKind::kRefused, "guest entered", "nobody was to start the guest");
  }
  entered_at_ns_ = at_ns;
  give(TargetTask::Kind::kTellRunning);
  return base::Done{};
}

// The guest's first steps may bring the last page: the source hears first that it runs.
Outcome TargetProtocol::on_nothing_missing() {
  if (!told_running_) {
    return fail(ErrorKind::kRefused, "nothing missing", "the source was not told that it runs");
  }
  return step(TargetEvent::kNothingMissing);
}

// A process that ends with its failure would leave a source without an answer parked for ever.
Outcome TargetProtocol::on_linger_over() {
  if (!lingers_until_.has_value() || (!may_show() && now_ < *lingers_until_)) {
    return fail(ErrorKind::kRefused, "linger", "the source may still ask");
  }
  lingers_until_.reset();
  if (!ending_) {
    show();
  }
  return base::Done{};
}

TargetEffect& TargetProtocol::emit(TargetEffect::Kind kind) {
  return effects_.emplace_back(TargetEffect{.kind = kind});
}

TargetTask& TargetProtocol::give(TargetTask::Kind kind) {
  return tasks_.emplace_back(TargetTask{.kind = kind});
}

}  // namespace towline::runtime
