// What the target does when its source stays away: wait, poison what is missing, or end the guest.
//
// First the deadline is over (tl-watch), or the user says so (main): the session is `abandoning`,
// and whoever greets is refused from here on. Then the fence, as for a new epoch: every lane is
// shut, and a new tl-control joins the old one and all receivers. No frame can land after that, no
// claim is open. Last, the final bytes of the old lanes may have brought all: then the move is
// complete. Otherwise every page that is missing is poisoned, or the guest is stopped; both are
// final.
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/target/driver.h"
#include "uffd/capabilities.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;

std::string amount(const MissingMemory& missing) {
  return fmt::format("{} pages ({} bytes)", missing.pages, missing.bytes);
}

}  // namespace

Outcome check_source_loss(SourceLoss policy) {
  const auto& can = uffd::capabilities();
  if (policy == SourceLoss::kPoison && can.ok() &&
      !can.value().features.contains(uffd::feature::kPoison)) {
    return fail(ErrorKind::kUnsupported, "source loss",
                "this kernel cannot poison pages (Linux 6.6 can); use wait or give-up");
  }
  return base::Done{};
}

Outcome TargetDriver::set_source_loss(SourceLoss policy, std::chrono::seconds deadline) {
  TRY(check_source_loss(policy));
  const base::Lock lock(mutex_);
  source_loss_ = policy;
  source_loss_deadline_ = deadline;
  return base::Done{};
}

Outcome TargetDriver::give_up_source(SourceLoss how) {
  if (how == SourceLoss::kWait) {
    return fail(ErrorKind::kRefused, "give up source", "use mode poison or give-up");
  }
  TRY(check_source_loss(how));
  {
    const base::Lock lock(mutex_);
    if (state_ != TargetState::kRunningAlone) {
      return fail(ErrorKind::kRefused, "give up source",
                  fmt::format("the target is '{}'; a source can be given up only while the guest "
                              "runs here and the migration is postcopy-paused (migrate-pause makes "
                              "it so)",
                              to_string(state_)));
    }
    begin_abandoning(how);
  }
  return base::Done{};
}

void TargetDriver::begin_abandoning(SourceLoss how) {
  [[maybe_unused]] const auto stepped = step_locked(TargetEvent::kSourceGivenUp);
  base::log_owner(LogLevel::kWarning, "source.given_up policy={} missing_pages={}", to_string(how),
                  transfer_->map.missing().value);
  listener_->post([this, how] { shut_out(how); });
}

MissingMemory TargetDriver::missing_memory() const {
  const std::uint64_t pages = transfer_->map.missing().value;
  return MissingMemory{pages, pages * layout_.mean_page().value};
}

// What is at stake, for the log and for who watches.
void TargetDriver::tell_source_lost() {
  const MissingMemory missing = missing_memory();
  base::log(LogLevel::kWarning, "source.away missing={} policy={} deadline_s={}", amount(missing),
            to_string(source_loss_), source_loss_deadline_.count());
  observer_.on_source_lost(missing);
}

// On tl-watch, with each tick.
void TargetDriver::check_source_deadline() {
  if (state_ != TargetState::kRunningAlone || !alone_since_.has_value()) {
    return;
  }
  // A source that is kept out, by the user or because there is no room for what it brings, is not
  // lost.
  if (held_ || !memory_room().ok()) {
    alone_since_ = clock_.now();
    return;
  }
  if (source_loss_ != SourceLoss::kWait &&
      clock_.now() - *alone_since_ >= base::Duration(source_loss_deadline_)) {
    begin_abandoning(source_loss_);
  }
}

// On tl-listen, which alone changes control_thread_.
void TargetDriver::shut_out(SourceLoss how) {
  std::shared_ptr<Lane> old;
  std::uint64_t epoch = 0;
  {
    const base::Lock lock(mutex_);
    if (ending_) {
      return;
    }
    old = control_;
    epoch = control_hello_.epoch;
  }
  old->shutdown();
  transfer_->lanes.shutdown();
  const auto before = std::make_shared<base::NamedThread>(std::move(control_thread_));
  control_thread_ = base::NamedThread("tl-control", [this, before, epoch, how] {
    before->join();
    transfer_->lanes.renew(epoch + 1);  // An epoch of nobody.
    transfer_->lanes.shutdown();
    settle_loss(how);
  });
}

// Nothing arrives any more.
void TargetDriver::settle_loss(SourceLoss how) {
  const MissingMemory missing = missing_memory();
  if (missing.pages == 0) {
    return on_progress();
  }
  std::string told;
  if (how == SourceLoss::kPoison) {
    machine_.pages_lost(missing.pages);
    const auto poisoned = transfer_->receiver->poison_missing();
    told = fmt::format(
        "the source was given up (policy poison): {} were only there and are poisoned; the guest "
        "runs on without them",
        amount(missing));
    if (!poisoned.ok()) {
      told = fmt::format(
          "the source was given up (policy poison): {} were only there, and {} of them could not "
          "be poisoned ({}); the guest is stopped",
          amount(missing), transfer_->map.missing().value, base::to_string(poisoned.error()));
      machine_.guest_failed(told);
    }
  } else {
    told =
        fmt::format("the guest was given up with its source (policy give-up): {} were only there",
                    amount(missing));
    machine_.guest_failed(told);
  }
  base::log_owner(LogLevel::kError, "source.lost reason={}", told);
  const base::Lock lock(mutex_);
  error_ = std::move(told);
  [[maybe_unused]] const auto stepped = step_locked(
      how == SourceLoss::kPoison ? TargetEvent::kPagesPoisoned : TargetEvent::kGuestGivenUp);
}

// For whoever greets: not a source's business any more.
std::string TargetDriver::shut_out_reason() const {
  return fmt::format(
      "the target has given its source up and is '{}': the guest runs there with what it has, or "
      "was ended there, and what this source holds is of no use to it any more",
      to_string(state_));
}

SourceLossReport TargetDriver::source_loss_report() const {
  SourceLossReport report;
  report.policy = source_loss_;
  report.deadline = source_loss_deadline_;
  if (state_ == TargetState::kRunningAlone && alone_since_.has_value()) {
    report.paused_for =
        std::chrono::duration_cast<std::chrono::seconds>(clock_.now() - *alone_since_);
  }
  report.guest_ended = state_ == TargetState::kLost;
  return report;
}

}  // namespace towline::runtime
