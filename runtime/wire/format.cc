#include "runtime/wire/format.h"

#include <algorithm>

#include "runtime/wire/frame_rules.h"

namespace towline::runtime::wire {

const FrameRule* find_rule(FrameType type) {
  const auto* rule = std::find_if(kFrameRules.begin(), kFrameRules.end(),
                                  [&](const FrameRule& one) { return one.type == type; });
  return rule == kFrameRules.end() ? nullptr : rule;
}

std::string_view to_string(FrameType type) {
  switch (type) {
    case FrameType::kHello:
      return "hello";
    case FrameType::kHelloReply:
      return "hello-reply";
    case FrameType::kProof:
      return "proof";
    case FrameType::kLaneReady:
      return "lane-ready";
    case FrameType::kRefuse:
      return "refuse";
    case FrameType::kDescribe:
      return "describe";
    case FrameType::kStale:
      return "stale";
    case FrameType::kRoundEnd:
      return "round-end";
    case FrameType::kState:
      return "state";
    case FrameType::kRun:
      return "run";
    case FrameType::kCancel:
      return "cancel";
    case FrameType::kCompleteAck:
      return "complete-ack";
    case FrameType::kPing:
      return "ping";
    case FrameType::kAccept:
      return "accept";
    case FrameType::kStaleApplied:
      return "stale-applied";
    case FrameType::kRunning:
      return "running";
    case FrameType::kNever:
      return "never";
    case FrameType::kComplete:
      return "complete";
    case FrameType::kResume:
      return "resume";
    case FrameType::kMissing:
      return "missing";
    case FrameType::kMissingEnd:
      return "missing-end";
    case FrameType::kBeat:
      return "beat";
    case FrameType::kLaneLost:
      return "lane-lost";
    case FrameType::kNoRoom:
      return "no-room";
    case FrameType::kRoomAgain:
      return "room-again";
    case FrameType::kPong:
      return "pong";
    case FrameType::kPages:
      return "pages";
    case FrameType::kZeros:
      return "zeros";
    case FrameType::kMarker:
      return "marker";
    case FrameType::kRequest:
      return "request";
  }
  return "unknown";  // A value from the wire.
}

std::string_view to_string(LaneRole role) {
  switch (role) {
    case LaneRole::kControl:
      return "control";
    case LaneRole::kUrgent:
      return "urgent";
    case LaneRole::kBulk:
      return "bulk";
  }
  return "unknown";
}

std::string_view to_string(TargetPhase phase) {
  switch (phase) {
    case TargetPhase::kNone:
      return "none";
    case TargetPhase::kLoading:
      return "loading";
    case TargetPhase::kRunning:
      return "running";
    case TargetPhase::kRefused:
      return "refused";
    case TargetPhase::kComplete:
      return "complete";
  }
  __builtin_unreachable();
}

std::string_view to_string(Direction direction) {
  switch (direction) {
    case Direction::kToTarget:
      return "to-target";
    case Direction::kToSource:
      return "to-source";
  }
  return "unknown";
}

}  // namespace towline::runtime::wire
