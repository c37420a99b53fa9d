// What the target's user sees of the session: its status, which is a promise, and the link.
#include "runtime/core/target_protocol.h"

namespace towline::runtime {

LinkState TargetProtocol::link() const {
  switch (state_) {
    case TargetState::kLoading:
    case TargetState::kLoaded:
    case TargetState::kRunning:
    case TargetState::kLoadedRecovering:
    case TargetState::kRunningRecovering:
      return link_ == Link::kTied   ? LinkState::kUp
             : link_ == Link::kLost ? LinkState::kLost
                                    : LinkState::kRecovering;
    case TargetState::kLoadedAlone:
    case TargetState::kRunningAlone:
    case TargetState::kAbandoning:
      return LinkState::kLost;
    case TargetState::kListening:
    case TargetState::kReceiving:
    case TargetState::kCompleted:
      return LinkState::kUp;
    case TargetState::kPoisoned:
    case TargetState::kLost:
    case TargetState::kFailed:
      return link_shown_;  // Who has given its source up has no link by that.
  }
  __builtin_unreachable();
}

// Most losses are over within milliseconds, and managers take postcopy-paused for a failure. What
// needs somebody's hand shows at once; and what was shown stays until the link is tied.
bool TargetProtocol::heals_by_itself(base::Instant now) const {
  return !shows_a_loss(shown_) && lost_since_.has_value() &&
         now - *lost_since_ < base::Duration(options_.paused_after) && !held_ && !no_room_for_more_;
}

MigrationStatus TargetProtocol::status_at(base::Instant now) const {
  switch (state_) {
    case TargetState::kLoadedAlone:
    case TargetState::kLoadedRecovering:
      return heals_by_itself(now) ? status_of(TargetState::kLoaded) : status_of(state_);
    case TargetState::kRunningAlone:
    case TargetState::kRunningRecovering:
      return heals_by_itself(now) ? status_of(TargetState::kRunning) : status_of(state_);
    case TargetState::kListening:
    case TargetState::kReceiving:
    case TargetState::kLoading:
    case TargetState::kLoaded:
    case TargetState::kRunning:
    case TargetState::kAbandoning:
    case TargetState::kCompleted:
    case TargetState::kPoisoned:
    case TargetState::kLost:
    case TargetState::kFailed:
      return status_of(state_);
  }
  __builtin_unreachable();
}

bool TargetProtocol::owes_status(base::Instant now) const {
  return lost_since_.has_value() && !lingers_until_.has_value() && !ending_ &&
         status_at(now) != shown_;
}

void TargetProtocol::show_link() {
  if (const LinkState now = link(); now != link_shown_) {
    link_shown_ = now;
    emit(TargetEffect::Kind::kShowLink).link = now;
  }
}

void TargetProtocol::show() {
  const MigrationStatus status = status_at(now_);
  if (!lingers_until_.has_value() && status != shown_) {
    shown_ = status;
    emit(TargetEffect::Kind::kShow).status = status;
  }
}

}  // namespace towline::runtime
