#include "vmm/monitor/monitor.h"

#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "vmm/monitor/command_arguments.h"

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

/// Turns what a migration tells into QMP events. Each call is queued for the loop and handled
/// there.
class Monitor::MigrationEvents final : public runtime::MigrationObserver {
 public:
  MigrationEvents(base::EventLoop& loop, std::shared_ptr<Monitor*> monitor, Role role)
      : loop_(loop), monitor_(std::move(monitor)), role_(role) {}

  void on_status(MigrationStatus status) override {
    on_loop([role = role_, status](Monitor& monitor) { monitor.migration_is(role, status); });
  }

  void on_link(runtime::LinkState state) override {
    on_loop([state](Monitor& monitor) {
      monitor.tell_if_wanted("X_TOWLINE_LINK",
                             Json::object({{"state", runtime::to_string(state)}}));
    });
  }

  void on_pass(std::uint64_t pass) override {
    on_loop([pass](Monitor& monitor) {
      monitor.tell_if_wanted("MIGRATION_PASS", Json::object({{"pass", pass}}));
    });
  }

  void on_guest_stopped() override {
    on_loop([](Monitor& monitor) { monitor.on_stop(); });
  }

  void on_guest_started() override {
    on_loop([](Monitor& monitor) {
      // A guest that its user had stopped arrives stopped: it is here, but RESUME would be untrue.
      if (monitor.guest_.run_state() == vmm::RunState::kRunning) {
        monitor.on_resume();
      }
    });
  }

  void on_source_lost(const runtime::MissingMemory& missing) override {
    on_loop([missing](Monitor& monitor) {
      monitor.tell_if_wanted(
          "X_TOWLINE_SOURCE_LOST",
          Json::object({{"missing-pages", missing.pages}, {"missing-bytes", missing.bytes}}));
    });
  }

 private:
  void on_loop(std::function<void(Monitor&)> what) {
    loop_.post([monitor = monitor_, what = std::move(what)] {
      if (*monitor != nullptr) {
        what(**monitor);
      }
    });
  }

  base::EventLoop& loop_;
  const std::shared_ptr<Monitor*> monitor_;  // shared: see Monitor::self_.
  const Role role_;
};

Monitor::Monitor(const Parts& parts, MigrationConfig config, std::function<void(Exit)> exit)
    : guest_(parts.guest),
      machine_events_(parts.machine_events),
      exit_(std::move(exit)),
      self_(std::make_shared<Monitor*>(this)),
      of_source_(std::make_unique<MigrationEvents>(parts.loop, self_, Role::kSource)),
      of_target_(std::make_unique<MigrationEvents>(parts.loop, self_, Role::kTarget)),
      migration_(parts.guest, parts.factory, {*of_source_, *of_target_}, std::move(config)),
      context_{parts.guest, migration_, *this},
      server_(parts.loop, context_) {
  machine_events_.deliver_to(this);
}

Monitor::~Monitor() {
  machine_events_.deliver_to(nullptr);
  *self_ = nullptr;
}

base::Outcome Monitor::listen_qmp(const std::string& path, bool events) {
  TRY(server_.listen(path, events ? Speaks::kQmp : Speaks::kQmpWithoutEvents));
  if (first_qmp_.empty()) {
    first_qmp_ = path;
  }
  return base::Done{};
}

base::Outcome Monitor::listen_human(const std::string& path) {
  return server_.listen(path, Speaks::kHuman);
}

void Monitor::on_signal(const char* name) {
  if (const auto danger = migration_.danger_of_ending()) {
    // However many signals come: people press Ctrl-C twice from habit.
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
  // If a page server continues the migration, the target must not be told that it ended.
  const bool left = migration_.may_be_left();
  const bool forced = left || (force && (danger || migration_.in_progress()));
  if (left) {
    base::log(base::LogLevel::kWarning, "monitor.left reason={}",
              "the page server goes on with the migration");
  }
  if (migration_.can_be_cancelled() && !forced) {
    // The target is told of the cancel, and the threads are joined when the migration has ended.
    // The cancel is refused if the guest was handed over since the check above.
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
  // If the guest powered off while the source still sends, the source may finish first.
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

void Monitor::tell_if_wanted(std::string_view event, const Json& data) {
  if (migration_.settings().events) {
    server_.broadcast(event, data);
  }
}

void Monitor::migration_is(Role role, MigrationStatus status) {
  // Setup is announced before a migration is begun. If that was refused, clients are not told.
  if (status == MigrationStatus::kSetup && !migration_.knows(role)) {
    return;
  }
  auto& told = role == Role::kSource ? told_source_ : told_target_;
  if (std::exchange(told, status) == status) {
    return;
  }
  tell_if_wanted("MIGRATION", Json::object({{"status", runtime::to_string(status)}}));
  base::log(base::LogLevel::kInfo, "migration.status role={} status={}",
            role == Role::kSource ? "source" : "target", runtime::to_string(status));
  if (role == Role::kSource) {
    guest_.on_leaving(status);
    server_.migration_changed();
  } else {
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

void Monitor::on_stop() {
  // The machine and the migration both report this; clients are told once.
  if (std::exchange(told_stopped_, true) != true) {
    server_.broadcast("STOP", Json());
  }
}

void Monitor::on_resume() {
  if (std::exchange(told_stopped_, false) != false) {
    server_.broadcast("RESUME", Json());
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
