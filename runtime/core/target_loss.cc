// The target's user, its room for guest memory, and a source that stays away.
//
// First the deadline is over, or the user says so: the session is `abandoning`, and whoever greets
// is refused from here on. Then the fence, as for a new epoch: no frame can land after that, no
// claim is open. Last, the final bytes of the old lanes may have brought all: then the move is
// complete. Otherwise every page that is missing is poisoned, or the guest is stopped; both are
// final.
#include <utility>

#include <fmt/format.h>

#include "runtime/core/target_protocol.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

}  // namespace

// ---- room, before the switch --------------------------------------------------------------------

bool TargetProtocol::takes_a_pass() const {
  return state_ == TargetState::kReceiving && link_ == Link::kTied && !never() && !ending_;
}

Outcome TargetProtocol::on_no_room(const base::Error& error) {
  if (!takes_a_pass() || (hello_.features & wire::kFeatureWaitForRoom) == 0) {
    return base::Err<base::Error>{error};  // A source that would not know what is waited for.
  }
  if (no_room_.empty()) {
    no_room_ = error.detail;
    emit(TargetEffect::Kind::kNoRoom).text = base::to_string(error);
    give(TargetTask::Kind::kTellNoRoom).text = error.detail;
  }
  return base::Done{};
}

Outcome TargetProtocol::on_room_found() {
  if (no_room_.empty()) {
    return fail(ErrorKind::kRefused, "room", "nobody has waited for it");
  }
  no_room_.clear();
  emit(TargetEffect::Kind::kRoomAgain);
  give(TargetTask::Kind::kTellRoomAgain);
  return base::Done{};
}

// ---- the user -----------------------------------------------------------------------------------

Outcome TargetProtocol::on_pause() {
  if (!has_the_state(state_) || link_ == Link::kLost) {
    return fail(ErrorKind::kRefused, "pause",
                "migrate-pause is currently only supported during postcopy-active or "
                "postcopy-recover state");
  }
  held_ = true;
  error_ = "paused by the user";
  emit(TargetEffect::Kind::kShutControl);
  shut_lanes();
  return base::Done{};
}

Outcome TargetProtocol::may_let_in() const {
  if (status_of(state_) != MigrationStatus::kPostcopyPaused) {
    return fail(ErrorKind::kRefused, "recover",
                "Migrate recover can only be run when postcopy is paused.");
  }
  return base::Done{};
}

Outcome TargetProtocol::on_let_in() {
  if (!held_) {
    return fail(ErrorKind::kRefused, "recover", "nobody is kept out");
  }
  held_ = false;
  return base::Done{};
}

Outcome TargetProtocol::on_source_loss(const TargetInput& input) {
  source_loss_ = input.policy;
  source_loss_deadline_ = input.deadline;
  return base::Done{};
}

Outcome TargetProtocol::on_ending() {
  if (ending_) {
    return fail(ErrorKind::kRefused, "ending", "it is known");
  }
  ending_ = true;
  emit(TargetEffect::Kind::kShutControl);
  shut_lanes();
  return base::Done{};
}

// ---- a source that stays away -------------------------------------------------------------------

Outcome TargetProtocol::on_give_up_source(SourceLoss how) {
  if (how == SourceLoss::kWait) {
    return fail(ErrorKind::kRefused, "give up source", "use mode poison or give-up");
  }
  if (ending_ || !may(TargetEvent::kSourceGivenUp)) {
    return fail(ErrorKind::kRefused, "give up source",
                fmt::format("the target is '{}'; a source can be given up only while the guest "
                            "runs here and the migration is postcopy-paused (migrate-pause makes "
                            "it so)",
                            to_string(state_)));
  }
  giving_up_ = how;
  return step(TargetEvent::kSourceGivenUp);
}

