#include "runtime/core/source_protocol.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/ensure.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

// Guess: a link that flaps is back in milliseconds; one that does not is asked for gently.
constexpr std::chrono::milliseconds kFirstPause{10};
constexpr std::chrono::milliseconds kLongestPause{2000};

bool is_frame(SourceInput::Kind kind) {
  return kind >= SourceInput::Kind::kAccept && kind <= SourceInput::Kind::kBeat;
}

}  // namespace

SourceProtocol::SourceProtocol(Uri target, const MigrationOptions& options, base::PageCount pages,
                               std::span<const SourceRule> rules)
    : options_(options),
      pages_(pages),
      rules_(rules),
      target_(std::move(target)),
      backoff_(kFirstPause, kLongestPause) {
}

Outcome SourceProtocol::on(const SourceInput& input) {
  now_ = input.at;
  TRY(take(input));
  consider();
  show_loss();
  return base::Done{};
}

std::vector<SourceEffect> SourceProtocol::take_effects() {
  return std::exchange(effects_, {});
}

std::optional<base::Instant> SourceProtocol::deadline() const {
  return task_.has_value() ? std::nullopt : deadline_;
}

// ---- inputs -------------------------------------------------------------------------------------

Outcome SourceProtocol::take(const SourceInput& input) {
  using Kind = SourceInput::Kind;
  if (is_frame(input.kind) && !link_.control_open) {
    return fail(ErrorKind::kCorrupt, "control frame",
                "a frame of a control lane that is not there");
  }
  // clang-format off
  switch (input.kind) {
    case Kind::kBegin:        begin(); break;
    case Kind::kInherit:      inherit(input); break;
    case Kind::kTime:         break;
    case Kind::kDone:         return on_done(input);
    case Kind::kAccept:       accepted_ = true; break;
    case Kind::kRefuse:       link_.refused = input.text; break;
    case Kind::kStaleApplied: ++rounds_applied_; break;
    case Kind::kRunning:      return on_running(input);
    case Kind::kNever:        never_ = input.text; break;
    case Kind::kComplete:     return on_complete();
    case Kind::kMissing:
    case Kind::kMissingEnd:   return on_missing(input);
    case Kind::kLaneLost:     return on_lane_lost(input);
    case Kind::kNoRoom:
    case Kind::kRoomAgain:    return on_room(input);
    case Kind::kBeat:         link_.target_idle = link_.counts_frames && input.flag; break;
    case Kind::kControlEnded:
    case Kind::kLinkLost:
    case Kind::kLaneBroken:   on_loss(input); break;
    case Kind::kSwitchWord:   ask_for_switch(); break;
    case Kind::kCancel:       return cancel();
    case Kind::kPause:        return pause();
    case Kind::kResume:       return resume(input.address);
    case Kind::kContinue:     return continue_switch();
    case Kind::kTakeBack:     return take_back();
    case Kind::kLeave:        leave(); break;
  }
  // clang-format on
  return base::Done{};
}

void SourceProtocol::begin() {
  show(MigrationStatus::kSetup);
  give({.kind = SourceTask::Kind::kOpenControl, .at = target_});
}

// The process that gave the order is gone: its link counts as lost, and what the ledger knew of it
// is where this session begins.
void SourceProtocol::inherit(const SourceInput& input) {
  epoch_ = input.epoch;
  target_incarnation_ = input.number;
  error_ = input.text;
  lost_at_ = now_;
  if (input.flag) {
    running_at_ns_ = 0;
  }
  state_ = input.flag ? SourceState::kServingPaused : SourceState::kOrderedPaused;
  show(status_at(now_));
  give({.kind = SourceTask::Kind::kDropEpoch});
}

// ---- what follows -------------------------------------------------------------------------------

SourceEffect& SourceProtocol::emit(SourceEffect::Kind kind) {
  return effects_.emplace_back(SourceEffect{.kind = kind});
}

