// The machine is loaded and started: tl-load.
#include <future>
#include <utility>

#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/target/driver.h"
#include "runtime/target/trace.h"

namespace towline::runtime {
namespace {

using base::LogLevel;
using base::Outcome;
using wire::FrameType;

}  // namespace

void TargetDriver::load_and_run() {
  while (const auto task = next_load_task()) {
    [[maybe_unused]] const auto done = carry_out(*task);
  }
}

std::optional<TargetTask> TargetDriver::next_load_task() {
  const base::Lock lock(mutex_);
  changed_.wait(mutex_,
                [this]() UNDER_LOCK { return brain_.has_load_task() || !brain_.may_load(); });
  auto task = brain_.take_load_task();
  if (task.has_value()) {
    trace_load(*task);
  }
  return task;
}

Outcome TargetDriver::load(const TargetTask& task) {
  auto state = decode(std::exchange(reading_.encoded_state, {}));
  auto loaded =
      state.ok() ? machine_.load(state.value()) : Outcome(base::Err{std::move(state).error()});
  TargetInput done{.kind = TargetInput::Kind::kDone, .task = task};
  if (!loaded.ok()) {
    done.error = loaded.error();
  }
  return feed(std::move(done));
}

Outcome TargetDriver::start_guest() {
  // Shared: the vCPU's thread is still inside set_value() when get() returns here.
  const auto entered = std::make_shared<std::promise<std::uint64_t>>();
  auto when = entered->get_future();
  machine_.start_here([this, entered] { entered->set_value(base::to_ns(clock_.now())); });
  const std::uint64_t entered_at = when.get();
  if (machine_.wants_to_run()) {
    observer_.on_guest_started();
  }
  return feed({.kind = TargetInput::Kind::kGuestEntered, .number = entered_at});
}

// Unsent: a source that comes back is told again.
Outcome TargetDriver::tell_running(const TargetTask& task) {
  std::uint64_t entered = 0;
  {
    const base::Lock lock(mutex_);
    entered = brain_.entered_at().value_or(0);
  }
  [[maybe_unused]] const auto told =
      send(FrameType::kRunning, std::as_bytes(std::span(&entered, 1)));
  [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kDone, .task = task});
  on_progress();
  return base::Done{};
}

void TargetDriver::finish() {
  wire::FrameHeader complete;
  complete.type = FrameType::kComplete;
  complete.count = layout_.pages().value;
  if (!control()->send(complete).ok()) {
    base::log(LogLevel::kInfo, "complete.unsent reason={}",
              "the source is gone; nothing is missing here");
  }
  const auto released = transfer_->memory->release();
  if (!released.ok()) {
    base::log(LogLevel::kWarning, "memory.release_failed reason={}",
              base::to_string(released.error()));
  }
}

}  // namespace towline::runtime
