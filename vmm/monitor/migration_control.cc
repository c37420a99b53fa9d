#include "vmm/monitor/migration_control.h"

#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "vmm/monitor/command_arguments.h"

namespace towline::monitor {

using runtime::MigrationStatus;

namespace {

bool in_postcopy(MigrationStatus status) {
  switch (status) {
    case MigrationStatus::kPostcopyDevice:
    case MigrationStatus::kPostcopyActive:
    case MigrationStatus::kPostcopyPaused:
    case MigrationStatus::kPostcopyRecoverSetup:
    case MigrationStatus::kPostcopyRecover:
      return true;
    case MigrationStatus::kNone:
    case MigrationStatus::kSetup:
    case MigrationStatus::kActive:
    case MigrationStatus::kPreSwitchover:
    case MigrationStatus::kDevice:
    case MigrationStatus::kCompleted:
    case MigrationStatus::kFailed:
    case MigrationStatus::kCancelling:
    case MigrationStatus::kCancelled:
      return false;
  }
  __builtin_unreachable();
}

bool is_over(MigrationStatus status) {
  return status == MigrationStatus::kNone || runtime::is_final(status);
}

}  // namespace

MigrationControl::MigrationControl(Guest& guest, MigrationFactory& factory,
                                   MigrationObservers observers, MigrationConfig config)
    : guest_(guest), factory_(factory), observers_(observers), config_(std::move(config)) {
  settings_.options = config_.options;
}

base::Outcome MigrationControl::set_capabilities(const Json& list) {
  if (!is_over(outgoing_status())) {
    return refuse("There's a migration process in progress");
  }
  const MigrationSettings changed = TRY(with_capabilities(settings_, list));
  // Managers write the same values again and again: only a change is refused.
  if (const MigrationStatus status = incoming_status(); !is_over(status)) {
    if (changed.postcopy_preempt != settings_.postcopy_preempt) {
      return refuse("Postcopy preempt must be set before incoming starts");
    }
    // Listening alone is not too late: with `--incoming tcp:…` a machine listens before anybody can
    // set this.
    if (changed.postcopy_ram != settings_.postcopy_ram && status != MigrationStatus::kSetup) {
      return refuse("Postcopy-ram must be set before a guest is received");
    }
  }
  settings_ = changed;
  return base::Done{};
}

base::Outcome MigrationControl::set_parameters(const Json* object) {
  const bool leaving = in_progress();
  const bool arriving = !is_over(incoming_status());
  MigrationSettings changed = TRY(with_parameters(settings_, object, {leaving, arriving}));
  if (changed.options.source_loss != settings_.options.source_loss) {
    TRY(runtime::check_source_loss(changed.options.source_loss));
  }
  settings_ = std::move(changed);
  const runtime::MigrationOptions& options = settings_.options;
  // What can change at any time.
  if (leaving) {
    outgoing_->set_bandwidth(options.max_bandwidth, options.max_postcopy_bandwidth);
  }
  if (incoming_ != nullptr) {
    TRY(incoming_->set_source_loss(options.source_loss, options.source_loss_deadline));
  }
  return base::Done{};
}

base::Outcome MigrationControl::may_migrate() const {
  // The migration first: while one runs, that is the reason that helps, whatever the run state is.
  if (!is_over(outgoing_status())) {
    return refuse("There's a migration process in progress");
  }
  const vmm::RunState state = guest_.run_state();
  if (state == vmm::RunState::kInmigrate) {
    return refuse("Guest is waiting for an incoming migration");
  }
  if (state == vmm::RunState::kPostmigrate || state == vmm::RunState::kFinishMigrate) {
    return refuse("Can't migrate the vm that was paused due to previous migration");
  }
  if (incoming_ != nullptr && incoming_->report().source_loss.poisoned_pages != 0) {
    return refuse(
        "Pages of the guest were lost with the source that it came from and are poisoned here; a "
        "further move would turn them into zeros");
  }
  if (incoming_ != nullptr && incoming_->misses_pages()) {
    return refuse(
        "The guest still misses pages of the migration that brought it here; wait until "
        "query-migrate says 'completed', then migrate it on");
  }
  return base::Done{};
}

base::Outcome MigrationControl::migrate(const runtime::Uri& target) {
  TRY(may_migrate());
  TRY(check_postcopy_is_meant(settings_));
  const runtime::MigrationOptions& chosen = settings_.options;
  forget();
  observers_.source.on_status(MigrationStatus::kSetup);  // Before its threads can say anything.
  outgoing_ = TRY(factory_.start(target, chosen, observers_.source));
  last_role_ = Role::kSource;
  base::log(base::LogLevel::kInfo, "migration.start target={} lanes={} passes={} changed={}",
            target.to_string(), chosen.bulk_lanes, chosen.passes, dump(chosen));
  return base::Done{};
}

void MigrationControl::forget() {
  if (outgoing_ != nullptr) {
    past_ = RoleReport{Role::kSource, outgoing_->report()};
    outgoing_.reset();  // Final: its threads have nothing left to wait for.
  }
}

base::Outcome MigrationControl::adopt(const Start& start) {
  forget();
  outgoing_ = TRY(start(observers_.source));
  last_role_ = Role::kSource;
  return base::Done{};
}

base::Outcome MigrationControl::resume_migration(const runtime::Uri& target) {
  if (outgoing_ == nullptr || outgoing_->report().link != runtime::LinkState::kLost) {
    return refuse("Cannot resume if there is no paused migration");
  }
  return outgoing_->resume(target);
}

base::Outcome MigrationControl::pause() {
  if (last_role_ == Role::kTarget && incoming_ != nullptr) {
    return incoming_->pause();
  }
  if (outgoing_ == nullptr) {
    return refuse(
        "migrate-pause is currently only supported during postcopy-active or postcopy-recover "
        "state");
  }
  return outgoing_->pause();
}

base::Outcome MigrationControl::recover_at(const runtime::Uri& at) {
  if (incoming_ == nullptr || incoming_->report().link != runtime::LinkState::kLost) {
    return refuse("Migrate recover can only be run when postcopy is paused.");
  }
  TRY(may_listen(at));
  return incoming_->recover_at(at);
}

base::Outcome MigrationControl::take_back(bool target_is_fenced) {
  if (outgoing_ == nullptr) {
    return refuse("There is no migration out of here to take back");
  }
  if (!target_is_fenced) {
    return refuse(
        "The target may run the guest: two running copies destroy it. Make sure that the target's "
        "process is gone for good (its host powered off, or the process killed), then say so with "
        "\"target-is-fenced\": true");
  }
  return outgoing_->take_back();
}

base::Outcome MigrationControl::give_up_source(std::optional<runtime::SourceLoss> how) {
  if (incoming_ == nullptr) {
    return refuse("There is no migration into here whose source could be given up");
  }
  const auto policy = how.value_or(settings_.options.source_loss);
  if (policy == runtime::SourceLoss::kWait) {
    return refuse(
        "Say what becomes of the guest: \"mode\": \"poison\" makes what is missing an error to "
        "touch, \"give-up\" ends the guest");
  }
  return incoming_->give_up_source(policy);
}

base::Outcome MigrationControl::start_postcopy() {
  if (!settings_.postcopy_ram) {
    return refuse("Enable postcopy with migrate_set_capability before the start of migration");
  }
  if (outgoing_ == nullptr) {
    return refuse("Postcopy must be started after migration has been started");
  }
  outgoing_->start_postcopy();
  return base::Done{};
}

base::Outcome MigrationControl::continue_switch(const std::string& state) {
  const auto status = runtime::to_string(outgoing_status());
  if (outgoing_status() != MigrationStatus::kPreSwitchover || state != status) {
    return refuse(fmt::format("Migration not in expected state: {}", status));
  }
  return outgoing_->continue_switch();
}

base::Outcome MigrationControl::cancel() {
  if (outgoing_ != nullptr && !is_over(outgoing_status())) {
    if (in_postcopy(outgoing_status())) {
      return refuse("Postcopy migration in progress, cannot cancel.");
    }
    auto cancelled = outgoing_->cancel();
    // The guest may have been handed over since the status was read.
    return !cancelled.ok() && in_postcopy(outgoing_status())
               ? refuse("Postcopy migration in progress, cannot cancel.")
               : std::move(cancelled);
  }
  const bool arriving = incoming_ != nullptr && !is_over(incoming_->report().status);
  if (arriving && incoming_->report().status != MigrationStatus::kSetup) {
    return refuse("An incoming migration is cancelled at its source");
  }
  return base::Done{};  // As in QEMU: nothing to cancel is no error.
}

base::Outcome MigrationControl::listen(const runtime::Uri& at, bool exit_on_error) {
  if (!config_.incoming) {
    return refuse("'-incoming' was not specified on the command line");
  }
  if (incoming_ != nullptr) {
    return refuse("The incoming migration has already been started");
  }
  TRY(may_listen(at));
  const runtime::MigrationOptions& chosen = settings_.options;
  observers_.target.on_status(MigrationStatus::kSetup);  // Before its threads can say anything.
  incoming_ = TRY(factory_.listen(at, chosen, observers_.target));
  exit_on_error_ = exit_on_error;
  last_role_ = Role::kTarget;
  const auto address = incoming_->report().listening;
  base::log(base::LogLevel::kInfo, "migration.listen address={} changed={}",
            address ? address->to_string() : at.to_string(), dump(chosen));
  return base::Done{};
}

base::Outcome MigrationControl::may_listen(const runtime::Uri& at) const {
  if (!at.is_local() && !config_.options.secret && !config_.allow_unprotected) {
    return refuse(fmt::format(
        "address '{}' can be reached from other hosts, and anybody there could hand this process "
        "a guest: start it with --secret FILE (the same on both sides), or with "
        "--allow-unprotected if the network is trusted",
        at.to_string()));
  }
  return base::Done{};
}

MigrationStatus MigrationControl::outgoing_status() const {
  return outgoing_ == nullptr ? MigrationStatus::kNone : outgoing_->report().status;
}

MigrationStatus MigrationControl::incoming_status() const {
  return incoming_ == nullptr ? MigrationStatus::kNone : incoming_->report().status;
}

bool MigrationControl::knows(Role role) const {
  return role == Role::kSource ? outgoing_ != nullptr : incoming_ != nullptr;
}

std::optional<RoleReport> MigrationControl::report() const {
  if (last_role_ == Role::kSource && outgoing_ != nullptr) {
    return RoleReport{Role::kSource, outgoing_->report()};
  }
  if (last_role_ == Role::kSource && past_) {
    return past_;
  }
  if (incoming_ != nullptr) {
    return RoleReport{Role::kTarget, incoming_->report()};
  }
  return std::nullopt;
}

base::Outcome MigrationControl::may_continue() const {
  const vmm::RunState state = guest_.run_state();
  if (state == vmm::RunState::kFinishMigrate) {
    return refuse("Migration is not finalized yet");
  }
  if (state == vmm::RunState::kPostmigrate) {
    return refuse(
        "The guest was moved away and runs at the target: continuing it here would make a second "
        "copy of it");
  }
  return base::Done{};
}

base::Outcome MigrationControl::may_reset() const {
  TRY(may_continue());
  if (guest_.run_state() == vmm::RunState::kInmigrate) {
    return refuse("Guest is waiting for an incoming migration");
  }
  return base::Done{};
}

std::optional<std::string> MigrationControl::danger_of_ending() const {
  if (auto kept = guest_.danger_of_ending()) {
    return kept;
  }
  if (outgoing_ != nullptr && outgoing_->holds_the_guest() && !outgoing_->may_be_left()) {
    return fmt::format(
        "the guest was handed to the target, and {} bytes of its memory may be only here: ending "
        "this process now can destroy the guest. Wait until query-migrate says 'completed'",
        outgoing_->report().remaining_bytes);
  }
  if (incoming_ != nullptr && incoming_->misses_pages()) {
    const auto report = incoming_->report();
    if (in_postcopy(report.status)) {
      return fmt::format(
          "the guest lives here and {} bytes of its memory are still at the source: ending this "
          "process now destroys the guest. Wait until query-migrate says 'completed'",
          report.remaining_bytes);
    }
  }
  return std::nullopt;
}

bool MigrationControl::guest_given_up() const {
  return incoming_ != nullptr && incoming_->report().source_loss.guest_ended;
}

bool MigrationControl::may_be_left() const {
  return outgoing_ != nullptr && outgoing_->may_be_left();
}

bool MigrationControl::can_be_cancelled() const {
  return outgoing_ != nullptr && !is_over(outgoing_status()) && !outgoing_->holds_the_guest();
}

bool MigrationControl::in_progress() const {
  return !is_over(outgoing_status());
}

}  // namespace towline::monitor
