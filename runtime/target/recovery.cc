// A source that comes back, in a new epoch or on a lane of its own: the fences, and what it hears.
#include <utility>

#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/target/driver.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::LogLevel;
using base::Outcome;
using base::PageCount;
using base::PageIndex;
using wire::FrameHeader;
using wire::FrameType;

}  // namespace

// On tl-listen, which alone changes control_thread_. The old lanes are shut already.
void TargetDriver::begin_epoch(std::uint64_t epoch) {
  const auto before = std::make_shared<base::NamedThread>(std::move(control_thread_));
  const std::shared_ptr<Lane> lane = std::move(arrived_);
  control_thread_ = base::NamedThread("tl-control", [this, before, lane, epoch] {
    before->join();
    run_recovery(lane, epoch);
  });
}

void TargetDriver::run_recovery(const std::shared_ptr<Lane>& lane, std::uint64_t epoch) {
  // Every receiver of the old epoch has ended after this: claims are settled, and no frame of it
  // can be installed any more.
  transfer_->lanes.renew();
  {
    const base::Lock lock(mutex_);
    next_control_ = lane;
  }
  const auto answered = feed({.kind = TargetInput::Kind::kFenced, .epoch = epoch});
  if (control() != lane) {
    lane->shutdown();  // Not let in.
    const base::Lock lock(mutex_);
    next_control_.reset();
    return;
  }
  end_of_control(answered.ok() ? read_to_the_end() : answered);
}

Outcome TargetDriver::answer_never(const TargetTask& task) {
  const auto bounded = std::string_view(task.text).substr(0, wire::kMaxTextPayload);
  TRY(send(FrameType::kNever, bytes_of(bounded)));
  [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kDone, .task = task});
  return base::Done{};
}

Outcome TargetDriver::answer_complete() {
  std::uint64_t entered = 0;
  {
    const base::Lock lock(mutex_);
    entered = brain_.entered_at().value_or(0);
  }
  TRY(send(FrameType::kRunning, std::as_bytes(std::span(&entered, 1))));
  FrameHeader complete;
  complete.type = FrameType::kComplete;
  complete.count = layout_.pages().value;
  return control()->send(complete);
}

// `attempt`: of the lane that was replaced, or 0 for a new epoch, which also hears whether the
// guest runs. Only this epoch's control lane can be there: the next epoch begins after this thread
// was joined.
Outcome TargetDriver::tell_missing(std::uint32_t attempt) {
  const base::Lock telling(telling_mutex_);
  const std::shared_ptr<Lane> lane = control();
  const auto next = [this](PageIndex at, PageCount limit) {
    return transfer_->map.next_missing(at, limit);
  };
  std::uint64_t named = 0;
  PageIndex at{0};
  while (const auto frame = wire::encode_missing(next, at, layout_.pages())) {
    TRY(lane->send(frame->header, frame->payload));
    named += frame->header.count;
    at = frame->next;
  }
  std::optional<std::uint64_t> entered;
  {
    const base::Lock lock(mutex_);
    entered = brain_.entered_at();
  }
  if (entered.has_value() && attempt == 0) {
    TRY(send(FrameType::kRunning, std::as_bytes(std::span(&*entered, 1))));
  }
  base::log(LogLevel::kInfo, "target.told missing_pages={} running={} attempt={}", named,
            entered.has_value(), attempt);
  FrameHeader end;
  end.type = FrameType::kMissingEnd;
  end.count = named;
  end.round = attempt;
  return lane->send(end);
}

// Unsent: the control lane has ended too, and its own thread knows.
void TargetDriver::tell_lane_lost(const TargetTask& task) {
  FrameHeader lost;
  lost.type = FrameType::kLaneLost;
  lost.first = lane_code(task.lane);
  lost.round = static_cast<std::uint32_t>(task.number);
  const auto bounded = std::string_view(task.text).substr(0, wire::kMaxLaneLostPayload);
  [[maybe_unused]] const auto told = control()->send(lost, bytes_of(bounded));
}

// Whoever waits was asked for on a lane that is gone, or before any lane was there.
void TargetDriver::ask_again(bool sweep) {
  const std::size_t waiting = transfer_->lanes.ask_again();
  base::log(LogLevel::kInfo, "target.asks_again pages={}", waiting);
  if (sweep) {
    transfer_->lanes.sweep_again();
  }
}

void TargetDriver::linger() {
  {
    const base::Lock lock(mutex_);
    const base::Instant patience = brain_.lingers_until().value_or(clock_.now());
    changed_.wait_until(mutex_, patience, [this]() UNDER_LOCK { return brain_.may_show(); });
  }
  [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kLingerOver});
}

}  // namespace towline::runtime
