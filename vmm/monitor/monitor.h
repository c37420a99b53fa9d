#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/event_loop.h"
#include "vmm/machine.h"
#include "vmm/monitor/commands.h"
#include "vmm/monitor/guest.h"
#include "vmm/monitor/migration_control.h"
#include "vmm/monitor/monitor_server.h"

namespace towline::monitor {

/// How the process is to end.
struct Exit {
  int code = 0;
  /// At once, joining nothing: a migration's threads or a vCPU may be waiting for something that
  /// will not come.
  bool forced = false;
};

/// Carries what the machine says, from any thread, over to the loop. Made before the machine,
/// because it must outlive it.
class MachineEvents final : public vmm::MachineListener {
 public:
  /// Called on the loop's thread. `to` may be null again before its end.
  void deliver_to(vmm::MachineListener* to) { to_ = to; }

  explicit MachineEvents(base::EventLoop& loop) : loop_(loop) {}

  void on_stop() override;
  void on_resume() override;
  void on_reset() override;
  void on_shutdown(vmm::ShutdownCause cause) override;
  void on_failure(const std::string& reason) override;

 private:
  void tell(std::function<void(vmm::MachineListener&)> what);

  base::EventLoop& loop_;
  vmm::MachineListener* to_ = nullptr;  // The loop's thread.
};

/// The control plane of one machine: QMP sockets, migrations, signals, and the one place that
/// decides whether the process may end.
///
/// Threads: the loop's. Migrations and the machine report from threads of their own; each report is
/// queued for the loop. Clients get the events in the order of that queue, and after the answer to
/// the command that is being carried out.
class Monitor final : public Quitter, private vmm::MachineListener {
 public:
  struct Parts {
    base::EventLoop& loop;
    Guest& guest;
    MigrationFactory& factory;
    MachineEvents& machine_events;
  };

  /// All parts outlive this. `exit` is called once, when the process shall end.
  Monitor(const Parts& parts, MigrationConfig config, std::function<void(Exit)> exit);
  ~Monitor() override;
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  base::Outcome listen_qmp(const std::string& path, bool events);

  /// As listen_qmp(), for people.
  base::Outcome listen_human(const std::string& path);

  /// For a process that ends without destroying this.
  void close_qmp() { server_.close(); }

  /// As migrate-incoming.
  base::Outcome listen_for_guest(const runtime::Uri& at) { return migration_.listen(at, true); }

  /// See MigrationControl.
  base::Outcome adopt(const MigrationControl::Start& start) { return migration_.adopt(start); }

  void forget_migration() { migration_.forget(); }

  /// The process is to end when nothing would be lost by it.
  void end_when_nothing_is_kept() { static_cast<void>(end(false, Json())); }

  /// SIGINT, SIGTERM, SIGHUP. Refused while ending would lose the guest, however many come.
  void on_signal(const char* name);

  base::Outcome quit(bool force) override;

 private:
  struct Ending {
    Exit exit;
    Json shutdown;  ///< Data of the SHUTDOWN event; null: it was sent already.
  };

  class MigrationEvents;

  void migration_is(Role role, runtime::MigrationStatus status);

  /// An event of migrations, for which there is a capability.
  void tell_if_wanted(std::string_view event, const Json& data);

  void on_stop() override;
  void on_resume() override;
  void on_reset() override;
  void on_shutdown(vmm::ShutdownCause cause) override;
  void on_failure(const std::string& reason) override;

  base::Outcome end(bool force, Json shutdown);
  void end_when_settled();
  void end_if_failed(runtime::MigrationStatus status);

  Guest& guest_;
  MachineEvents& machine_events_;
  const std::function<void(Exit)> exit_;
  // shared: with the reports in the loop's queue. Holds null when this is gone; only the loop's
  // thread reads or writes what it holds.
  const std::shared_ptr<Monitor*> self_;
  const std::unique_ptr<MigrationEvents> of_source_;
  const std::unique_ptr<MigrationEvents> of_target_;
  MigrationControl migration_;
  CommandContext context_;
  MonitorServer server_;
  // What clients were told last, so that nothing is told twice.
  std::optional<bool> told_stopped_;
  std::optional<runtime::MigrationStatus> told_source_;
  std::optional<runtime::MigrationStatus> told_target_;
  std::string first_qmp_;         ///< Where a person can force the end that signals cannot.
  std::optional<Ending> ending_;  ///< Decided, but a migration is not settled yet.
  bool ended_ = false;
};

}  // namespace towline::monitor
