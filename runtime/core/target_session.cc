#include "runtime/core/target_session.h"

#include <algorithm>

#include <fmt/format.h>

namespace towline::runtime {

std::string_view to_string(TargetState state) {
  switch (state) {
    case TargetState::kListening:
      return "listening";
    case TargetState::kReceiving:
      return "receiving";
    case TargetState::kLoading:
      return "loading";
    case TargetState::kLoaded:
      return "loaded";
    case TargetState::kRunning:
      return "running";
    case TargetState::kLoadedAlone:
      return "loaded-alone";
    case TargetState::kRunningAlone:
      return "running-alone";
    case TargetState::kLoadedRecovering:
      return "loaded-recovering";
    case TargetState::kRunningRecovering:
      return "running-recovering";
    case TargetState::kAbandoning:
      return "abandoning";
    case TargetState::kPoisoned:
      return "poisoned";
    case TargetState::kLost:
      return "lost";
    case TargetState::kCompleted:
      return "completed";
    case TargetState::kFailed:
      return "failed";
  }
  __builtin_unreachable();
}

std::string_view to_string(TargetEvent event) {
  switch (event) {
    case TargetEvent::kDescriptionAccepted:
      return "description-accepted";
    case TargetEvent::kStateReceived:
      return "state-received";
    case TargetEvent::kStateLoaded:
      return "state-loaded";
    case TargetEvent::kLoadFailed:
      return "load-failed";
    case TargetEvent::kRunOrdered:
      return "run-ordered";
    case TargetEvent::kNothingMissing:
      return "nothing-missing";
    case TargetEvent::kLinkLost:
      return "link-lost";
    case TargetEvent::kCancelled:
      return "cancelled";
    case TargetEvent::kReconnected:
      return "reconnected";
    case TargetEvent::kResynced:
      return "resynced";
    case TargetEvent::kSourceGivenUp:
      return "source-given-up";
    case TargetEvent::kPagesPoisoned:
      return "pages-poisoned";
    case TargetEvent::kGuestGivenUp:
      return "guest-given-up";
  }
  __builtin_unreachable();
}

std::string_view to_string(TargetAction action) {
  switch (action) {
    case TargetAction::kNone:
      return "none";
    case TargetAction::kLoad:
      return "load";
    case TargetAction::kRun:
      return "run";
    case TargetAction::kFinish:
      return "finish";
    case TargetAction::kNeverWill:
      return "never-will";
    case TargetAction::kDropHalf:
      return "drop-half";
    case TargetAction::kTellMissing:
      return "tell-missing";
    case TargetAction::kAskAgain:
      return "ask-again";
    case TargetAction::kShutOut:
      return "shut-out";
  }
  __builtin_unreachable();
}

MigrationStatus status_of(TargetState state) {
  switch (state) {
    case TargetState::kListening:
      return MigrationStatus::kSetup;
    case TargetState::kReceiving:
      return MigrationStatus::kActive;
    case TargetState::kLoading:
    case TargetState::kLoaded:
      return MigrationStatus::kPostcopyDevice;
    case TargetState::kRunning:
      return MigrationStatus::kPostcopyActive;
    case TargetState::kLoadedAlone:
    case TargetState::kRunningAlone:
    case TargetState::kAbandoning:
      return MigrationStatus::kPostcopyPaused;
    case TargetState::kLoadedRecovering:
    case TargetState::kRunningRecovering:
      return MigrationStatus::kPostcopyRecover;
    case TargetState::kCompleted:
      return MigrationStatus::kCompleted;
    case TargetState::kPoisoned:
    case TargetState::kLost:
    case TargetState::kFailed:
      return MigrationStatus::kFailed;
  }
  __builtin_unreachable();
}

bool shuts_out(TargetState state) {
  return state == TargetState::kAbandoning || state == TargetState::kPoisoned ||
         state == TargetState::kLost;
}

bool has_the_state(TargetState state) {
  return state == TargetState::kLoading || state == TargetState::kLoaded ||
         state == TargetState::kRunning || state == TargetState::kLoadedRecovering ||
         state == TargetState::kRunningRecovering;
}

base::Expected<TargetRule> step(std::span<const TargetRule> rules, TargetState state,
                                TargetEvent event) {
  const auto rule = std::find_if(rules.begin(), rules.end(), [&](const TargetRule& one) {
    return one.from == state && one.on == event;
  });
  if (rule == rules.end()) {
    return base::fail(base::ErrorKind::kCorrupt, "target session",
                      fmt::format("'{}' is impossible while the target is '{}'", to_string(event),
                                  to_string(state)));
  }
  return *rule;
}

}  // namespace towline::runtime
