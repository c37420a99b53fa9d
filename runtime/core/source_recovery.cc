// What the source decides at the end that nobody wanted, and from there on: whose the guest is,
// when the target is asked again, and what is owed to it then.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/ensure.h"
#include "runtime/core/source_protocol.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;

// For what the target said before a lane broke. Guess: several round trips of a bad link.
constexpr std::chrono::milliseconds kLastWords{2000};
// Guess: far more than a round trip, less than TCP's first repetition of an unanswered request.
constexpr std::chrono::milliseconds kFirstPatience{500};

}  // namespace

// ---- the end ------------------------------------------------------------------------------------

// A lane broke, but the control lane may still hold the target's last words: that it runs, that it
// is complete, that it never will. They are heard before anything follows from the loss.
void SourceProtocol::end(const base::Error& reason) {
  end_reason_ = reason;
  if (cancel_ && before_order(state_)) {
    return settle();  // Whatever the target said, it is over; and it is told so.
  }
  if (is_paused(state_)) {
    // An attempt that came to nothing while the session was paused changes nothing but its words.
    attempt_error_ = base::to_string(reason);
    turned_away_ = turned_away_ || reason.kind == ErrorKind::kRefused;
    emit(SourceEffect::Kind::kAttemptFailed).text = attempt_error_;
    emit(SourceEffect::Kind::kCloseLanes);
    return give({.kind = SourceTask::Kind::kDropEpoch});
  }
  if (reason.kind != ErrorKind::kDisconnected || !link_.control_open) {
    return read_to_the_end();
  }
  emit(SourceEffect::Kind::kFinishSending);
  if (state_ == SourceState::kSwitching || link_.silent) {
    return read_to_the_end();  // Its guest is parked and ours: it goes on at once; or nobody
                               // speaks.
  }
  // A peer that neither speaks nor closes is not waited for any longer.
  wait_for(Wait::kControlEnd, kLastWords);
}

// Whatever arrived in this epoch has been read when the task is done, and nobody reads on: a source
// that shows that it is parked knows all that it will ever know of this link. (Its user may vouch
// that the target does not run the guest, and must not be believed against the target's own word.)
void SourceProtocol::read_to_the_end() {
  if (before_order(state_) || !link_.control_open) {
    return settle();
  }
  give({.kind = SourceTask::Kind::kReadToTheEnd});
}

void SourceProtocol::settle() {
  const SourceRule rule = rule_of_end();
  error_ = rule.on == SourceEvent::kTargetComplete ? "" : words_of_end();
  SourceEffect& ends = emit(SourceEffect::Kind::kEnds);
  ends.rule = rule;
  ends.text = error_;
  // Before the description the target knows of nothing that could be cancelled.
  if (rule.on == SourceEvent::kCancel && state_ != SourceState::kConnecting) {
    return give({.kind = SourceTask::Kind::kSayCancelled});
  }
  step(rule.on);
}

SourceRule SourceProtocol::rule_of_end() const {
  SourceEvent event = SourceEvent::kLinkLost;
  if (cancel_ && before_order(state_)) {
    event = SourceEvent::kCancel;
  } else if (complete_) {
    event = SourceEvent::kTargetComplete;
  } else if (never_.has_value()) {
    event = SourceEvent::kTargetNever;
  } else if (save_failed_) {
    event = SourceEvent::kSwitchFailed;
  } else if (link_.refused.has_value() || end_reason_.kind == ErrorKind::kRefused) {
    event = SourceEvent::kRefused;
  }
  // An event that the table does not list here is treated as a lost link.
  const auto said = runtime::step(rules_, state_, event);
  const auto lost = said.ok() ? said : runtime::step(rules_, state_, SourceEvent::kLinkLost);
  ENSURE(lost.ok(), "every state that can end has a rule for a lost link");
  return lost.value();
}

// The side that knew the cause explains it.
std::string SourceProtocol::words_of_end() const {
  if (cancel_ && before_order(state_)) {
    return "cancelled by the user";
  }
  if (never_.has_value() || link_.refused.has_value()) {
    return base::to_string(interrupted().error());
  }
  return base::to_string(end_reason_);
}

// ---- between two epochs -------------------------------------------------------------------------

bool SourceProtocol::advance_recovery() {
  if (wait_ == Wait::kControlEnd) {
    if (link_.control_ended || late()) {
      read_to_the_end();
      return true;
    }
    return false;
  }
  if (wait_ == Wait::kRetry) {
    return try_again();
  }
  if (link_.missing_told || complete_) {
    compare();
    return true;
  }
  if (proceed() && late()) {
    end(silent_error());
  }
  return wait_ != Wait::kComparison;
}

