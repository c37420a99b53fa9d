// How the source's migration ends when nobody wanted it to: what it waits to hear, whose the guest
// is then, and in which words that is told.
#include <sys/socket.h>

#include <utility>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/owner_log.h"
#include "runtime/source/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::LogLevel;
using wire::FrameHeader;
using wire::FrameType;

// For what the target said before a lane broke. Guess: several round trips of a bad link.
constexpr std::chrono::milliseconds kLastWords{2000};

}  // namespace

// A lane broke, but the control lane may still hold the target's last words: that it runs, that it
// is complete, that it never will. They are heard before anything follows from the loss.
void SourceDriver::hear_the_target_out() {
  if (!control_thread_.joinable()) {
    return;
  }
  ::shutdown(control_->fd(), SHUT_WR);
  const base::Lock lock(mutex_);
  if (state_ == SourceState::kSwitching || inbox_.silent) {
    return;  // Its guest is parked and ours: it goes on at once; or nobody speaks.
  }
  // A peer that neither speaks nor closes is not waited for any longer.
  const base::Instant patience = clock_.now() + kLastWords;
  [[maybe_unused]] const bool all_heard =
      changed_.wait_until(mutex_, patience, [this]() UNDER_LOCK { return inbox_.control_ended; });
}

// Whatever arrived in this epoch has been read when this returns, and nobody reads on: a source
// that shows that it is parked knows all that it will ever know of this link. (Its user may vouch
// that the target does not run the guest, and must not be believed against the target's own word.)
void SourceDriver::read_to_the_end() {
  close_lanes();
  control_thread_.join();
}

void SourceDriver::close_lanes() {
  if (bulk_ != nullptr) {
    bulk_->stop();
  }
  if (server_ != nullptr) {
    server_->stop();
  }
  if (control_ != nullptr) {
    control_->shutdown();
  }
}

void SourceDriver::end(const base::Error& reason) {
  if (attempt_failed(reason)) {
    return;
  }
  if (reason.kind == ErrorKind::kDisconnected) {
    hear_the_target_out();
  }
  if (!before_order(state_now())) {
    read_to_the_end();
  }
  SourceRule rule;
  bool before = false;
  {
    const base::Lock lock(mutex_);
    before = before_order(state_);
    rule = rule_of_end(reason);
    error_ = rule.on == SourceEvent::kTargetComplete ? "" : words_of_end(reason);
    base::log_owner(LogLevel::kInfo, "source.ends state={} event={} to={} reason={}",
                    to_string(rule.from), to_string(rule.on), to_string(rule.to), error_);
  }
  // Nobody else steps the session now (before the order tl-control does not, and after it that has
  // ended), so that the rule stays right without the lock, which nobody holds while the kernel or
  // the peer takes its time.
  if (rule.on == SourceEvent::kCancel && control_ != nullptr) {
    FrameHeader header;
    header.type = FrameType::kCancel;
    [[maybe_unused]] const auto told = control_->send(header, bytes_of("the user cancelled"));
  }
  if (!before && rule.act == SourceAction::kResumeGuest) {
    // The target's own word, from the incarnation that has the order: it never will.
    note_release();
    const auto back = change_owner(machine_.gate(), OwnershipEvent::kTargetRefused);
    ENSURE(back.ok(), "only an ordered guest can be given back by its target");
  }
  if (rule.act == SourceAction::kResumeGuest) {
    resume_guest();
  }
  // The log of the guest's writes is switched off when all is over: that takes as long as there is
  // memory, and between a loss and the next attempt the guest waits.
  close_lanes();
  if (rule.to == SourceState::kCompleted) {
    note_over();
  }
  const base::Lock lock(mutex_);
  state_ = rule.to;
  ended_ = clock_.now();
  if (!is_final(status_of(state_)) && !lost_at_.has_value()) {
    lost_at_ = ended_;
  }
  show(status_of(state_));
}

SourceRule SourceDriver::rule_of_end(const base::Error& reason) const {
  SourceEvent event = SourceEvent::kLinkLost;
  if (inbox_.cancel && before_order(state_)) {
    event = SourceEvent::kCancel;
  } else if (inbox_.complete) {
    event = SourceEvent::kTargetComplete;
  } else if (inbox_.never.has_value()) {
    event = SourceEvent::kTargetNever;
  } else if (inbox_.refused.has_value() || reason.kind == ErrorKind::kRefused) {
    event = SourceEvent::kRefused;
  }
  // What a peer says out of its turn is worth as much as its silence.
  const auto said = runtime::step(state_, event);
  const auto lost = said.ok() ? said : runtime::step(state_, SourceEvent::kLinkLost);
  ENSURE(lost.ok(), "every state that can end has a rule for a lost link");
  return lost.value();
}

// The side that knew the cause explains it.
std::string SourceDriver::words_of_end(const base::Error& reason) const {
  if (inbox_.cancel && before_order(state_)) {
    return "cancelled by the user";
  }
  if (inbox_.never.has_value() || inbox_.refused.has_value()) {
    return base::to_string(interrupted().error());
  }
  return base::to_string(reason);
}

void SourceDriver::resume_guest() {
  if (machine_.gate().ownership() == Ownership::kHeld) {
    note_release();
    const auto released = change_owner(machine_.gate(), OwnershipEvent::kRelease);
    ENSURE(released.ok(), "a held guest is ours to release");
  }
  machine_.unpark();
  observer_.on_guest_started();
}

}  // namespace towline::runtime
