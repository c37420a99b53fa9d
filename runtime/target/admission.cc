// Who may connect to the target, and what becomes of the lane: tl-listen.
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/target/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using wire::FrameHeader;

}  // namespace

Admission TargetDriver::admit(const wire::Hello& hello) {
  const base::Lock lock(mutex_);
  if (hello.role == wire::LaneRole::kControl) {
    const bool known = published_.load() != nullptr && hello.id == control_hello_.id;
    return known ? admit_again(hello) : admit_control(hello);
  }
  if (published_.load() == nullptr || hello.id != control_hello_.id ||
      hello.epoch != control_hello_.epoch) {
    Admission stranger;
    stranger.refusal = "no migration of this identity and epoch is in progress here";
    return stranger;
  }
  Admission admission;
  if (hello.attempt != 0 && !replaces_lanes()) {
    admission.refusal = "no lane can be replaced now";
  } else {
    admission.secret = secret_;
  }
  return admission;
}

Admission TargetDriver::admit_control(const wire::Hello& hello) {
  Admission admission;
  admission.speaks_first = true;  // Whoever describes a guest first has the place.
  if (control_taken_ || state_ != TargetState::kListening) {
    admission.refusal =
        fmt::format("the target is busy with another migration (it is '{}')", to_string(state_));
  } else if (hello.epoch > 1) {
    admission.refusal =
        "this process is another one than that which holds the guest, or held it: nothing of this "
        "migration is here";
  } else if (options_.secret.has_value() && !hello.has_secret) {
    admission.refusal =
        "the target was started with a secret and the source was not; give both the same "
        "--secret FILE";
  } else if (!options_.secret.has_value() && hello.has_secret) {
    admission.refusal =
        "the source was given a secret and the target was not; give both the same --secret FILE, "
        "or neither";
  } else if (options_.secret.has_value()) {
    const auto bytes = bytes_of(*options_.secret);
    admission.secret.assign(bytes.begin(), bytes.end());
  }
  return admission;
}

void TargetDriver::deliver(std::unique_ptr<Lane> lane, const wire::Hello& hello) {
  if (hello.role != wire::LaneRole::kControl) {
    return deliver_lane(std::move(lane), hello);
  }
  bool known = false;
  {
    const base::Lock lock(mutex_);
    known = published_.load() != nullptr && hello.id == control_hello_.id;
    if (!known) {
      if (control_taken_ || state_ != TargetState::kListening) {
        // Two sources greeted at once; the first one has it.
        FrameHeader refusal;
        refusal.type = wire::FrameType::kRefuse;
        [[maybe_unused]] const auto told =
            lane->send(refusal, bytes_of("the target has taken another source meanwhile"));
        return;
      }
      control_taken_ = true;
      control_hello_ = hello;
      started_ = clock_.now();
    }
  }
  if (known) {
    return deliver_again(std::move(lane), hello);
  }
  {
    // An earlier source that was refused, and may not be reading why: nobody waits for that.
    const base::Lock lock(mutex_);
    if (control_ != nullptr) {
      control_->shutdown();
    }
  }
  control_thread_.join();
  {
    const base::Lock lock(mutex_);
    control_ = std::move(lane);
  }
  // Whoever greets and then says nothing, or says it byte by byte, does not keep the place.
  listener_->set_deadline(options_.handshake_timeout, [this] {
    const base::Lock lock(mutex_);
    if (control_taken_ && state_ == TargetState::kListening) {
      control_->shutdown();
    }
  });
  control_thread_ = base::NamedThread("tl-control", [this] { run_control(); });
}

void TargetDriver::deliver_lane(std::unique_ptr<Lane> lane, const wire::Hello& hello) {
  Transfer* transfer = published_;
  const auto attach = [&] {
    if (transfer == nullptr) {
      return Outcome(fail(ErrorKind::kRefused, "attach lane", "too late"));
    }
    return hello.attempt == 0
               ? transfer->lanes.attach(std::move(lane), hello.lane, hello.epoch)
               : transfer->lanes.replace(std::move(lane), hello.lane, hello.epoch, hello.attempt);
  };
  const auto attached = attach();
  if (!attached.ok()) {
    base::log(LogLevel::kInfo, "lane.refused reason={}", base::to_string(attached.error()));
  }
}

}  // namespace towline::runtime
