// Room for guest memory at the target, and what becomes of a pass when there is none.
//
// After the switch a lane without room ends, as a link that is lost: whoever comes in a new epoch
// is refused until there is room (admission.cc). Before it the lane waits with its frame,
// and the source is told, so that it sends no more; the guest runs on there.
#include <string_view>

#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/target/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using wire::FrameType;

}  // namespace

Outcome TargetDriver::memory_room() const {
  const base::Bytes reserve{options_.memory_reserve};
  const auto limit = headroom_.tightest();
  if (limit.has_value() && limit->left < reserve) {
    return fail(ErrorKind::kOverloaded, "receive", explain(*limit, reserve));
  }
  const Transfer* transfer = published_;
  return transfer == nullptr ? Outcome(base::Done{}) : transfer->memory->room();
}

bool TargetDriver::takes_a_pass() const {
  return state_ == TargetState::kReceiving && link_ == Link::kTied && !never_ && !ending_;
}

// On the thread of a bulk lane. Nothing tells when there is room: it is looked for, again and
// again.
Outcome TargetDriver::wait_for_room(const base::Error& reason) {
  std::shared_ptr<Lane> control;
  {
    const base::Lock lock(mutex_);
    if (!takes_a_pass() || (control_hello_.features & wire::kFeatureWaitForRoom) == 0) {
      return base::Err<base::Error>{reason};  // A source that would not know what is waited for.
    }
    control = control_;
  }
  tell_no_room(reason);
  {
    const base::Lock lock(mutex_);
    const base::Instant next_look = clock_.now() + options_.heartbeat;
    [[maybe_unused]] const bool over =
        changed_.wait_until(mutex_, next_look, [this]() UNDER_LOCK { return !takes_a_pass(); });
    if (!takes_a_pass()) {
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

void TargetDriver::tell_no_room(const base::Error& reason) {
  const base::Lock telling(room_mutex_);
  {
    const base::Lock lock(mutex_);
    if (!no_room_.empty()) {
      return;
    }
    no_room_ = reason.detail;
  }
  base::log(LogLevel::kWarning, "memory.no_room reason={}", base::to_string(reason));
  const auto bounded = std::string_view(reason.detail).substr(0, wire::kMaxNoRoomPayload);
  // Unsent: the control lane has ended, and its own thread knows.
  [[maybe_unused]] const auto told = send(FrameType::kNoRoom, bytes_of(bounded));
}

// On the thread of a lane that had waited, before it reads on: ahead of its marker.
void TargetDriver::found_room() {
  const base::Lock telling(room_mutex_);
  {
    const base::Lock lock(mutex_);
    if (no_room_.empty()) {
      return;
    }
    no_room_.clear();
  }
  base::log(LogLevel::kInfo, "memory.room_again");
  [[maybe_unused]] const auto told = send(FrameType::kRoomAgain);
}

}  // namespace towline::runtime
