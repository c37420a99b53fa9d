// The machine is loaded and started: tl-load.
#include <future>
#include <utility>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/owner_log.h"
#include "runtime/target/driver.h"

namespace towline::runtime {
namespace {

using base::LogLevel;
using base::Outcome;
using wire::FrameType;

}  // namespace

void TargetDriver::load_and_run() {
  std::vector<std::byte> encoded;
  {
    const base::Lock lock(mutex_);
    changed_.wait(mutex_, [this]() UNDER_LOCK {
      return state_ == TargetState::kLoading || state_ == TargetState::kFailed || ending_;
    });
    if (state_ != TargetState::kLoading) {
      return;
    }
    encoded = std::move(encoded_state_);
  }
  if (!load(encoded).ok()) {
    return;
  }
  {
    const base::Lock lock(mutex_);
    const auto loaded = advance_locked(TargetEvent::kStateLoaded);
    ENSURE(loaded.ok(), "nothing else ends loading");
    if (order_read_) {
      const auto ordered = advance_locked(TargetEvent::kRunOrdered);
      ENSURE(ordered.ok(), "a loaded target can be ordered to run");
    }
    settle_link();
    changed_.wait(mutex_, [this]() UNDER_LOCK { return order_read_ || ending_; });
    if (!order_read_) {
      return;
    }
  }
  start_guest();
}

Outcome TargetDriver::load(const std::vector<std::byte>& encoded) {
  auto state = decode(encoded);
  auto loaded =
      state.ok() ? machine_.load(state.value()) : Outcome(base::Err{std::move(state).error()});
  if (loaded.ok()) {
    return loaded;
  }
  const std::string reason = base::to_string(loaded.error());
  {
    // The tombstone is written before anybody is told.
    const base::Lock lock(mutex_);
    never_ = true;
    error_ = reason;
    lingers_ = !ending_;
    const auto failed = advance_locked(TargetEvent::kLoadFailed);
    ENSURE(failed.ok(), "loading may fail");
    linger_thread_ = base::NamedThread("tl-linger", [this] { linger(); });
  }
  if (!send(FrameType::kNever, bytes_of(reason)).ok()) {
    base::log_owner(LogLevel::kInfo, "never.unsent remedy={}",
                    "the source will be told when it asks again");
  }
  return loaded;  // The source closes when it has read that, and tl-control ends the rest.
}

// What happened to the link while nobody could step.
void TargetDriver::settle_link() {
  if (link_ == Link::kTied) {
    return;
  }
  const auto lost = advance_locked(TargetEvent::kLinkLost);
  ENSURE(lost.ok(), "a loaded or running target can lose its link");
  if (link_ == Link::kComparing) {
    const auto again = advance_locked(TargetEvent::kReconnected);
    ENSURE(again.ok(), "a target that is alone can be found again");
  }
}

void TargetDriver::start_guest() {
  const auto taken = change_owner(machine_.gate(), OwnershipEvent::kTake);
  ENSURE(taken.ok(), "one order opens the gate, once");
  running_here_ = true;
  // Shared: the vCPU's thread is still inside set_value() when get() returns here.
  const auto entered = std::make_shared<std::promise<std::uint64_t>>();
  auto when = entered->get_future();
  machine_.start_here([this, entered] { entered->set_value(base::to_ns(clock_.now())); });
  const std::uint64_t entered_at = when.get();
  if (machine_.wants_to_run()) {
    observer_.on_guest_started();
  }
  {
    const base::Lock lock(mutex_);
    entered_at_ns_ = entered_at;
  }
  // Unsent: a source that comes back is told again.
  [[maybe_unused]] const auto told =
      send(FrameType::kRunning, std::as_bytes(std::span(&entered_at, 1)));
  told_running_ = true;
  on_progress();
}

}  // namespace towline::runtime
