// Who is let in at the target.
#include <fmt/format.h>

#include "runtime/core/target_protocol.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;
using wire::Hello;

}  // namespace

TargetAdmission TargetProtocol::admit(const Hello& hello, const Outcome& room) const {
  TargetAdmission admission;
  const bool known = knows(hello);
  if (hello.role != wire::LaneRole::kControl) {
    admission.proof = TargetAdmission::Proof::kSessionsSecret;
    if (!known || hello.epoch != hello_.epoch) {
      admission.refusal = "no migration of this identity and epoch is in progress here";
    } else if (hello.attempt != 0 && !replaces_lanes()) {
      admission.refusal = "no lane can be replaced now";
    }
  } else if (known) {
    // Whoever greets now must prove the session's own secret, in a greater epoch.
    admission.proof = TargetAdmission::Proof::kSessionsSecret;
    admission.phase = never() ? wire::TargetPhase::kRefused : wire::TargetPhase::kLoading;
    admission.refusal = refusal_again(hello);
    if (admission.refusal.empty() && !room.ok() && !never()) {
      admission.refusal = room.error().detail;
    }
  } else {
    admission.speaks_first = true;  // Whoever describes a guest first has the place.
    admission.refusal = refusal_of_control(hello);
    if (options_.secret.has_value()) {
      admission.proof = TargetAdmission::Proof::kUsersSecret;
    }
  }
  return admission;
}

std::string TargetProtocol::refusal_of_control(const Hello& hello) const {
  if (source_ != Source::kNone || state_ != TargetState::kListening) {
    return fmt::format("the target is busy with another migration (it is '{}')", to_string(state_));
  }
  if (hello.epoch > 1) {
    return "the target's process is another one than that which holds the guest, or held it: "
           "nothing of this migration is there";
  }
  if (options_.secret.has_value() && !hello.has_secret) {
    return "the target was started with a secret and the source was not; give both the same "
           "--secret FILE";
  }
  if (!options_.secret.has_value() && hello.has_secret) {
    return "the source was given a secret and the target was not; give both the same --secret "
           "FILE, or neither";
  }
  return {};
}

std::string TargetProtocol::refusal_again(const Hello& hello) const {
  if (shuts_out(state_)) {
    return shut_out_reason();
  }
  if (held_) {
    return "the target was paused by its user; migrate-recover there lets it go on";
  }
  if (hello.epoch <= hello_.epoch) {
    return fmt::format("epoch {} is over; the target is in {}", hello.epoch, hello_.epoch);
  }
  return {};
}

// For whoever greets: not a source's business any more.
std::string TargetProtocol::shut_out_reason() const {
  return fmt::format(
      "the target has given its source up and is '{}': the guest runs there with what it has, or "
      "was ended there, and what this source holds is of no use to it any more",
      to_string(state_));
}

// What was true at the greeting may not be true any more.
Outcome TargetProtocol::on_control_proven(const TargetInput& input) {
  const Hello& hello = input.hello;
  if (knows(hello)) {
    if (ending_ || !refusal_again(hello).empty()) {
      return fail(ErrorKind::kRefused, "control lane", refusal_again(hello));
    }
    hello_.epoch = hello.epoch;
    hello_.features = hello.features;
    emit(TargetEffect::Kind::kFence).epoch = hello.epoch;
    emit(TargetEffect::Kind::kShutControl);
    shut_lanes();
    give(TargetTask::Kind::kBeginEpoch).epoch = hello.epoch;
    return base::Done{};
  }
  if (source_ != Source::kNone || state_ != TargetState::kListening || ending_) {
    // Two sources greeted at once; the first one has it.
    return fail(ErrorKind::kRefused, "control lane",
                "the target has taken another source meanwhile");
  }
  source_ = Source::kGreeted;
  hello_ = hello;
  lanes_epoch_ = hello.epoch;
  started_ = now_;
  give(TargetTask::Kind::kTakeSource);
  return base::Done{};
}

// Whoever greets and then says nothing, or says it byte by byte, does not keep the place.
Outcome TargetProtocol::on_greeting_overdue() {
  if (source_ != Source::kGreeted) {
    return fail(ErrorKind::kRefused, "greeting", "nobody's description is waited for");
  }
  emit(TargetEffect::Kind::kShutControl);
  return base::Done{};
}

Outcome TargetProtocol::on_misdescribed() {
  if (source_ != Source::kGreeted) {
    return fail(ErrorKind::kRefused, "description", "no source is to describe its guest");
  }
  source_ = Source::kNone;
  return base::Done{};
}

}  // namespace towline::runtime
