// What the source's user may ask, and when; and what he is told.
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/core/source_protocol.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

}  // namespace

void SourceProtocol::ask_for_switch() {
  switch_asked_ = true;
  if (before_order(state_)) {
    emit(SourceEffect::Kind::kCutPass);
  }
}

Outcome SourceProtocol::cancel() {
  if (is_final(shown_) || is_final(status_of(state_))) {
    return base::Done{};
  }
  if (!before_order(state_)) {
    return fail(ErrorKind::kRefused, "cancel",
                "Postcopy migration in progress, cannot cancel: the guest belongs to the target "
                "since the run order");
  }
  cancel_ = true;
  show(MigrationStatus::kCancelling);
  emit(SourceEffect::Kind::kStopPass);
  emit(SourceEffect::Kind::kEndWaiting);
  return base::Done{};
}

Outcome SourceProtocol::pause() {
  if (before_order(state_) || is_final(shown_) || is_paused(state_)) {
    return fail(ErrorKind::kRefused, "pause",
                "migrate-pause is currently only supported during postcopy-active or "
                "postcopy-recover state");
  }
  held_ = true;
  // What a target says in the middle of a recovery is asked for again in the next one.
  link_.silent = link_.silent || is_recovering(state_);
  lose(base::Error{ErrorKind::kDisconnected, 0, "pause", "paused by the user"});
  return base::Done{};
}

Outcome SourceProtocol::resume(const std::optional<Uri>& at) {
  if (!is_paused(state_)) {
    return fail(ErrorKind::kRefused, "resume", "Cannot resume if there is no paused migration");
  }
  resume_at_ = at.value_or(target_);
  // What is tried by itself may be an address that never answers.
  emit(SourceEffect::Kind::kEndWaiting);
  return base::Done{};
}

Outcome SourceProtocol::continue_switch() {
  if (wait_ != Wait::kSwitchover) {
    return fail(ErrorKind::kRefused, "continue",
                fmt::format("Migration not in expected state: {}", to_string(shown_)));
  }
  continued_ = true;
  return base::Done{};
}

// At once: an attempt that is under way finds the session over, and no order can follow.
Outcome SourceProtocol::take_back() {
  if (running_at_ns_.has_value()) {
    return fail(ErrorKind::kRefused, "take back",
                "refused for good: the target said that the guest runs there; what it did since "
                "would be undone, and only the target can have its present memory");
  }
  if (!runtime::step(rules_, state_, SourceEvent::kTakeBack).ok()) {
    return fail(ErrorKind::kRefused, "take back",
                fmt::format("the source is '{}'; only a guest whose run order may be lost can be "
                            "taken back (migrate-pause ends an attempt to reconnect)",
                            to_string(state_)));
  }
  error_ = "taken back by the user, who vouches that the target does not run the guest";
  attempt_error_.clear();
  emit(SourceEffect::Kind::kTakenBack);
  emit(SourceEffect::Kind::kEndWaiting);
  step(SourceEvent::kTakeBack);
  return base::Done{};
}

void SourceProtocol::leave() {
  cancel_ = true;
  leave_ = true;
  emit(SourceEffect::Kind::kEndWaiting);
  emit(SourceEffect::Kind::kCloseLanes);
}

// ---- what the user sees -------------------------------------------------------------------------

// What ends as agreed is no loss; and a session that ended without a link did not get one by that.
LinkState SourceProtocol::link() const {
  if (is_recovering(state_)) {
    return LinkState::kRecovering;
  }
  if (state_ == SourceState::kFailed || state_ == SourceState::kCancelled) {
    return link_shown_;
  }
  const bool agreed = complete_ || never_.has_value();
  const bool lost = !before_order(state_) && link_.lost.has_value() && !agreed;
  return lost || shows_a_loss(status_of(state_)) ? LinkState::kLost : LinkState::kUp;
}

// Most losses are over within milliseconds, and managers take postcopy-paused for a failure. What
// needs somebody's hand shows at once; and what was shown stays until the link is tied.
bool SourceProtocol::heals_by_itself(base::Instant now) const {
  return !shows_a_loss(shown_) && lost_at_.has_value() &&
         now - *lost_at_ < base::Duration(options_.paused_after) && options_.auto_recover &&
         !held_ && !by_hand_ && !turned_away_;
}

