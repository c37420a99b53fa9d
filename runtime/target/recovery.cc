// What the target does when its source comes back after a lost link: a new epoch.
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/target/driver.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using base::PageCount;
using base::PageIndex;
using wire::FrameHeader;
using wire::FrameType;

// Guess: a source whose link flaps asks within milliseconds; one that is dead never does.
constexpr std::chrono::seconds kLinger{5};

}  // namespace

// ---- the fence, on tl-listen --------------------------------------------------------------------

// The id is known: whoever greets now must prove the session's own secret, in a greater epoch.
Admission TargetDriver::admit_again(const wire::Hello& hello) const {
  Admission admission;
  if (shuts_out(state_)) {
    admission.refusal = shut_out_reason();
  } else if (held_) {
    admission.refusal = "the target was paused by its user; migrate-recover there lets it go on";
  } else if (hello.epoch <= control_hello_.epoch) {
    admission.refusal =
        fmt::format("epoch {} is over; the target is in {}", hello.epoch, control_hello_.epoch);
  } else if (const auto room = memory_room(); !room.ok() && !never_) {
    admission.refusal = room.error().detail;
  } else {
    admission.secret = secret_;
    admission.phase = never_ ? wire::TargetPhase::kRefused : wire::TargetPhase::kLoading;
  }
  return admission;
}

void TargetDriver::deliver_again(std::shared_ptr<Lane> lane, const wire::Hello& hello) {
  std::shared_ptr<Lane> old;
  {
    const base::Lock lock(mutex_);
    if (ending_ || held_ || shuts_out(state_) || hello.epoch <= control_hello_.epoch) {
      return;
    }
    control_hello_.epoch = hello.epoch;
    control_hello_.features = hello.features;
    old = control_;
  }
  base::log(LogLevel::kInfo, "target.fence epoch={}", hello.epoch);
  old->shutdown();
  transfer_->lanes.shutdown();
  const auto before = std::make_shared<base::NamedThread>(std::move(control_thread_));
  control_thread_ =
      base::NamedThread("tl-control", [this, before, again = std::move(lane), epoch = hello.epoch] {
        before->join();
        run_recovery(again, epoch);
      });
}

// ---- a new epoch, on its tl-control -------------------------------------------------------------

void TargetDriver::run_recovery(const std::shared_ptr<Lane>& lane, std::uint64_t epoch) {
  // Every receiver of the old epoch has ended after this: claims are settled, and no frame of it
  // can be installed any more.
  transfer_->lanes.renew(epoch);
  {
    const base::Lock lock(mutex_);
    if (ending_ || shuts_out(state_) || epoch != control_hello_.epoch) {
      lane->shutdown();
      return;
    }
    control_ = lane;
    lane_error_.reset();
  }
  const auto answered = answer_again();
  const auto ended = answered.ok() ? receive_until_end() : answered;
  end_of_control(ended.ok() ? base::Error{ErrorKind::kDisconnected, 0, "receive",
                                          "the source closed the connection"}
                            : ended.error());
}

Outcome TargetDriver::answer_again() {
  std::optional<std::string> never;
  bool complete = false;
  {
    const base::Lock lock(mutex_);
    complete = state_ == TargetState::kCompleted;
    if (shuts_out(state_)) {
      return fail(ErrorKind::kRefused, "recover", shut_out_reason());
    }
    if (never_ || state_ == TargetState::kFailed) {
      never = error_;
    } else if (!complete) {
      TRY(advance_locked(TargetEvent::kReconnected));
      link_ = Link::kComparing;
      may_repeat_order_ = true;
    }
  }
  if (never.has_value()) {
    const std::string_view bounded = std::string_view(*never).substr(0, wire::kMaxTextPayload);
    TRY(send(FrameType::kNever, bytes_of(bounded)));
    const base::Lock lock(mutex_);
    told_never_ = true;
    changed_.notify_all();
    return base::Done{};
  }
  if (complete) {
    return tell_end();
  }
  return tell_missing(*control(), 0);
}

Outcome TargetDriver::tell_end() {
  std::uint64_t entered = 0;
  {
    const base::Lock lock(mutex_);
    entered = entered_at_ns_.value_or(0);
  }
  TRY(send(FrameType::kRunning, std::as_bytes(std::span(&entered, 1))));
  FrameHeader complete;
  complete.type = FrameType::kComplete;
  complete.count = layout_.pages().value;
  return control()->send(complete);
}

// `attempt`: of the lane that was replaced, or 0 for a new epoch, which also hears whether the
// guest runs.
Outcome TargetDriver::tell_missing(Lane& lane, std::uint32_t attempt) {
  const base::Lock telling(telling_mutex_);
  const auto next = [this](PageIndex at, PageCount limit) {
    return transfer_->map.next_missing(at, limit);
  };
  std::uint64_t named = 0;
  PageIndex at{0};
  while (const auto frame = wire::encode_missing(next, at, layout_.pages())) {
    TRY(lane.send(frame->header, frame->payload));
    named += frame->header.count;
    at = frame->next;
  }
  std::optional<std::uint64_t> entered;
  {
    const base::Lock lock(mutex_);
    entered = entered_at_ns_;
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
  return lane.send(end);
}

Outcome TargetDriver::on_resume() {
  TRY(transfer_->lanes.wait_attached(options_.handshake_timeout));
  {
    const base::Lock lock(mutex_);
    if (shuts_out(state_)) {
      return fail(ErrorKind::kRefused, "resume", shut_out_reason());
    }
    if (state_ != TargetState::kCompleted) {  // The last page may have come before this frame.
      TRY(advance_locked(TargetEvent::kResynced));
    }
    link_ = Link::kTied;
    error_.clear();
    ++recoveries_;
  }
  ask_again();
  return base::Done{};
}

// Whoever waits was asked for on a lane that is gone, or before any lane was there.
void TargetDriver::ask_again() {
  const std::size_t waiting = transfer_->lanes.ask_again();
  base::log(LogLevel::kInfo, "target.asks_again pages={}", waiting);
}

// A process that ends with its failure would leave a source without an answer parked for ever.
void TargetDriver::linger() {
  const base::Lock lock(mutex_);
  const base::Instant patience = clock_.now() + kLinger;
  [[maybe_unused]] const bool told =
      changed_.wait_until(mutex_, patience, [this]() UNDER_LOCK { return told_never_ || ending_; });
  lingers_ = false;
  if (!ending_) {
    show_locked();
  }
}

// ---- the user's calls ---------------------------------------------------------------------------

Outcome TargetDriver::pause() {
  std::shared_ptr<Lane> lane;
  {
    const base::Lock lock(mutex_);
    if (!has_the_state(state_) || link_ == Link::kLost) {
      return fail(ErrorKind::kRefused, "pause",
                  "migrate-pause is currently only supported during postcopy-active or "
                  "postcopy-recover state");
    }
    held_ = true;
    error_ = "paused by the user";
    lane = control_;
  }
  lane->shutdown();
  published_.load()->lanes.shutdown();
  return base::Done{};
}

Outcome TargetDriver::recover_at(const Uri& at) {
  {
    const base::Lock lock(mutex_);
    if (shown_ != MigrationStatus::kPostcopyPaused) {
      return fail(ErrorKind::kRefused, "recover",
                  "Migrate recover can only be run when postcopy is paused.");
    }
  }
  TRY(listener_->add(at));
  const base::Lock lock(mutex_);
  held_ = false;
  return base::Done{};
}

}  // namespace towline::runtime
