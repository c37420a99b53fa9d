// Who connects to the target, and what becomes of the lane: tl-listen.
#include <utility>

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
  bool comes_again = false;
  {
    const base::Lock lock(mutex_);
    comes_again = hello.role == wire::LaneRole::kControl && brain_.knows(hello);
  }
  const Outcome space = comes_again ? room() : Outcome(base::Done{});
  const base::Lock lock(mutex_);
  const TargetAdmission verdict = brain_.admit(hello, space);
  Admission admission;
  admission.refusal = verdict.refusal;
  admission.phase = verdict.phase;
  admission.speaks_first = verdict.speaks_first;
  if (verdict.refusal.empty() && verdict.proof == TargetAdmission::Proof::kSessionsSecret) {
    admission.secret = secret_;
  }
  if (verdict.refusal.empty() && verdict.proof == TargetAdmission::Proof::kUsersSecret) {
    const auto bytes = bytes_of(*options_.secret);
    admission.secret.assign(bytes.begin(), bytes.end());
  }
  return admission;
}

void TargetDriver::deliver(std::unique_ptr<Lane> lane, const wire::Hello& hello) {
  if (hello.role != wire::LaneRole::kControl) {
    return deliver_lane(std::move(lane), hello);
  }
  bool comes_again = false;
  {
    const base::Lock lock(mutex_);
    comes_again = brain_.knows(hello);
  }
  arrived_ = std::move(lane);
  const auto fed = feed({.kind = TargetInput::Kind::kControlProven, .hello = hello});
  if (!fed.ok() && !comes_again) {
    FrameHeader refusal;
    refusal.type = wire::FrameType::kRefuse;
    [[maybe_unused]] const auto told = arrived_->send(refusal, bytes_of(fed.error().detail));
  }
  arrived_.reset();
}

// An earlier source that was refused may not be reading why: nobody waits for that.
void TargetDriver::take_source() {
  {
    const base::Lock lock(mutex_);
    shut_control();
  }
  control_thread_.join();
  {
    const base::Lock lock(mutex_);
    control_ = std::move(arrived_);
  }
  listener_->set_deadline(options_.handshake_timeout, [this] {
    [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kGreetingOverdue});
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
