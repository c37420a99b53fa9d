// What the target does when one data lane is lost alone after the switch.
#include <string_view>

#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/target/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::LogLevel;
using wire::FrameHeader;
using wire::FrameType;

}  // namespace

// Only while the guest runs here and the control lane is as good as ever. Before that a lost lane
// is a lost link: a pass's marker speaks for its own lane, and a source that has not heard that the
// guest runs owes nothing yet.
bool TargetDriver::replaces_lanes() const {
  return state_ == TargetState::kRunning && link_ == Link::kTied && !held_ && !ending_ &&
         (control_hello_.features & wire::kFeatureReplaceLane) != 0;
}

bool TargetDriver::on_lane_broken(LaneName lane, std::uint32_t attempt, const base::Error& reason) {
  std::shared_ptr<Lane> control;
  {
    const base::Lock lock(mutex_);
    const bool of_the_lane =
        reason.kind == ErrorKind::kDisconnected || reason.kind == ErrorKind::kCorrupt;
    if (!replaces_lanes() || !of_the_lane) {
      return false;
    }
    control = control_;
    if (!lane_error_.has_value()) {
      lane_error_ = reason;  // What there is to say if the link goes with it.
    }
  }
  FrameHeader lost;
  lost.type = FrameType::kLaneLost;
  lost.first = lane_code(lane);
  lost.round = attempt;
  const std::string words = base::to_string(reason);
  const auto bounded = std::string_view(words).substr(0, wire::kMaxLaneLostPayload);
  // Unsent: the control lane has ended too, and its own thread knows.
  [[maybe_unused]] const auto told = control->send(lost, bytes_of(bounded));
  return true;
}

void TargetDriver::on_lane_replaced(LaneName lane, std::uint32_t attempt) {
  {
    const base::Lock lock(mutex_);
    ++lanes_replaced_;
    lane_error_.reset();
  }
  base::log(LogLevel::kInfo, "lane.replaced lane={} attempt={}", to_string(lane), attempt);
  if (lane.role == wire::LaneRole::kUrgent) {
    ask_again();
    return transfer_->lanes.sweep_again();
  }
  // What was under way on the old lane is owed no more, and nobody else knows what it was. Only
  // this epoch's control lane can be there: the next epoch begins after this thread was joined.
  if (!tell_missing(*control(), attempt).ok()) {
    base::log(LogLevel::kInfo, "missing.untold reason={}", "the link is lost too");
  }
}

}  // namespace towline::runtime