void SourceProtocol::give(SourceTask task) {
  ENSURE(!task_.has_value(), "one task at a time");
  task_ = std::move(task);
  task_->epoch = epoch_;
  wait_for(Wait::kNothing);
}

void SourceProtocol::wait_for(Wait wait, std::optional<base::Duration> patience) {
  wait_ = wait;
  deadline_.reset();
  if (patience.has_value()) {
    deadline_ = now_ + *patience;
  }
}

void SourceProtocol::show(MigrationStatus status) {
  if (status != shown_) {
    shown_ = status;
    emit(SourceEffect::Kind::kShow).status = status;
  }
}

void SourceProtocol::step(SourceEvent event) {
  const auto stepped = runtime::step(rules_, state_, event);
  ENSURE(stepped.ok(), "who steps has asked the table, or is where the event is due");
  const SourceRule& rule = stepped.value();
  state_ = rule.to;
  emit(SourceEffect::Kind::kStepped).rule = rule;
  act(rule);
  show(status_at(now_));
}

// What a step asks for. Whatever ends the session ends its lanes too.
void SourceProtocol::act(const SourceRule& rule) {
  switch (rule.act) {
    case SourceAction::kNone:
      break;
    case SourceAction::kDescribe:
      give({.kind = SourceTask::Kind::kDescribe});
      break;
    case SourceAction::kBeginPass:
      begin_pass();
      break;
    case SourceAction::kBeginSync:
      begin_sync();
      break;
    case SourceAction::kPark:
      give({.kind = SourceTask::Kind::kAwaitPageServer});
      break;
    case SourceAction::kOrder:
      emit(SourceEffect::Kind::kOrder);
      give({.kind = SourceTask::Kind::kSendFlight});
      break;
    case SourceAction::kNoteRunning:
      emit(SourceEffect::Kind::kTargetRuns);
      break;
    case SourceAction::kResumeGuest:
      emit(SourceEffect::Kind::kGiveBack).rule = rule;
      break;
    case SourceAction::kStayParked:
      lost_at_ = lost_at_.value_or(now_);
      emit(SourceEffect::Kind::kCloseLanes);
      give({.kind = SourceTask::Kind::kDropEpoch});
      break;
    case SourceAction::kRelease:
      emit(SourceEffect::Kind::kRelease);
      break;
    case SourceAction::kCompare:
      begin_comparison();
      break;
    case SourceAction::kOrderAgain:
      give({.kind = SourceTask::Kind::kOrderAgain});
      break;
    case SourceAction::kPush:
      give({.kind = SourceTask::Kind::kStartPush});
      break;
  }
  if (is_final(status_of(rule.to))) {
    emit(SourceEffect::Kind::kCloseLanes);
    wait_for(Wait::kOver);
  }
}

void SourceProtocol::consider() {
  while (!task_.has_value() && advance()) {
  }
}

// False: nothing follows before the next input.
bool SourceProtocol::advance() {
  switch (wait_) {
    case Wait::kNothing:
    case Wait::kOver:
      return false;
    case Wait::kAccept:
    case Wait::kRoundApplied:
    case Wait::kManualPause:
    case Wait::kSwitchWord:
    case Wait::kSwitchover:
      return advance_to_switch();
    case Wait::kRunning:
    case Wait::kPushed:
    case Wait::kLaneMissing:
      return advance_push();
    case Wait::kControlEnd:
    case Wait::kRetry:
    case Wait::kComparison:
      return advance_recovery();
  }
  __builtin_unreachable();
}

Outcome SourceProtocol::on_done(const SourceInput& input) {
  ENSURE(task_.has_value() && task_->kind == *input.task, "the task that was given is done");
  const SourceTask done = *std::exchange(task_, std::nullopt);
  if (wait_ == Wait::kOver) {  // Taken back meanwhile: whatever it found is of no use.
    emit(SourceEffect::Kind::kCloseLanes);
  } else if (input.error.has_value()) {
    on_failure(done, *input.error);
  } else {
    on_success(done, input);
  }
  return base::Done{};
}

