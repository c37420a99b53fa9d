// What the target says to the source: runtime/source/control.cc as a task.
#include <utility>

#include "tests/simulation/source_end.h"

namespace towline::simulation {

using base::ErrorKind;
using runtime::SourceInput;
using runtime::wire::FrameType;
using Kind = runtime::SourceInput::Kind;

Task SourceEnd::control_reader(SourceLanes& lanes) {
  Pipe& pipe = lanes.control->to_source;
  base::Error reason{ErrorKind::kDisconnected, 0, "receive", "the target closed the control lane"};
  while (true) {
    co_await until([&pipe] { return pipe.readable(); });
    const auto frame = pipe.take();
    if (!frame.ok() || !frame.value().has_value()) {
      reason = frame.ok() ? reason : frame.error();
      break;
    }
    if (!on_control(*frame.value())) {
      reason.kind = ErrorKind::kCorrupt;
      break;
    }
  }
  lanes.control_read = true;
  feed({.kind = Kind::kControlEnded, .error = reason, .epoch = lanes.epoch});
}

/// False: the frame was not due, and the lane is of no use any more.
bool SourceEnd::on_control(const Frame& frame) {
  auto input = runtime::source_input_of(frame.header, frame.payload);
  if (!input.ok()) {
    world_.fail("a frame that is not the target's to send: " + base::to_string(input.error()));
    return false;
  }
  const FrameType type = frame.header.type;
  if (type == FrameType::kRunning) {
    return on_running(std::move(input).value());
  }
  if (type == FrameType::kMissing && !name(frame)) {
    return false;
  }
  if (type == FrameType::kComplete) {
    note_running_at_last();
  }
  const bool final = is_final(runtime::status_of(state()));
  const bool due = feed(std::move(input).value());
  if (!due && !final && (type == FrameType::kNoRoom || type == FrameType::kRoomAgain)) {
    world_.fail("a word about room that was not due");
  }
  return due;
}

bool SourceEnd::on_running(SourceInput input) {
  told_running_ = told_running_ || !runtime::before_order(state());
  if (world_.planted(Plant::kRunningUnnoted) &&
      state() == runtime::SourceState::kOrderedRecovering) {
    return running_unnoted_ = true;
  }
  return feed(std::move(input));
}

/// Planted: when it can be too late.
void SourceEnd::note_running_at_last() {
  if (std::exchange(running_unnoted_, false)) {
    feed({.kind = Kind::kRunning});
  }
}

/// The pages of a missing set.
bool SourceEnd::name(const Frame& frame) {
  const auto runs =
      runtime::wire::decode_missing(frame.header, frame.payload, world_.layout.pages());
  if (!runs.ok()) {
    world_.fail("a missing set that cannot be right");
    return false;
  }
  named_.assign(runs.value().begin(), runs.value().end());
  return true;
}

}  // namespace towline::simulation
