#include "runtime/core/target_input.h"

namespace towline::runtime {

std::string_view to_string(TargetTask::Kind kind) {
  using Kind = TargetTask::Kind;
  // clang-format off
  switch (kind) {
    case Kind::kTakeSource:     return "take-source";
    case Kind::kBeginEpoch:     return "begin-epoch";
    case Kind::kAttachLane:     return "attach-lane";
    case Kind::kReplaceLane:    return "replace-lane";
    case Kind::kAnswerPing:     return "answer-ping";
    case Kind::kKeepStale:      return "keep-stale";
    case Kind::kAwaitMarkers:   return "await-markers";
    case Kind::kApplyStale:     return "apply-stale";
    case Kind::kSayApplied:     return "say-applied";
    case Kind::kStorePages:     return "store-pages";
    case Kind::kAwaitLanes:     return "await-lanes";
    case Kind::kAskAgain:       return "ask-again";
    case Kind::kEndReading:     return "end-reading";
    case Kind::kAnswerNever:    return "answer-never";
    case Kind::kAnswerComplete: return "answer-complete";
    case Kind::kTellMissing:    return "tell-missing";
    case Kind::kTellNever:      return "tell-never";
    case Kind::kFinishSending:  return "finish-sending";
    case Kind::kCloseLanes:     return "close-lanes";
    case Kind::kDropHalf:       return "drop-half";
    case Kind::kTellLaneLost:   return "tell-lane-lost";
    case Kind::kTellNoRoom:     return "tell-no-room";
    case Kind::kTellRoomAgain:  return "tell-room-again";
    case Kind::kTellRunning:    return "tell-running";
    case Kind::kFinish:         return "finish";
    case Kind::kPoison:         return "poison";
    case Kind::kEndGuest:       return "end-guest";
    case Kind::kLoad:           return "load";
    case Kind::kStartGuest:     return "start-guest";
  }
  // clang-format on
  __builtin_unreachable();
}

std::string_view to_string(TargetEffect::Kind kind) {
  using Kind = TargetEffect::Kind;
  // clang-format off
  switch (kind) {
    case Kind::kStepped:       return "stepped";
    case Kind::kShow:          return "show";
    case Kind::kShowLink:      return "show-link";
    case Kind::kTombstone:     return "tombstone";
    case Kind::kUseLane:       return "use-lane";
    case Kind::kShutControl:   return "shut-control";
    case Kind::kShutLanes:     return "shut-lanes";
    case Kind::kShutLane:      return "shut-lane";
    case Kind::kLanesLost:     return "lanes-lost";
    case Kind::kEndUrgent:     return "end-urgent";
    case Kind::kOpenPostcopy:  return "open-postcopy";
    case Kind::kGiveUpMarkers: return "give-up-markers";
    case Kind::kOpenGate:      return "open-gate";
    case Kind::kLinger:        return "linger";
    case Kind::kShutOut:       return "shut-out";
    case Kind::kSourceAway:    return "source-away";
    case Kind::kFence:         return "fence";
    case Kind::kLinkLost:      return "link-lost";
    case Kind::kControlEnded:  return "control-ended";
    case Kind::kLaneReplaced:  return "lane-replaced";
    case Kind::kOverdue:       return "overdue";
    case Kind::kNoRoom:        return "no-room";
    case Kind::kRoomAgain:     return "room-again";
  }
  // clang-format on
  __builtin_unreachable();
}

std::string_view to_string(TargetInput::Kind kind) {
  using Kind = TargetInput::Kind;
  // clang-format off
  switch (kind) {
    case Kind::kControlProven:   return "control-proven";
    case Kind::kLaneProven:      return "lane-proven";
    case Kind::kGreetingOverdue: return "greeting-overdue";
    case Kind::kDescribed:       return "described";
    case Kind::kMisdescribed:    return "misdescribed";
    case Kind::kFrame:           return "frame";
    case Kind::kControlEnded:    return "control-ended";
    case Kind::kFenced:          return "fenced";
    case Kind::kNothingArrives:  return "nothing-arrives";
    case Kind::kLaneEnded:       return "lane-ended";
    case Kind::kLaneReplaced:    return "lane-replaced";
    case Kind::kNoRoom:          return "no-room";
    case Kind::kRoomFound:       return "room-found";
    case Kind::kNothingMissing:  return "nothing-missing";
    case Kind::kGuestEntered:    return "guest-entered";
    case Kind::kTime:            return "time";
    case Kind::kSigns:           return "signs";
    case Kind::kMarkerSilent:    return "marker-silent";
    case Kind::kLingerOver:      return "linger-over";
    case Kind::kDone:            return "done";
    case Kind::kPause:           return "pause";
    case Kind::kLetIn:           return "let-in";
    case Kind::kSourceLoss:      return "source-loss";
    case Kind::kGiveUpSource:    return "give-up-source";
    case Kind::kEnding:          return "ending";
  }
  // clang-format on
  __builtin_unreachable();
}

}  // namespace towline::runtime
