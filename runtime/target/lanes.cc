// What happens on the target's data lanes, told to the brain from their threads; and room for guest
// memory, without which they end after the switch, or wait before it.
#include "base/log.h"
#include "runtime/target/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

}  // namespace

void TargetDriver::on_progress() {
  if (running_here_ && published_.load()->map.missing().value == 0) {
    [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kNothingMissing});
  }
}

void TargetDriver::on_lane_ended(LaneName lane, std::uint32_t attempt, const base::Error& reason) {
  [[maybe_unused]] const auto fed = feed(
      {.kind = TargetInput::Kind::kLaneEnded, .error = reason, .lane = lane, .number = attempt});
}

void TargetDriver::on_lane_replaced(LaneName lane, std::uint32_t attempt) {
  const auto fed =
      feed({.kind = TargetInput::Kind::kLaneReplaced, .lane = lane, .number = attempt});
  if (!fed.ok()) {
    base::log(base::LogLevel::kInfo, "missing.untold reason={}", "the link is lost too");
  }
}

Outcome TargetDriver::room() const {
  const base::Bytes reserve{options_.memory_reserve};
  const auto limit = headroom_.tightest();
  if (limit.has_value() && limit->left < reserve) {
    return fail(ErrorKind::kOverloaded, "receive", explain(*limit, reserve));
  }
  const Transfer* transfer = published_;
  return transfer == nullptr ? Outcome(base::Done{}) : transfer->memory->room();
}

// Nothing tells when there is room: it is looked for, again and again.
Outcome TargetDriver::wait_for_room(const base::Error& reason) {
  {
    const base::Lock telling(room_mutex_);
    TRY(feed({.kind = TargetInput::Kind::kNoRoom, .error = reason}));
  }
  std::shared_ptr<Lane> control;
  {
    const base::Lock lock(mutex_);
    control = control_;
    const base::Instant next_look = clock_.now() + options_.heartbeat;
    if (changed_.wait_until(mutex_, next_look,
                            [this]() UNDER_LOCK { return !brain_.takes_a_pass(); })) {
      return fail(ErrorKind::kDisconnected, "receive", "the move ended while it waited for room");
    }
  }
  // tl-control reads nothing while it waits for the markers of this very pass.
  if (has_ended(control->fd())) {
    return fail(ErrorKind::kDisconnected, "receive",
                "the source closed the connection while the target waited for room");
  }
  return base::Done{};
}

// Before the lane that had waited reads on: ahead of its marker.
void TargetDriver::found_room() {
  const base::Lock telling(room_mutex_);
  [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kRoomFound});
}

}  // namespace towline::runtime