void SourceProtocol::on_success(const SourceTask& task, const SourceInput& input) {
  using Kind = SourceTask::Kind;
  switch (task.kind) {
    case Kind::kOpenControl:
      return task.epoch == 1 ? on_opened(input) : on_reopened(task, input);
    case Kind::kDescribe:
      return wait_for(Wait::kAccept, options_.handshake_timeout);
    case Kind::kOpenLanes:
      return on_lanes_open();
    case Kind::kFindPageServer:
      return proceed() ? step(SourceEvent::kAccepted) : void();
    case Kind::kBeginLog:
      has_rounds_ = true;
      return run_pass(1);
    case Kind::kRunPass:
      return on_pass(task.pass, input.flag);
    case Kind::kSendRound:
      last_round_ = input.number;
      return wait_for(Wait::kRoundApplied);
    case Kind::kAwaitPageServer:
      return proceed() ? give({.kind = Kind::kPark}) : void();
    case Kind::kPark:
      return on_parked();
    case Kind::kPrepareFlight:
      // The point of no return is here, not in send()'s success: a user's cancel is before it or
      // too late.
      return proceed() ? step(SourceEvent::kOrderSent) : void();
    case Kind::kSendFlight:
      return wait_for(Wait::kRunning);
    case Kind::kStartPush:
      return wait_for(Wait::kPushed);
    case Kind::kEndLane:
      return next_try();
    case Kind::kOpenInPlace:
      return on_opened_in_place(task);
    case Kind::kPutInPlace:
      return on_put_in_place(task);
    case Kind::kFinish:
      return step(SourceEvent::kTargetComplete);
    case Kind::kReadToTheEnd:
      return settle();
    case Kind::kSayCancelled:
      return step(SourceEvent::kCancel);
    case Kind::kDropEpoch:
      return on_dropped(input.number);
    case Kind::kOpenLanesAgain:
      return proceed() ? give({.kind = Kind::kResume, .at = task.at}) : void();
    case Kind::kResume:
      return on_resumed();
    case Kind::kOrderAgain:
      recovered();
      return wait_for(Wait::kRunning);
  }
}

void SourceProtocol::on_failure(const SourceTask& task, const base::Error& reason) {
  using Kind = SourceTask::Kind;
  if (task.kind == Kind::kSendFlight) {
    // Whether the order arrived is not known. Nobody runs the guest here.
    lose(reason);
    return wait_for(Wait::kRunning);
  }
  if (task.kind == Kind::kOpenInPlace) {
    return not_replaced(base::to_string(reason));
  }
  if (task.kind == Kind::kSayCancelled || task.kind == Kind::kFinish) {
    return on_success(task, {});  // Who is told does not depend on it.
  }
  save_failed_ = task.kind == Kind::kPark || task.kind == Kind::kPrepareFlight;
  end(reason);
}

// The user's cancel counts before the order only; the target's words explain a lost lane.
Outcome SourceProtocol::interrupted() const {
  if (cancel_ && before_order(state_)) {
    return fail(ErrorKind::kRefused, "migrate", "cancelled by the user");
  }
  if (never_.has_value()) {
    return fail(ErrorKind::kRefused, "migrate",
                fmt::format("the target cannot run this guest: {}", *never_));
  }
  if (link_.refused.has_value()) {
    return fail(ErrorKind::kRefused, "migrate",
                fmt::format("the target refused the guest: {}", *link_.refused));
  }
  if (link_.lost.has_value() && !complete_) {
    return base::Err{*link_.lost};
  }
  return base::Done{};
}

// False: something has ended what is being done, and the end is under way.
bool SourceProtocol::proceed() {
  const auto ended = interrupted();
  if (!ended.ok()) {
    end(ended.error());
  }
  return ended.ok();
}

}  // namespace towline::runtime
