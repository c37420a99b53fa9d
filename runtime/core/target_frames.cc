// What the target makes of a frame on its control lane: whether it is due, and what follows.
#include <utility>

#include <fmt/format.h>

#include "runtime/core/target_protocol.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;
using wire::FrameHeader;
using wire::FrameType;

base::Err<base::Error> not_due_at_target(std::string detail) {
  return fail(ErrorKind::kCorrupt, "control frame", std::move(detail));
}

}  // namespace

Outcome TargetProtocol::on_frame(const TargetInput& input) {
  const FrameHeader& frame = input.frame;
  const bool reads = source_ == Source::kKnown && !round_.has_value();
  // clang-format off
  switch (frame.type) {
    case FrameType::kPing: give(TargetTask::Kind::kAnswerPing); return base::Done{};
    case FrameType::kStale: if (reads) { return on_stale(frame); } break;
    case FrameType::kRoundEnd: if (reads) { return on_round_end(frame); } break;
    case FrameType::kPages:
      if (!final_delta_) {
        return not_due_at_target("pages on the control lane outside the switch's flight");
      }
      give(TargetTask::Kind::kStorePages);
      return base::Done{};
    case FrameType::kState:
      if (!final_delta_) {
        return not_due_at_target("the machine's state came before the last delta");
      }
      TRY(runtime::step(rules_, state_, TargetEvent::kStateReceived));
      give(TargetTask::Kind::kAwaitLanes).frame = FrameType::kState;
      return base::Done{};
    case FrameType::kRun: return on_run();
    case FrameType::kCancel: return on_cancel(input.text);
    case FrameType::kResume:
      if (link_ == Link::kTied) {
        break;
      }
      give(TargetTask::Kind::kAwaitLanes).frame = FrameType::kResume;
      return base::Done{};
    case FrameType::kCompleteAck: return base::Done{};
    case FrameType::kHello: case FrameType::kHelloReply: case FrameType::kProof:
    case FrameType::kLaneReady: case FrameType::kRefuse: case FrameType::kDescribe:
    case FrameType::kAccept: case FrameType::kStaleApplied: case FrameType::kRunning:
    case FrameType::kNever: case FrameType::kComplete: case FrameType::kPong:
    case FrameType::kZeros: case FrameType::kMarker: case FrameType::kRequest:
    case FrameType::kMissing: case FrameType::kMissingEnd: case FrameType::kBeat:
    case FrameType::kLaneLost: case FrameType::kNoRoom: case FrameType::kRoomAgain:
      break;
  }
  // clang-format on
  return not_due_at_target(fmt::format("{} is not due now", wire::to_string(frame.type)));
}

Outcome TargetProtocol::on_stale(const FrameHeader& frame) {
  if (final_delta_ || frame.count > pages_.value - stale_pages_) {
    return not_due_at_target("a stale set names more pages than there are, or comes too late");
  }
  stale_pages_ += frame.count;
  give(TargetTask::Kind::kKeepStale);
  return base::Done{};
}

// A page copied before it was dirtied may arrive after the set that names it: the set is applied
// when every lane has delivered all that was copied in this pass.
Outcome TargetProtocol::on_round_end(const FrameHeader& frame) {
  if (frame.count != stale_pages_ || final_delta_) {
    return not_due_at_target(
        fmt::format("a round ends with {} stale pages, {} were named", frame.count, stale_pages_));
  }
  round_ = frame;
  give(TargetTask::Kind::kAwaitMarkers).number = frame.round;
  return base::Done{};
}

// After the answer, or the last round, the source may switch. The last one counts before any page
// of the time after the switch can be accepted.
Outcome TargetProtocol::on_stale_applied(std::uint64_t claimed) {
  const bool last = (round_->flags & wire::kFlagFinal) != 0;
  if (last && claimed != 0) {
    // An honest source names the pass whose markers were waited for.
    return not_due_at_target("the last round ended while pages of a pass were arriving");
  }
  if (last) {
    final_delta_ = true;
    emit(TargetEffect::Kind::kOpenPostcopy);
  } else {
    TargetTask& told = give(TargetTask::Kind::kSayApplied);
    told.number = round_->round;
    told.count = round_->count;
  }
  order_possible_ = true;
  stale_pages_ = 0;
  round_.reset();
  return base::Done{};
}

// One step, once; tl-load starts the guest. A second order finds no rule, except the one that a new
// epoch's source sends because it was not told that the guest runs.
Outcome TargetProtocol::on_run() {
  if (state_ == TargetState::kFailed) {
    return base::Done{};  // The load failed, and the source is being told.
  }
  if (order_read_ && may_repeat_order_) {
    may_repeat_order_ = false;
    return base::Done{};
  }
  if (state_ == TargetState::kLoadedAlone && link_ == Link::kLost) {
    // The watch was first. A half that says that it is alone does not run; the order is repeated.
    return fail(ErrorKind::kDisconnected, "run", "the link was lost meanwhile");
  }
  if (state_ != TargetState::kLoading || order_read_) {
    TRY(step(TargetEvent::kRunOrdered));
  }
  order_read_ = true;
  return base::Done{};
}

Outcome TargetProtocol::on_cancel(const std::string& words) {
  TRY(runtime::step(rules_, state_, TargetEvent::kCancelled));
  error_ = "cancelled by the source: " + words;
  TRY(step(TargetEvent::kCancelled));
  give(TargetTask::Kind::kEndReading).text = "cancelled by the source";
  return base::Done{};
}

// The lanes were waited for, and much may have happened meanwhile.
Outcome TargetProtocol::on_lanes_here(FrameType frame) {
  if (frame == FrameType::kResume) {
    return on_resume();
  }
  if (never()) {
    return fail(ErrorKind::kRefused, "state", error_);  // A lane said so meanwhile.
  }
  return step(TargetEvent::kStateReceived);
}

Outcome TargetProtocol::on_resume() {
  if (shuts_out(state_)) {
    return fail(ErrorKind::kRefused, "resume", shut_out_reason());
  }
  if (state_ == TargetState::kFailed) {  // While the lanes were opened; the source is being told.
    return fail(ErrorKind::kRefused, "resume", error_);
  }
  if (link_ != Link::kComparing) {
    return fail(ErrorKind::kDisconnected, "resume", "the link was lost meanwhile");
  }
  if (state_ != TargetState::kCompleted) {  // The last page may have come before this frame.
    TRY(step(TargetEvent::kResynced));
  }
  link_ = Link::kTied;
  error_.clear();
  ++recoveries_;
  return base::Done{};
}

}  // namespace towline::runtime
