#include "vmm/monitor/monitor.h"

#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "vmm/monitor/arguments.h"

namespace towline::monitor {

using runtime::MigrationStatus;

namespace {

/// Exit status: the guest was ended because the source of its memory was lost.
constexpr int kGuestGivenUp = 3;

Json host_shutdown(const char* reason) {
  return Json::object({{"guest", false}, {"reason", reason}});
}

Json guest_shutdown(vmm::ShutdownCause cause) {
  const bool off = cause == vmm::ShutdownCause::kGuestPoweredOff;
  return Json::object({{"guest", true}, {"reason", off ? "guest-shutdown" : "guest-reset"}});
}

}  // namespace

void MachineEvents::tell(std::function<void(vmm::MachineListener&)> what) {
  loop_.post([this, what = std::move(what)] {
    if (to_ != nullptr) {
      what(*to_);
    }
  });
}

void MachineEvents::on_stop() {
  tell([](vmm::MachineListener& to) { to.on_stop(); });
}

void MachineEvents::on_resume() {
  tell([](vmm::MachineListener& to) { to.on_resume(); });
}

void MachineEvents::on_reset() {
  tell([](vmm::MachineListener& to) { to.on_reset(); });
}

void MachineEvents::on_shutdown(vmm::ShutdownCause cause) {
  tell([cause](vmm::MachineListener& to) { to.on_shutdown(cause); });
}

void MachineEvents::on_failure(const std::string& reason) {
  tell([reason](vmm::MachineListener& to) { to.on_failure(reason); });
}

Monitor::Monitor(const Parts& parts, MigrationConfig config, std::function<void(Exit)> exit)
    : guest_(parts.guest),
      machine_events_(parts.machine_events),
      exit_(std::move(exit)),
      migration_(parts.loop, parts.guest, parts.factory, *this, std::move(config)),
      context_{parts.guest, migration_, *this},
      server_(parts.loop, context_) {
  machine_events_.deliver_to(this);
}

Monitor::~Monitor() {
  machine_events_.deliver_to(nullptr);
}

base::Outcome Monitor::listen_qmp(const std::string& path, bool events) {
  TRY(server_.listen(path, events));
  if (first_qmp_.empty()) {
    first_qmp_ = path;
  }
  return base::Done{};
}

void Monitor::on_signal(const char* name) {
  if (const auto danger = migration_.danger_of_ending()) {
    // However often it comes: who presses Ctrl-C once more does so from habit.
    base::log_owner(
        base::LogLevel::kError, "monitor.signal_refused signal={} reason={} remedy={}", name,
        *danger + "; no signal ends this process meanwhile",
        first_qmp_.empty()
            ? "none: it was given no control socket (--qmp)"
            : fmt::format("to give the guest up: towline qmp {} quit x-force=true", first_qmp_));
    return;
  }
  if (const auto ended = end(false, host_shutdown("host-signal")); !ended.ok()) {
    base::log(base::LogLevel::kError, "monitor.signal_refused signal={} reason={}", name,
              ended.error().detail);
  }
}

base::Outcome Monitor::quit(bool force) {
  return end(force, host_shutdown("host-qmp-quit"));
}

base::Outcome Monitor::end(bool force, Json shutdown) {
  const auto danger = migration_.danger_of_ending();
  if (danger && !force) {
    return refuse(fmt::format("Refused: {}, or force it with \"x-force\": true", *danger));
  }
  if (danger) {
    base::log(base::LogLevel::kError, "monitor.forced_end reason={}", *danger);
  }
  // What a page server goes on with is left as it is: its target shall not be told of an end.
  const bool left = migration_.may_be_left();
  const bool forced = left || (force && (danger || migration_.in_progress()));
  if (left) {
    base::log(base::LogLevel::kWarning, "monitor.left reason={}",
              "the page server goes on with the migration");
  }
  if (migration_.can_be_cancelled() && !forced) {
    // Its threads are joined when it is settled; and the target is told instead of left alone.
    // Refused when the guest was handed over since the question above.
    TRY(migration_.cancel());
  }
  ending_ = Ending{Exit{0, forced}, std::move(shutdown)};
  end_when_settled();
  return base::Done{};
}

void Monitor::end_when_settled() {
  if (!ending_ || ended_) {
    return;
  }
  // A guest that switched itself off while the source still sends: the source is let finish.
  const bool settled = !migration_.in_progress() && !migration_.danger_of_ending();
  if (!settled && !ending_->exit.forced) {
    return;
  }
  ended_ = true;
  if (!ending_->shutdown.is_null()) {
    server_.broadcast("SHUTDOWN", ending_->shutdown);
  }
  exit_(ending_->exit);
}

void Monitor::on_migration_status(Role role, MigrationStatus status) {
  auto& told = role == Role::kSource ? told_source_ : told_target_;
  if (std::exchange(told, status) == status) {
    return;
  }
  if (migration_.settings().events) {
    server_.broadcast("MIGRATION", Json::object({{"status", runtime::to_string(status)}}));
  }
  base::log(base::LogLevel::kInfo, "migration.status role={} status={}",
            role == Role::kSource ? "source" : "target", runtime::to_string(status));
  if (role == Role::kSource && status == MigrationStatus::kCompleted) {
    guest_.migrated_away();
  }
  if (role == Role::kTarget) {
    end_if_failed(status);
  }
  end_when_settled();
}

void Monitor::end_if_failed(MigrationStatus status) {
  if (status == MigrationStatus::kFailed && migration_.guest_given_up()) {
    ending_ = Ending{Exit{kGuestGivenUp, false}, host_shutdown("host-error")};
    return;
  }
  if (status != MigrationStatus::kFailed || !migration_.exits_on_error() ||
      guest_.run_state() != vmm::RunState::kInmigrate) {
    return;
  }
  const auto latest = migration_.report();
  base::log(base::LogLevel::kError, "migration.incoming_failed reason={}",
            latest ? latest->report.error : "no reason known");
  if (!ending_) {
    ending_ = Ending{Exit{1, false}, Json()};
  }
}

void Monitor::on_migration_pass(std::uint64_t pass) {
  if (migration_.settings().events) {
    server_.broadcast("MIGRATION_PASS", Json::object({{"pass", pass}}));
  }
}

void Monitor::on_stop() {
  // The machine and the migration both tell; clients hear it once.
  if (std::exchange(told_stopped_, true) != true) {
    server_.broadcast("STOP", Json());
  }
}

void Monitor::on_resume() {
  if (std::exchange(told_stopped_, false) != false) {
    server_.broadcast("RESUME", Json());
  }
}

void Monitor::on_guest_started() {
  // A guest that its user had stopped arrives stopped: it is here, but RESUME would be untrue.
  if (guest_.run_state() == vmm::RunState::kRunning) {
    on_resume();
  }
}

void Monitor::on_source_lost(const runtime::MissingMemory& missing) {
  if (migration_.settings().events) {
    server_.broadcast("X_TOWLINE_SOURCE_LOST", Json::object({{"missing-pages", missing.pages},
                                                             {"missing-bytes", missing.bytes}}));
  }
}

void Monitor::on_reset() {
  server_.broadcast("RESET", Json::object({{"guest", true}, {"reason", "guest-reset"}}));
}

void Monitor::on_shutdown(vmm::ShutdownCause cause) {
  server_.broadcast("SHUTDOWN", guest_shutdown(cause));
  if (!ending_) {
    ending_ = Ending{Exit{0, false}, Json()};
  }
  if (migration_.can_be_cancelled()) {
    static_cast<void>(migration_.cancel());
  }
  end_when_settled();
}

void Monitor::on_failure(const std::string& reason) {
  base::log(base::LogLevel::kError, "guest.failed reason={}", reason);
}

}  // namespace towline::monitor
