// What the target says to the source: runtime/source/control.cc as a task.
#include "tests/simulation/source_end.h"

namespace towline::simulation {

using base::PageRange;
using runtime::wire::FrameType;

Task SourceEnd::control_reader(SourceLanes& lanes) {
  Pipe& pipe = lanes.control->to_source;
  while (true) {
    co_await until([&pipe] { return pipe.readable(); });
    const auto frame = pipe.take();
    if (!frame.ok() || !frame.value().has_value() || !on_control(*frame.value())) {
      break;
    }
  }
  inbox_.control_ended = true;
  lose();
}

/// False: the lane is of no use any more.
bool SourceEnd::on_control(const Frame& frame) {
  const FrameType type = frame.header.type;
  if (type == FrameType::kMissing || type == FrameType::kMissingEnd) {
    return on_missing(frame);
  }
  if (type == FrameType::kLaneLost) {
    const auto lane = runtime::lane_of_code(frame.header.first);
    lose_lane(lanes(), lane.value(), frame.header.round);
    return true;
  }
  if (type == FrameType::kNoRoom || type == FrameType::kRoomAgain) {
    const bool in_pass =
        state_ == runtime::SourceState::kPassing || state_ == runtime::SourceState::kSyncing;
    if (is_final(runtime::status_of(state_))) {
      return false;  // It was on its way when the move ended.
    }
    if (no_room_ == (type == FrameType::kNoRoom) || !in_pass) {
      world_.fail("a word about room that was not due");
    }
    no_room_ = type == FrameType::kNoRoom;
    return true;
  }
  if (type == FrameType::kComplete && !inbox_.running && !told_running_) {
    return false;  // Complete before it ran.
  }
  inbox_.accepted = inbox_.accepted || type == FrameType::kAccept;
  inbox_.refused = inbox_.refused || type == FrameType::kRefuse;
  inbox_.never = inbox_.never || type == FrameType::kNever;
  inbox_.running = inbox_.running || type == FrameType::kRunning;
  inbox_.complete = inbox_.complete || type == FrameType::kComplete;
  if (type == FrameType::kRunning && !runtime::before_order(state_)) {
    told_running_ = true;
    const bool noted = !world_.planted(Plant::kRunningUnnoted) || !recovering();
    if (noted && runtime::step(state_, runtime::SourceEvent::kTargetRunning).ok()) {
      target_runs();
    }
  }
  rounds_applied_ += type == FrameType::kStaleApplied ? 1 : 0;
  return true;
}

bool SourceEnd::on_missing(const Frame& frame) {
  const bool of_a_lane = state_ == runtime::SourceState::kServing && lane_attempts_ != 0;
  if (inbox_.complete) {
    return true;
  }
  if (!of_a_lane && (!recovering() || inbox_.missing_told)) {
    return false;
  }
  if (frame.header.type == FrameType::kMissingEnd) {
    inbox_.missing_told = frame.header.count == std::exchange(inbox_.missing_pages, 0);
    inbox_.missing_attempt = frame.header.round;
    if (inbox_.missing_told && of_a_lane) {
      world_.told_of_lane();
    }
    inbox_.told.clear();
    return inbox_.missing_told;
  }
  const auto runs =
      runtime::wire::decode_missing(frame.header, frame.payload, world_.layout.pages());
  if (!runs.ok()) {
    world_.fail("a missing set that cannot be right");
    return false;
  }
  inbox_.missing_pages += frame.header.count;
  for (const PageRange& run : runs.value()) {
    if (!world_.planted(Plant::kOwedKept)) {
      owed_.add(run);
    }
    for (std::uint64_t page = run.first.value; page < run.end().value; ++page) {
      inbox_.told.insert(page);
    }
  }
  return true;
}

}  // namespace towline::simulation
