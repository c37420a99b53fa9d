#include "runtime/core/source_input.h"

namespace towline::runtime {

std::string_view to_string(SourceTask::Kind kind) {
  using Kind = SourceTask::Kind;
  switch (kind) {
    case Kind::kOpenControl:
      return "open-control";
    case Kind::kDescribe:
      return "describe";
    case Kind::kOpenLanes:
      return "open-lanes";
    case Kind::kFindPageServer:
      return "find-page-server";
    case Kind::kBeginLog:
      return "begin-log";
    case Kind::kRunPass:
      return "run-pass";
    case Kind::kSendRound:
      return "send-round";
    case Kind::kAwaitPageServer:
      return "await-page-server";
    case Kind::kPark:
      return "park";
    case Kind::kPrepareFlight:
      return "prepare-flight";
    case Kind::kSendFlight:
      return "send-flight";
    case Kind::kStartPush:
      return "start-push";
    case Kind::kEndLane:
      return "end-lane";
    case Kind::kOpenInPlace:
      return "open-in-place";
    case Kind::kPutInPlace:
      return "put-in-place";
    case Kind::kFinish:
      return "finish";
    case Kind::kReadToTheEnd:
      return "read-to-the-end";
    case Kind::kSayCancelled:
      return "say-cancelled";
    case Kind::kDropEpoch:
      return "drop-epoch";
    case Kind::kOpenLanesAgain:
      return "open-lanes-again";
    case Kind::kResume:
      return "resume";
    case Kind::kOrderAgain:
      return "order-again";
  }
  __builtin_unreachable();
}

std::string_view to_string(SourceEffect::Kind kind) {
  using Kind = SourceEffect::Kind;
  switch (kind) {
    case Kind::kStepped:
      return "stepped";
    case Kind::kShow:
      return "show";
    case Kind::kShowLink:
      return "show-link";
    case Kind::kReadControl:
      return "read-control";
    case Kind::kOweAll:
      return "owe-all";
    case Kind::kOweNothing:
      return "owe-nothing";
    case Kind::kOweNamed:
      return "owe-named";
    case Kind::kOwedKnown:
      return "owed-known";
    case Kind::kCutPass:
      return "cut-pass";
    case Kind::kStopPass:
      return "stop-pass";
    case Kind::kHoldBack:
      return "hold-back";
    case Kind::kGoOn:
      return "go-on";
    case Kind::kEndWaiting:
      return "end-waiting";
    case Kind::kEndFlight:
      return "end-flight";
    case Kind::kFinishSending:
      return "finish-sending";
    case Kind::kCloseLanes:
      return "close-lanes";
    case Kind::kOrder:
      return "order";
    case Kind::kTargetRuns:
      return "target-runs";
    case Kind::kGiveBack:
      return "give-back";
    case Kind::kRelease:
      return "release";
    case Kind::kLinkLost:
      return "link-lost";
    case Kind::kLaneLost:
      return "lane-lost";
    case Kind::kLaneNotReplaced:
      return "lane-not-replaced";
    case Kind::kLaneReplaced:
      return "lane-replaced";
    case Kind::kNoRoom:
      return "no-room";
    case Kind::kRoomAgain:
      return "room-again";
    case Kind::kEnds:
      return "ends";
    case Kind::kAttemptFailed:
      return "attempt-failed";
    case Kind::kRecovered:
      return "recovered";
    case Kind::kTakenBack:
      return "taken-back";
  }
  __builtin_unreachable();
}

std::string_view to_string(SourceInput::Kind kind) {
  using Kind = SourceInput::Kind;
  switch (kind) {
    case Kind::kBegin:
      return "begin";
    case Kind::kInherit:
      return "inherit";
    case Kind::kTime:
      return "time";
    case Kind::kDone:
      return "done";
    case Kind::kAccept:
      return "accept";
    case Kind::kRefuse:
      return "refuse";
    case Kind::kStaleApplied:
      return "stale-applied";
    case Kind::kRunning:
      return "running";
    case Kind::kNever:
      return "never";
    case Kind::kComplete:
      return "complete";
    case Kind::kMissing:
      return "missing";
    case Kind::kMissingEnd:
      return "missing-end";
    case Kind::kLaneLost:
      return "lane-lost";
    case Kind::kNoRoom:
      return "no-room";
    case Kind::kRoomAgain:
      return "room-again";
    case Kind::kBeat:
      return "beat";
    case Kind::kControlEnded:
      return "control-ended";
    case Kind::kLinkLost:
      return "link-lost";
    case Kind::kLaneBroken:
      return "lane-broken";
    case Kind::kSwitchWord:
      return "switch-word";
    case Kind::kCancel:
      return "cancel";
    case Kind::kPause:
      return "pause";
    case Kind::kResume:
      return "resume";
    case Kind::kContinue:
      return "continue";
    case Kind::kTakeBack:
      return "take-back";
    case Kind::kLeave:
      return "leave";
  }
  __builtin_unreachable();
}

}  // namespace towline::runtime