// Every thread of the old epoch has ended: nothing of it can reach what the next one builds. What
// the target said of the guest stays.
void SourceProtocol::on_dropped(std::uint64_t random) {
  link_ = Link{};
  base::Duration pause{};
  if (attempts_ != 0) {
    pause = backoff_.take(random);
  }
  const bool over = options_.reconnect_deadline.count() > 0 &&
                    now_ - *lost_at_ >= base::Duration(options_.reconnect_deadline);
  if (over && !std::exchange(held_, true)) {
    attempt_error_ = fmt::format("no longer tried: {} s are over; migrate with resume tries again",
                                 options_.reconnect_deadline.count());
  }
  const bool by_itself = options_.auto_recover && !held_;
  wait_for(Wait::kRetry, by_itself ? std::optional(pause) : std::nullopt);
}

bool SourceProtocol::try_again() {
  if (leave_) {
    wait_for(Wait::kOver);
    return true;
  }
  by_hand_ = resume_at_.has_value();
  if (!by_hand_ && !late()) {
    return false;
  }
  const std::size_t turn = attempts_ % (options_.alternates.size() + 1);
  Uri at = turn == 0 ? target_ : options_.alternates[turn - 1];
  if (by_hand_) {
    at = *std::exchange(resume_at_, std::nullopt);
    held_ = false;
    backoff_.reset();
  }
  ++attempts_;
  ++epoch_;
  // The user's attempt shows from its beginning; one made by itself, once somebody answers.
  if (by_hand_) {
    step(SourceEvent::kReconnect);
  }
  give({.kind = SourceTask::Kind::kOpenControl,
        .at = std::move(at),
        // An address that is silent is not waited for long at first: the next one may answer, and a
        // network that is back answers a new request sooner than TCP repeats an old one.
        .patience = kFirstPatience * static_cast<int>(std::min<std::size_t>(attempts_, 100))});
  return true;
}

// ---- a new epoch --------------------------------------------------------------------------------

void SourceProtocol::on_reopened(const SourceTask& task, const SourceInput& input) {
  if (input.number != target_incarnation_) {
    return end(base::Error{ErrorKind::kRefused, 0, "reconnect",
                           fmt::format("'{}' is another process than the one that holds the guest; "
                                       "what it says proves nothing",
                                       task.at.to_string())});
  }
  note_opened(input);
  reopened_at_ = task.at;
  if (!by_hand_) {
    step(SourceEvent::kReconnect);
  }
  step(SourceEvent::kReconnected);
}

// What the target is, and what it misses: exactly that is owed from here on. However long that
// takes to say: a target that counts its frames gives signs of life meanwhile, and tl-watch judges
// those.
void SourceProtocol::begin_comparison() {
  emit(SourceEffect::Kind::kOweNothing);
  emit(SourceEffect::Kind::kReadControl);
  wait_for(Wait::kComparison, link_.counts_frames
                                  ? std::nullopt
                                  : std::optional<base::Duration>(options_.handshake_timeout));
}

void SourceProtocol::compare() {
  if (complete_) {  // Whatever else was said before that, and lost.
    error_.clear();
    return give({.kind = SourceTask::Kind::kFinish});
  }
  if (!link_.runs && state_ == SourceState::kServingRecovering) {
    return end(base::Error{ErrorKind::kCorrupt, 0, "recover",
                           "the target ran the guest, and denies it now"});
  }
  give({.kind = SourceTask::Kind::kOpenLanesAgain, .at = reopened_at_});
}

// *Running* may have come while the lanes were being opened.
void SourceProtocol::on_resumed() {
  target_ = reopened_at_;
  if (state_ == SourceState::kServingRecovering) {
    recovered();
    return step(SourceEvent::kCompared);
  }
  step(SourceEvent::kTargetLoaded);
}

void SourceProtocol::recovered() {
  ++recoveries_;
  last_recovery_ = now_ - *lost_at_;
  error_.clear();
  attempt_error_.clear();
  emit(SourceEffect::Kind::kRecovered).attempt = static_cast<std::uint32_t>(attempts_);
  lost_at_.reset();
  turned_away_ = false;
  by_hand_ = false;
  attempts_ = 0;
  backoff_.reset();
}

}  // namespace towline::runtime
