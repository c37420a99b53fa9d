#include "runtime/core/source_session.h"

#include <algorithm>

#include <fmt/format.h>

namespace towline::runtime {

std::string_view to_string(SourceState state) {
  switch (state) {
    case SourceState::kConnecting:
      return "connecting";
    case SourceState::kDescribing:
      return "describing";
    case SourceState::kPassing:
      return "passing";
    case SourceState::kSyncing:
      return "syncing";
    case SourceState::kSwitching:
      return "switching";
    case SourceState::kOrdered:
      return "ordered";
    case SourceState::kServing:
      return "serving";
    case SourceState::kOrderedPaused:
      return "ordered-paused";
    case SourceState::kServingPaused:
      return "serving-paused";
    case SourceState::kOrderedReconnecting:
      return "ordered-reconnecting";
    case SourceState::kServingReconnecting:
      return "serving-reconnecting";
    case SourceState::kOrderedRecovering:
      return "ordered-recovering";
    case SourceState::kServingRecovering:
      return "serving-recovering";
    case SourceState::kCompleted:
      return "completed";
    case SourceState::kFailed:
      return "failed";
    case SourceState::kCancelled:
      return "cancelled";
  }
  __builtin_unreachable();
}

std::string_view to_string(SourceEvent event) {
  switch (event) {
    case SourceEvent::kLanesReady:
      return "lanes-ready";
    case SourceEvent::kAccepted:
      return "accepted";
    case SourceEvent::kRefused:
      return "refused";
    case SourceEvent::kPassesDone:
      return "passes-done";
    case SourceEvent::kSwitchNow:
      return "switch-now";
    case SourceEvent::kSwitchFailed:
      return "switch-failed";
    case SourceEvent::kOrderSent:
      return "order-sent";
    case SourceEvent::kTargetRunning:
      return "target-running";
    case SourceEvent::kTargetNever:
      return "target-never";
    case SourceEvent::kTargetComplete:
      return "target-complete";
    case SourceEvent::kLinkLost:
      return "link-lost";
    case SourceEvent::kCancel:
      return "cancel";
    case SourceEvent::kReconnect:
      return "reconnect";
    case SourceEvent::kReconnected:
      return "reconnected";
    case SourceEvent::kTargetLoaded:
      return "target-loaded";
    case SourceEvent::kCompared:
      return "compared";
    case SourceEvent::kTakeBack:
      return "take-back";
  }
  __builtin_unreachable();
}

std::string_view to_string(SourceAction action) {
  switch (action) {
    case SourceAction::kNone:
      return "none";
    case SourceAction::kDescribe:
      return "describe";
    case SourceAction::kBeginPass:
      return "begin-pass";
    case SourceAction::kBeginSync:
      return "begin-sync";
    case SourceAction::kPark:
      return "park";
    case SourceAction::kOrder:
      return "order";
    case SourceAction::kPush:
      return "push";
    case SourceAction::kResumeGuest:
      return "resume-guest";
    case SourceAction::kStayParked:
      return "stay-parked";
    case SourceAction::kRelease:
      return "release";
    case SourceAction::kCompare:
      return "compare";
    case SourceAction::kOrderAgain:
      return "order-again";
    case SourceAction::kNoteRunning:
      return "note-running";
  }
  __builtin_unreachable();
}

MigrationStatus status_of(SourceState state) {
  switch (state) {
    case SourceState::kConnecting:
    case SourceState::kDescribing:
      return MigrationStatus::kSetup;
    case SourceState::kPassing:
    case SourceState::kSyncing:
      return MigrationStatus::kActive;
    case SourceState::kSwitching:
      return MigrationStatus::kDevice;
    case SourceState::kOrdered:
      return MigrationStatus::kPostcopyDevice;
    case SourceState::kServing:
      return MigrationStatus::kPostcopyActive;
    case SourceState::kOrderedPaused:
    case SourceState::kServingPaused:
      return MigrationStatus::kPostcopyPaused;
    case SourceState::kOrderedReconnecting:
    case SourceState::kServingReconnecting:
      return MigrationStatus::kPostcopyRecoverSetup;
    case SourceState::kOrderedRecovering:
    case SourceState::kServingRecovering:
      return MigrationStatus::kPostcopyRecover;
    case SourceState::kCompleted:
      return MigrationStatus::kCompleted;
    case SourceState::kFailed:
      return MigrationStatus::kFailed;
    case SourceState::kCancelled:
      return MigrationStatus::kCancelled;
  }
  __builtin_unreachable();
}

bool before_order(SourceState state) {
  switch (state) {
    case SourceState::kConnecting:
    case SourceState::kDescribing:
    case SourceState::kPassing:
    case SourceState::kSyncing:
    case SourceState::kSwitching:
    case SourceState::kFailed:
    case SourceState::kCancelled:
      return true;
    case SourceState::kOrdered:
    case SourceState::kServing:
    case SourceState::kOrderedPaused:
    case SourceState::kServingPaused:
    case SourceState::kOrderedReconnecting:
    case SourceState::kServingReconnecting:
    case SourceState::kOrderedRecovering:
    case SourceState::kServingRecovering:
    case SourceState::kCompleted:
      return false;
  }
  __builtin_unreachable();
}

bool is_paused(SourceState state) {
  return state == SourceState::kOrderedPaused || state == SourceState::kServingPaused;
}

bool is_recovering(SourceState state) {
  return state == SourceState::kOrderedRecovering || state == SourceState::kServingRecovering;
}

base::Expected<SourceRule> step(SourceState state, SourceEvent event) {
  return step(kSourceRules, state, event);
}

base::Expected<SourceRule> step(std::span<const SourceRule> rules, SourceState state,
                                SourceEvent event) {
  const auto rule = std::find_if(rules.begin(), rules.end(), [&](const SourceRule& one) {
    return one.from == state && one.on == event;
  });
  if (rule == rules.end()) {
    return base::fail(base::ErrorKind::kCorrupt, "source session",
                      fmt::format("'{}' is impossible while the source is '{}'", to_string(event),
                                  to_string(state)));
  }
  return *rule;
}

}  // namespace towline::runtime
