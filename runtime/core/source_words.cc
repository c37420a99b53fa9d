// What the target and the lanes say, and what of it the source takes.
#include <utility>

#include <fmt/format.h>

#include "runtime/core/source_protocol.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::Outcome;

base::Err<base::Error> out_of_turn(std::string detail) {
  return base::fail(ErrorKind::kCorrupt, "control frame", std::move(detail));
}

}  // namespace

// At once, not when the session gets to it: the link may break before the next frame, and a guest
// that is known to run there must never be taken back.
Outcome SourceProtocol::on_running(const SourceInput& input) {
  if (before_order(state_)) {
    return out_of_turn("running, before it was ordered");
  }
  if (!running_at_ns_.has_value()) {
    running_at_ns_ = input.number;
  }
  link_.runs = true;
  if (runtime::step(rules_, state_, SourceEvent::kTargetRunning).ok()) {
    step(SourceEvent::kTargetRunning);
  }
  return base::Done{};
}

Outcome SourceProtocol::on_complete() {
  if (!running_at_ns_.has_value()) {
    return out_of_turn("complete before it ran");
  }
  complete_ = true;
  emit(SourceEffect::Kind::kEndWaiting);  // No lane is needed any more.
  return base::Done{};
}

// In a new epoch once; otherwise for each lane that was replaced.
Outcome SourceProtocol::on_missing(const SourceInput& input) {
  if (complete_) {
    return base::Done{};  // A lane was replaced when the last page came.
  }
  const bool of_a_lane = state_ == SourceState::kServing && link_.last_attempt != 0;
  if (!of_a_lane && (!is_recovering(state_) || link_.missing_told)) {
    return out_of_turn("missing pages out of turn");
  }
  if (input.kind == SourceInput::Kind::kMissing) {
    if (input.number > pages_.value || link_.missing_so_far > pages_.value - input.number) {
      return out_of_turn("more pages are missing than there are");
    }
    link_.missing_so_far += input.number;
    emit(SourceEffect::Kind::kOweNamed);
    return base::Done{};
  }
  if (input.number != link_.missing_so_far) {
    return out_of_turn(fmt::format("{} missing pages were named, the end says {}",
                                   link_.missing_so_far, input.number));
  }
  link_.missing_pages = std::exchange(link_.missing_so_far, 0);
  link_.missing_told = true;
  link_.missing_attempt = input.attempt;
  emit(SourceEffect::Kind::kOwedKnown);
  return base::Done{};
}

Outcome SourceProtocol::on_lane_lost(const SourceInput& input) {
  const auto& lane = input.lane;
  if (!lane.has_value() || before_order(state_) ||
      (lane->role == wire::LaneRole::kBulk && lane->number >= options_.bulk_lanes)) {
    return out_of_turn(fmt::format("a lane is lost that there is not: {:#x}", input.number));
  }
  lose_lane(*lane, input.attempt,
            base::Error{ErrorKind::kDisconnected, 0, "lane",
                        fmt::format("the target lost it: {}", input.text)});
  return base::Done{};
}

// What was seen of a link that is over is of no interest to the one after it.
void SourceProtocol::on_loss(const SourceInput& input) {
  if (input.epoch != epoch_ || !link_.control_open) {
    return;
  }
  if (input.kind == SourceInput::Kind::kLaneBroken) {
    return lose_lane(*input.lane, input.attempt, *input.error);
  }
  link_.control_ended = link_.control_ended || input.kind == SourceInput::Kind::kControlEnded;
  link_.silent = link_.silent || input.flag;
  lose(*input.error);
}

// Only in turns, and only while pages of a pass may be under way: the target says the second before
// it ends a lane's pass, so that neither can come when the switch has begun.
Outcome SourceProtocol::on_room(const SourceInput& input) {
  const bool there_is = input.kind == SourceInput::Kind::kRoomAgain;
  if (!waits_for_room_ || !in_pass() || !lanes_open_ || no_room_.has_value() != there_is) {
    return out_of_turn(fmt::format("{} is not due now", there_is ? "room-again" : "no-room"));
  }
  if (there_is) {
    no_room_.reset();
    emit(SourceEffect::Kind::kGoOn);
    emit(SourceEffect::Kind::kRoomAgain);
  } else {
    no_room_ = input.text;
    emit(SourceEffect::Kind::kHoldBack);
    emit(SourceEffect::Kind::kNoRoom).text = input.text;
  }
  return base::Done{};
}

}  // namespace towline::runtime
