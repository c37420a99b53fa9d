// The target's link and its epochs: what an end means, and what silence means.
#include <utility>

#include <fmt/format.h>

#include "runtime/core/target_protocol.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

}  // namespace

// ---- the end of an epoch, and the next one ------------------------------------------------------

// Everything that the source sent was read. Only now it is known whether the order was among it.
Outcome TargetProtocol::on_control_ended(const TargetInput& input) {
  if (source_ != Source::kKnown) {
    return fail(ErrorKind::kRefused, "control lane", "no source has described its guest");
  }
  const base::Error& reason = *input.error;
  const bool of_a_lane = lane_error_.has_value() && lane_error_->kind != ErrorKind::kDisconnected;
  const base::Error cause = of_a_lane ? *lane_error_ : reason;
  const bool known = std::exchange(link_, Link::kLost) == Link::kLost;  // tl-watch was first.
  lanes_end_ = true;
  round_.reset();
  if (state_ == TargetState::kFailed && reason.kind == ErrorKind::kDisconnected &&
      reason.errno_value == 0) {
    tombstone_ = Tombstone::kTold;  // Closed in order: the source has read to the end.
  }
  bool drop = state_ == TargetState::kFailed;
  if (!drop && state_ != TargetState::kCompleted && !shuts_out(state_)) {
    if (error_.empty()) {
      error_ = base::to_string(cause);
    }
    if (!known && !held_) {
      emit(TargetEffect::Kind::kLinkLost).text = base::to_string(cause);
    }
    drop = lose();
  }
  emit(TargetEffect::Kind::kControlEnded).text = base::to_string(cause);
  if (input.flag) {
    note_overdue(drop ? "round-end" : "run", reason.detail);
  }
  const bool corrupt = cause.kind == ErrorKind::kCorrupt;
  if (drop && corrupt) {
    // The guest runs at the source, or is parked there, and its user is to know why.
    give(TargetTask::Kind::kTellNever).text = base::to_string(cause);
  }
  give(TargetTask::Kind::kCloseLanes).flag = corrupt || drop;
  if (drop) {
    give(TargetTask::Kind::kDropHalf);
  }
  return base::Done{};
}

// True: what arrived is of no use. While the machine is being loaded the loss waits for its end.
bool TargetProtocol::lose() {
  if (!may(TargetEvent::kLinkLost)) {
    return false;
  }
  const bool lingers = state_ == TargetState::kReceiving && order_possible_ && !ending_;
  if (lingers) {
    lingers_until_ = now_ + kLinger;
  }
  [[maybe_unused]] const auto stepped = step(TargetEvent::kLinkLost);
  if (lingers) {
    emit(TargetEffect::Kind::kLinger);
  }
  return state_ == TargetState::kFailed;
}

Outcome TargetProtocol::on_fenced(std::uint64_t epoch) {
  const bool answers = state_ == TargetState::kCompleted || never();
  if (source_ != Source::kKnown || ending_ || shuts_out(state_) || epoch != hello_.epoch ||
      epoch <= lanes_epoch_ || (!answers && !may(TargetEvent::kReconnected))) {
    return fail(ErrorKind::kRefused, "epoch", fmt::format("epoch {} cannot begin", epoch));
  }
  lanes_epoch_ = epoch;
  lane_error_.reset();
  renew_lanes();
  emit(TargetEffect::Kind::kUseLane);
  if (state_ == TargetState::kCompleted) {
    give(TargetTask::Kind::kAnswerComplete);
    return base::Done{};
  }
  if (never()) {
    give(TargetTask::Kind::kAnswerNever).text = error_;
    return base::Done{};
  }
  TRY(step(TargetEvent::kReconnected));
  link_ = Link::kComparing;
  may_repeat_order_ = true;
  return base::Done{};
}

// ---- signs of life ------------------------------------------------------------------------------

// While both ends compare, too: where the source takes signs of life then.
bool TargetProtocol::is_watched() const {
  const bool compares =
      link_ == Link::kComparing && (hello_.features & wire::kFeatureCountFrames) != 0;
  return has_the_state(state_) && (link_ == Link::kTied || compares);
}

// A lane that is silent beside a control lane that is not is replaced; otherwise the link is lost.
Outcome TargetProtocol::on_signs(const TargetInput& input) {
  if (!is_watched() || input.epoch != hello_.epoch || input.epoch != lanes_epoch_) {
    return fail(ErrorKind::kRefused, "signs", "of an epoch that is over");
  }
  const TargetSigns& signs = input.signs;
  const bool in_vain = waits_in_vain();
  const bool control_lives =
      signs.hears && signs.control_unacknowledged < options_.patience && replaces_lanes();
  const bool alive = !in_vain && (signs.verdict == LinkVerdict::kAlive ||
                                  (signs.verdict == LinkVerdict::kDead && control_lives));
  if (!alive) {
    link_ = Link::kLost;
    error_ = in_vain ? "a lane broke, and the source opens no other in its place" : signs.words;
    emit(TargetEffect::Kind::kLinkLost).text = error_;
    emit(TargetEffect::Kind::kShutControl);
    shut_lanes();
  } else if (signs.verdict == LinkVerdict::kDead && signs.urgent_dead &&
             !lanes_.front().broken_since.has_value()) {
    emit(TargetEffect::Kind::kEndUrgent).text = signs.urgent_words;
  }
  return base::Done{};
}

// Before the switch: a pass's marker that does not come, though the source has said behind it that
// the pass is over, and its lane brings nothing any more.
Outcome TargetProtocol::on_marker_silent(const TargetInput& input) {
  if (!round_.has_value() || round_->round != input.number ||
      input.silent < options_.frozen_patience) {
    return fail(ErrorKind::kRefused, "marker", "it may still come");
  }
  const std::string what = fmt::format(
      "{} brings nothing since {} ms, and the marker of pass {} is due on it",
      to_string(input.lane),
      std::chrono::duration_cast<std::chrono::milliseconds>(input.silent).count(), input.number);
  note_overdue("marker", what);
  emit(TargetEffect::Kind::kGiveUpMarkers).text = what;
  return base::Done{};
}

void TargetProtocol::note_overdue(std::string_view awaited, const std::string& what) {
  overdue_ = fmt::format("{}: {}", awaited, what);
  TargetEffect& overdue = emit(TargetEffect::Kind::kOverdue);
  overdue.awaited = awaited;
  overdue.text = what;
}

}  // namespace towline::runtime
