// The target's data lanes: which are let in, what an end means, and a lane in another one's place.
#include <algorithm>

#include <fmt/format.h>

#include "runtime/core/target_protocol.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::Outcome;
using wire::LaneRole;

base::Err<base::Error> refused(std::string why) {
  return base::Err{base::Error{ErrorKind::kRefused, 0, "lane", std::move(why)}};
}

}  // namespace

// Only while the guest runs here and the control lane is as good as ever. Before that a lost lane
// is a lost link: a pass's marker speaks for its own lane, and a source that has not heard that the
// guest runs owes nothing yet.
bool TargetProtocol::replaces_lanes() const {
  return state_ == TargetState::kRunning && link_ == Link::kTied && !held_ && !ending_ &&
         (hello_.features & wire::kFeatureReplaceLane) != 0;
}

TargetProtocol::DataLane* TargetProtocol::lane_named(LaneName name) {
  const auto found = std::find_if(lanes_.begin(), lanes_.end(),
                                  [name](const DataLane& one) { return one.name == name; });
  return found == lanes_.end() ? nullptr : &*found;
}

// What was true at the greeting may not be true any more.
Outcome TargetProtocol::on_lane_proven(const wire::Hello& hello) {
  const bool urgent = hello.role == LaneRole::kUrgent;
  const LaneName name{hello.role, urgent ? std::uint8_t{0} : hello.lane};
  DataLane* lane = lane_named(name);
  if (!knows(hello) || lane == nullptr) {
    return refused(fmt::format("there is no {} lane {}", wire::to_string(hello.role), hello.lane));
  }
  if (hello.epoch != lanes_epoch_) {
    return refused(
        fmt::format("epoch {} is over; the present one is {}", hello.epoch, lanes_epoch_));
  }
  if (hello.attempt == 0) {
    if (lane->there || lanes_end_) {
      return refused(fmt::format("{} is taken", to_string(name)));
    }
    lane->there = true;
    give(TargetTask::Kind::kAttachLane).lane = name;
    return base::Done{};
  }
  if (!lane->there || lanes_end_ || !replaces_lanes()) {
    return refused(fmt::format("{} cannot be replaced now", to_string(name)));
  }
  if (hello.attempt <= lane->attempt) {
    return refused(fmt::format("attempt {} at {} is over; attempt {} is in its place",
                               hello.attempt, to_string(name), lane->attempt));
  }
  lane->attempt = hello.attempt;
  TargetTask& replace = give(TargetTask::Kind::kReplaceLane);
  replace.lane = name;
  replace.number = hello.attempt;
  return base::Done{};
}

// A lane that is to be replaced leaves the others alone; every other end is the link's.
Outcome TargetProtocol::on_lane_ended(const TargetInput& input) {
  DataLane* lane = lane_named(input.lane);
  if (lane == nullptr || !lane->there || lane->attempt != input.number) {
    return refused("another one is in its place, or about to be");
  }
  const base::Error& error = *input.error;
  if (lanes_end_ || !replaces_lanes() || !is_of_the_lane(error)) {
    lose_lanes(error);
    return base::Done{};
  }
  if (!lane_error_.has_value()) {
    lane_error_ = error;  // What there is to say if the link goes with it.
  }
  lane->broken_since = now_;
  emit(TargetEffect::Kind::kShutLane).lane = input.lane;
  TargetTask& told = give(TargetTask::Kind::kTellLaneLost);
  told.lane = input.lane;
  told.number = input.number;
  told.text = base::to_string(error);
  return base::Done{};
}

// The source notices, closes, and tl-control reads its lane to the end.
void TargetProtocol::lose_lanes(const base::Error& error) {
  lanes_end_ = true;
  no_room_for_more_ = no_room_for_more_ || error.kind == ErrorKind::kOverloaded;
  emit(TargetEffect::Kind::kLanesLost);
  if (state_ == TargetState::kCompleted) {
    return;  // No lane is needed any more.
  }
  if (state_ == TargetState::kReceiving && never()) {
    return;  // Whoever tells the source ends the lanes afterwards, or its words would be cut off.
  }
  if (error.kind == ErrorKind::kOverloaded && state_ == TargetState::kReceiving) {
    // The guest runs at the source, and its user is to know why it stays there.
    bury();
    error_ = base::to_string(error);
    give(TargetTask::Kind::kTellNever).text = error_;
  }
  if (!lane_error_.has_value()) {
    lane_error_ = error;
  }
  give(TargetTask::Kind::kFinishSending).flag = error.kind == ErrorKind::kCorrupt;
}

Outcome TargetProtocol::on_lane_replaced(const TargetInput& input) {
  DataLane* lane = lane_named(input.lane);
  if (lane == nullptr || lanes_end_ || lane->attempt != input.number) {
    return refused("the link is lost, or the lane is lost again");
  }
  lane->broken_since.reset();
  ++lanes_replaced_;
  lane_error_.reset();
  TargetEffect& replaced = emit(TargetEffect::Kind::kLaneReplaced);
  replaced.lane = input.lane;
  replaced.number = input.number;
  if (input.lane.role == LaneRole::kUrgent) {
    give(TargetTask::Kind::kAskAgain).flag = true;
  } else {
    // What was under way on the old lane is owed no more, and nobody else knows what it was.
    give(TargetTask::Kind::kTellMissing).number = input.number;
  }
  return base::Done{};
}

bool TargetProtocol::waits_in_vain() const {
  return std::any_of(lanes_.begin(), lanes_.end(), [this](const DataLane& lane) {
    return lane.broken_since.has_value() &&
           now_ - *lane.broken_since >= base::Duration(options_.handshake_timeout);
  });
}

void TargetProtocol::shut_lanes() {
  lanes_end_ = true;
  emit(TargetEffect::Kind::kShutLanes);
}

// Behind the fence: those of the epoch before have ended.
void TargetProtocol::renew_lanes() {
  for (DataLane& lane : lanes_) {
    lane.there = false;
    lane.attempt = 0;
    lane.broken_since.reset();
  }
  lanes_end_ = false;
}

std::string TargetProtocol::dump_lanes() const {
  std::string text = lanes_end_ ? "end" : "";
  for (const DataLane& lane : lanes_) {
    text += fmt::format("/{}{}.{}", to_string(lane.name), lane.there ? "" : "(away)", lane.attempt);
    if (lane.broken_since.has_value()) {
      text += fmt::format("(broken@{})", base::to_ns(*lane.broken_since));
    }
  }
  return text;
}

}  // namespace towline::runtime