Outcome TargetProtocol::on_time(bool has_room) {
  if (!counts_time_alone() && owes_status(now_)) {
    return base::Done{};  // Its new status is all that the time brings.
  }
  if (!counts_time_alone()) {
    return fail(ErrorKind::kRefused, "time", "the guest is not alone");
  }
  // A source that is kept out, by the user or because there is no room for what it brings, is not
  // lost.
  if (held_ || !has_room) {
    alone_since_ = now_;
    return base::Done{};
  }
  if (source_loss_ != SourceLoss::kWait &&
      now_ - *alone_since_ >= base::Duration(source_loss_deadline_)) {
    return on_give_up_source(source_loss_);
  }
  return base::Done{};
}

Outcome TargetProtocol::on_nothing_arrives(const TargetInput& input) {
  if (state_ != TargetState::kAbandoning) {
    return fail(ErrorKind::kRefused, "give up source", "nobody is being given up");
  }
  if (input.number == 0) {
    return on_nothing_missing();
  }
  if (giving_up_ == SourceLoss::kPoison) {
    TargetTask& poison = give(TargetTask::Kind::kPoison);
    poison.number = input.number;
    poison.text = input.text;
  } else {
    give(TargetTask::Kind::kEndGuest).text = fmt::format(
        "the guest was given up with its source (policy give-up): {} were only there", input.text);
  }
  return base::Done{};
}

Outcome TargetProtocol::on_loss_settled(const TargetInput& input) {
  const TargetEvent event = input.task->kind == TargetTask::Kind::kPoison
                                ? TargetEvent::kPagesPoisoned
                                : TargetEvent::kGuestGivenUp;
  TRY(runtime::step(rules_, state_, event));
  error_ = input.text;
  return step(event);
}

// ---- what others see ----------------------------------------------------------------------------

void TargetProtocol::report_to(MigrationReport& report, base::Instant now) const {
  using std::chrono::duration_cast;
  report.status = shown_;
  report.link = link();
  report.error = error_;
  report.overdue = overdue_;
  report.waits_for = state_ == TargetState::kReceiving ? no_room_ : "";
  report.epoch = hello_.epoch;
  report.recoveries = recoveries_;
  report.lanes_replaced = lanes_replaced_;
  report.source_loss.policy = source_loss_;
  report.source_loss.deadline = source_loss_deadline_;
  if (counts_time_alone()) {
    report.source_loss.paused_for = duration_cast<std::chrono::seconds>(now - *alone_since_);
  }
  report.source_loss.guest_ended = state_ == TargetState::kLost;
  if (source_ != Source::kNone) {
    report.total_time =
        duration_cast<std::chrono::milliseconds>((is_final(shown_) ? ended_ : now) - *started_);
  }
}

std::string TargetProtocol::dump() const {
  const auto instant = [](const std::optional<base::Instant>& at) {
    return at.has_value() ? fmt::format("{}", base::to_ns(*at)) : std::string("-");
  };
  return fmt::format(
      "state={} shown={} source={} epoch={} lanes_epoch={} features={} link={} tombstone={} "
      "stale={} round={} final={} possible={} read={} repeat={} entered={} told={} error='{}' "
      "overdue='{}' no_room='{}' lane_error='{}' started={} ended={} recoveries={} replaced={} "
      "lingers={} held={} ending={} policy={} deadline={} giving_up={} alone={} tasks={} "
      "lanes={} shown_link={} lost={} full={}",
      to_string(state_), to_string(shown_), static_cast<int>(source_), hello_.epoch, lanes_epoch_,
      hello_.features, static_cast<int>(link_), static_cast<int>(tombstone_), stale_pages_,
      round_.has_value() ? round_->round : 0, final_delta_, order_possible_, order_read_,
      may_repeat_order_, entered_at_ns_.value_or(0), told_running_, error_, overdue_, no_room_,
      lane_error_.has_value() ? base::to_string(*lane_error_) : "", instant(started_),
      instant(ended_), recoveries_, lanes_replaced_, instant(lingers_until_), held_, ending_,
      to_string(source_loss_), source_loss_deadline_.count(), to_string(giving_up_),
      instant(alone_since_), load_tasks_.size(), dump_lanes(), to_string(link_shown_),
      instant(lost_since_), no_room_for_more_);
}

}  // namespace towline::runtime
