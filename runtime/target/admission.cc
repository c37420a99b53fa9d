// Who connects to the target, and what becomes of the lane: tl-listen.
#include <utility>

#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/target/driver.h"

namespace towline::runtime {
namespace {

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
  arrived_ = std::move(lane);
  if (hello.role != wire::LaneRole::kControl) {
    return deliver_lane(hello);
  }
  bool comes_again = false;
  {
    const base::Lock lock(mutex_);
    comes_again = brain_.knows(hello);
  }
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

void TargetDriver::deliver_lane(const wire::Hello& hello) {
  const auto fed = feed({.kind = TargetInput::Kind::kLaneProven, .hello = hello});
  if (!fed.ok()) {
    base::log(LogLevel::kInfo, "lane.refused reason={}", base::to_string(fed.error()));
  }
  arrived_.reset();
}

}  // namespace towline::runtime