MigrationStatus SourceProtocol::status_at(base::Instant now) const {
  switch (state_) {
    case SourceState::kOrderedPaused:
    case SourceState::kOrderedReconnecting:
    case SourceState::kOrderedRecovering:
      return heals_by_itself(now) ? status_of(SourceState::kOrdered) : status_of(state_);
    case SourceState::kServingPaused:
    case SourceState::kServingReconnecting:
    case SourceState::kServingRecovering:
      return heals_by_itself(now) ? status_of(SourceState::kServing) : status_of(state_);
    case SourceState::kSwitching:
      if (options_.pause_before_switchover && !continued_) {
        return wait_ == Wait::kSwitchover ? MigrationStatus::kPreSwitchover
                                          : MigrationStatus::kActive;
      }
      return status_of(state_);
    case SourceState::kConnecting:
    case SourceState::kDescribing:
    case SourceState::kPassing:
    case SourceState::kSyncing:
    case SourceState::kOrdered:
    case SourceState::kServing:
    case SourceState::kCompleted:
    case SourceState::kFailed:
    case SourceState::kCancelled:
      return status_of(state_);
  }
  __builtin_unreachable();
}

bool SourceProtocol::owes_status(base::Instant now) const {
  return lost_at_.has_value() && status_at(now) != shown_;
}

void SourceProtocol::show_loss() {
  if (owes_status(now_)) {
    show(status_at(now_));
  }
  if (const LinkState now = link(); now != link_shown_) {
    link_shown_ = now;
    emit(SourceEffect::Kind::kShowLink).link = now;
  }
}

// ---- answers ------------------------------------------------------------------------------------

std::string SourceProtocol::reason() const {
  if (error_.empty() && link() == LinkState::kLost && link_.lost.has_value()) {
    return base::to_string(*link_.lost);  // The target's last words are still waited for.
  }
  return attempt_error_.empty() ? error_
                                : fmt::format("{}; last attempt: {}", error_, attempt_error_);
}

std::optional<double> SourceProtocol::last_recovery_ms() const {
  if (!last_recovery_.has_value()) {
    return std::nullopt;
  }
  return std::chrono::duration<double, std::milli>(*last_recovery_).count();
}

std::string SourceProtocol::no_room() const {
  return before_order(state_) && !is_final(shown_) ? no_room_.value_or("") : "";
}

bool SourceProtocol::is_watched() const {
  return state_ == SourceState::kOrdered || state_ == SourceState::kServing ||
         is_recovering(state_);
}

// All that decides what follows. Texts, times and counts for the report are left out.
std::string SourceProtocol::dump() const {
  std::string broken;
  for (const BrokenLane& one : link_.broken) {
    broken += fmt::format("{:x}/{} ", lane_code(one.lane), one.attempt);
  }
  return fmt::format(
      "state={} wait={} task={}/{} shown={} end={} accepted={} refused={} never={} running={} "
      "complete={} incarnation={} rounds={}/{}/{} passes={} lanes={} log={} room={}{} saved={} "
      "epoch={} control={}{} replaces={} counts={} lost={} silent={} runs={} told={}/{}/{}/{} "
      "idle={} attempts={}/{}/{} tries={} broken=[{}] again={}/{} by_hand={} cancel={} switch={} "
      "held={} leave={} resume={} link={} turned_away={} continued={}",
      to_string(state_), static_cast<int>(wait_),
      task_.has_value() ? to_string(task_->kind) : "none", task_.has_value() ? task_->pass : 0,
      to_string(shown_), static_cast<int>(end_reason_.kind), accepted_, link_.refused.has_value(),
      never_.has_value(), running_at_ns_.has_value(), complete_, target_incarnation_,
      rounds_applied_, rounds_expected_, last_round_, passes_done_, lanes_open_, has_rounds_,
      waits_for_room_, no_room_.has_value(), !save_failed_, epoch_, link_.control_open,
      link_.control_ended, link_.replaces_lanes, link_.counts_frames, link_.lost.has_value(),
      link_.silent, link_.runs, link_.missing_told, link_.missing_so_far, link_.missing_pages,
      link_.missing_attempt, link_.target_idle, link_.last_attempt, link_.urgent_attempt,
      fmt::join(link_.bulk_attempts, ","), tries_, broken, attempts_, lost_at_.has_value(),
      by_hand_, cancel_, switch_asked_, held_, leave_, resume_at_.has_value(),
      to_string(link_shown_), turned_away_, continued_);
}

std::string_view SourceProtocol::awaited() const {
  switch (state_) {
    case SourceState::kConnecting:
    case SourceState::kDescribing:
      return "accept";
    case SourceState::kPassing:
    case SourceState::kSyncing:
    case SourceState::kSwitching:
      return "stale-applied";
    case SourceState::kOrdered:
    case SourceState::kOrderedPaused:
      return "running";
    case SourceState::kServing:
    case SourceState::kServingPaused:
      return "complete";
    case SourceState::kOrderedReconnecting:
    case SourceState::kServingReconnecting:
    case SourceState::kOrderedRecovering:
    case SourceState::kServingRecovering:
      return "missing-end";
    case SourceState::kCompleted:
    case SourceState::kFailed:
    case SourceState::kCancelled:
      return "none";
  }
  __builtin_unreachable();
}

}  // namespace towline::runtime
