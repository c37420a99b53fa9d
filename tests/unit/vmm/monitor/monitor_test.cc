#include "vmm/monitor/monitor.h"

#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "tests/unit/vmm/monitor/fakes.h"

namespace towline::monitor {
namespace {

using runtime::MigrationStatus;
using Heard = std::vector<std::string>;

/// A whole monitor over fakes, with one client.
struct Watched {
  explicit Watched(bool incoming = false) {
    if (incoming) {
      guest.state = vmm::RunState::kInmigrate;
    }
    monitor = std::make_unique<Monitor>(Monitor::Parts{*loop, guest, factory, machine_events},
                                        MigrationConfig{.incoming = incoming},
                                        [this](Exit how) { exits.push_back(how); });
    REQUIRE(monitor->listen_qmp(folder.file("qmp"), true).ok());
    client = std::make_unique<Client>(*loop, folder.file("qmp"));
    client->ready();
  }

  ~Watched() {
    if (factory.outgoing != nullptr) {
      factory.outgoing->report.status = MigrationStatus::kFailed;
    }
  }

  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  Json good(const std::string& command, const std::string& arguments = "{}") {
    const Json answer = ask(command, arguments);
    REQUIRE_MESSAGE(answer.find("return") != nullptr, answer.dump());
    return *answer.find("return");
  }

  std::string bad(const std::string& command, const std::string& arguments = "{}") {
    const Json answer = ask(command, arguments);
    REQUIRE_MESSAGE(answer.find("error") != nullptr, answer.dump());
    return text_of(*answer.find("error"), "desc");
  }

  void start(bool events) {
    good("migrate-set-capabilities",
         std::string(R"({"capabilities": [{"capability": "postcopy-ram", "state": true},
                                          {"capability": "events", "state": )") +
             (events ? "true}]}" : "false}]}"));
    good("migrate", R"({"uri": "tcp:127.0.0.1:4444"})");
  }

  FakeMigration& out() { return *factory.outgoing; }

  Folder folder;
  std::unique_ptr<base::EventLoop> loop = make_loop();
  FakeGuest guest;
  FakeFactory factory;
  MachineEvents machine_events{*loop};
  std::vector<Exit> exits;
  std::unique_ptr<Monitor> monitor;
  std::unique_ptr<Client> client;

 private:
  Json ask(const std::string& command, const std::string& arguments) {
    return client->ask("{\"execute\": \"" + command + "\", \"arguments\": " + arguments + "}");
  }
};

TEST_CASE("a whole move at the source is told in QEMU's order") {
  Watched watched;
  watched.machine_events.on_resume();
  watched.start(true);
  auto& observer = *watched.out().observer;
  watched.out().becomes(MigrationStatus::kActive);
  observer.on_pass(1);
  observer.on_guest_stopped();
  watched.machine_events.on_stop();  // The machine tells the same; clients hear it once.
  watched.out().becomes(MigrationStatus::kDevice);
  observer.on_pass(2);
  watched.out().becomes(MigrationStatus::kPostcopyDevice);
  watched.out().becomes(MigrationStatus::kPostcopyActive);
  watched.out().becomes(MigrationStatus::kCompleted);
  CHECK(watched.client->heard() == Heard{"RESUME", "MIGRATIONsetup", "MIGRATIONactive",
                                         "MIGRATION_PASS", "STOP", "MIGRATIONdevice",
                                         "MIGRATION_PASS", "MIGRATIONpostcopy-device",
                                         "MIGRATIONpostcopy-active", "MIGRATIONcompleted"});
  CHECK(watched.guest.orders == std::vector<std::string>{"migrated-away"});
}

TEST_CASE("without the capability for events a migration is silent, but for STOP and RESUME") {
  Watched watched;
  watched.start(false);
  watched.out().becomes(MigrationStatus::kActive);
  watched.out().observer->on_pass(1);
  watched.machine_events.on_stop();
  watched.out().becomes(MigrationStatus::kFailed);
  watched.machine_events.on_resume();
  CHECK(watched.client->heard() == Heard{"STOP", "RESUME"});
}

TEST_CASE("a status told twice is an event once") {
  Watched watched;
  watched.start(true);
  watched.out().becomes(MigrationStatus::kSetup);
  watched.out().becomes(MigrationStatus::kActive);
  watched.out().becomes(MigrationStatus::kActive);
  CHECK(watched.client->heard() == Heard{"MIGRATIONsetup", "MIGRATIONactive"});
}

TEST_CASE("a migration that never began announces nothing, at either end") {
  for (const bool incoming : {false, true}) {
    Watched watched(incoming);
    watched.factory.refusal = "no";
    watched.good("migrate-set-capabilities",
                 R"({"capabilities": [{"capability": "postcopy-ram", "state": true},
                                      {"capability": "events", "state": true}]})");
    const std::string uri = R"({"uri": "tcp:127.0.0.1:4444"})";
    CHECK(watched.bad(incoming ? "migrate-incoming" : "migrate", uri) == "no");
    CHECK(watched.client->heard().empty());
    watched.factory.refusal = "";
    watched.good(incoming ? "migrate-incoming" : "migrate", uri);
    CHECK(watched.client->heard() == Heard{"MIGRATIONsetup"});
  }
}

TEST_CASE("the end of one migration is told before the beginning of the next, also if refused") {
  Watched watched;
  watched.start(true);
  watched.client->heard();
  watched.client->events.clear();
  watched.out().becomes(MigrationStatus::kFailed);
  watched.factory.refusal = "no";
  CHECK(watched.bad("migrate", R"({"uri": "tcp:127.0.0.1:4444"})") == "no");
  watched.factory.refusal = "";
  watched.good("migrate", R"({"uri": "tcp:127.0.0.1:4444"})");
  CHECK(watched.client->heard() == Heard{"MIGRATIONfailed", "MIGRATIONsetup"});
}

TEST_CASE("what a migration's threads say is told on the loop, and nothing after the monitor") {
  Watched watched;
  watched.start(true);
  watched.client->heard();
  auto& observer = *watched.out().observer;
  std::thread([&] {
    observer.on_pass(1);
    observer.on_status(MigrationStatus::kActive);
  }).join();
  CHECK(watched.client->heard() == Heard{"MIGRATIONsetup", "MIGRATION_PASS", "MIGRATIONactive"});
  observer.on_status(MigrationStatus::kFailed);
  watched.out().report.status = MigrationStatus::kFailed;
  watched.monitor.reset();
  run_posted(*watched.loop);
  CHECK(watched.exits.empty());
}

TEST_CASE("a guest that switches itself off ends the process, with its own event") {
  Watched watched;
  watched.machine_events.on_shutdown(vmm::ShutdownCause::kGuestPoweredOff);
  CHECK(watched.client->heard() == Heard{"SHUTDOWNguest-shutdown"});
  REQUIRE(watched.exits.size() == 1);
  CHECK(watched.exits[0].code == 0);
  CHECK_FALSE(watched.exits[0].forced);
}

TEST_CASE("a reset of the guest is an event and ends nothing") {
  Watched watched;
  watched.machine_events.on_reset();
  CHECK(watched.client->heard() == Heard{"RESETguest-reset"});
  CHECK(watched.exits.empty());
}

TEST_CASE("quit is answered, then told, then obeyed") {
  Watched watched;
  CHECK(watched.good("quit").dump() == "{}");
  CHECK(watched.client->heard() == Heard{"SHUTDOWNhost-qmp-quit"});
  CHECK(watched.exits.size() == 1);
}

TEST_CASE("quit before the switch cancels first and ends when that is settled") {
  Watched watched;
  watched.start(true);
  watched.out().becomes(MigrationStatus::kActive);
  watched.good("quit");
  CHECK(watched.out().orders == std::vector<std::string>{"cancel"});
  CHECK(watched.exits.empty());
  watched.out().becomes(MigrationStatus::kCancelled);
  CHECK(watched.client->heard().back() == "SHUTDOWNhost-qmp-quit");
  REQUIRE(watched.exits.size() == 1);
  CHECK_FALSE(watched.exits[0].forced);
}

TEST_CASE("quit is refused when the guest is handed over while it is asked for") {
  Watched watched;
  watched.start(true);
  watched.out().becomes(MigrationStatus::kDevice);
  watched.out().cancel_refused = true;
  CHECK(watched.bad("quit") == "too late");
  watched.out().becomes(MigrationStatus::kCompleted);
  watched.client->heard();
  CHECK(watched.exits.empty());
}

TEST_CASE("quit at a source that holds the guest is refused with the danger, unless forced") {
  Watched watched;
  watched.start(true);
  watched.out().becomes(MigrationStatus::kPostcopyActive);
  watched.out().holds_guest = true;
  watched.out().report.remaining_bytes = 12345;
  const std::string said = watched.bad("quit");
  CHECK(has(said, "12345 bytes"));
  CHECK(has(said, "destroy the guest"));
  CHECK(has(said, "x-force"));
  CHECK(watched.exits.empty());
  watched.good("quit", R"({"x-force": true})");
  REQUIRE(watched.exits.size() == 1);
  CHECK(watched.exits[0].forced);
}

TEST_CASE("quit at a source whose page server has everything is obeyed, and joins nothing") {
  Watched watched;
  watched.start(true);
  watched.out().becomes(MigrationStatus::kPostcopyActive);
  watched.out().holds_guest = true;
  watched.out().may_be_left = true;
  watched.good("quit");
  REQUIRE(watched.exits.size() == 1);
  CHECK(watched.exits[0].forced);
  CHECK(watched.exits[0].code == 0);
}

TEST_CASE("quit at a target that misses pages is refused, also while it is paused") {
  Watched watched(true);
  watched.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  watched.factory.incoming->misses_pages = true;
  for (const auto status : {MigrationStatus::kPostcopyActive, MigrationStatus::kPostcopyPaused}) {
    watched.factory.incoming->becomes(status);
    CHECK(has(watched.bad("quit"), "still at the source"));
  }
  watched.factory.incoming->misses_pages = false;
  watched.factory.incoming->becomes(MigrationStatus::kCompleted);
  watched.good("quit");
  CHECK(watched.exits.size() == 1);
}

TEST_CASE("quit at a target that still waits, or receives before the switch, is obeyed") {
  Watched watched(true);
  watched.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  watched.factory.incoming->misses_pages = true;
  watched.factory.incoming->becomes(MigrationStatus::kActive);
  watched.good("quit");
  CHECK(watched.exits.size() == 1);
}

TEST_CASE("a signal is obeyed while nothing is in danger") {
  Watched watched;
  watched.monitor->on_signal("SIGTERM");
  CHECK(watched.client->heard() == Heard{"SHUTDOWNhost-signal"});
  REQUIRE(watched.exits.size() == 1);
  CHECK_FALSE(watched.exits[0].forced);
}

TEST_CASE("no number of signals ends a process that holds a guest, and quit by force does") {
  Watched watched;
  watched.start(true);
  watched.out().becomes(MigrationStatus::kPostcopyActive);
  watched.out().holds_guest = true;
  for (const char* name : {"SIGTERM", "SIGINT", "SIGINT", "SIGHUP", "SIGTERM"}) {
    watched.monitor->on_signal(name);
    CHECK(watched.exits.empty());
  }
  watched.good("quit", R"({"x-force": true})");
  REQUIRE(watched.exits.size() == 1);
  CHECK(watched.exits[0].forced);
}

TEST_CASE("a guest that switches itself off at the target waits until the source may forget it") {
  Watched watched(true);
  watched.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  watched.guest.state = vmm::RunState::kRunning;
  watched.factory.incoming->misses_pages = true;
  watched.factory.incoming->becomes(MigrationStatus::kPostcopyActive);
  watched.guest.state = vmm::RunState::kShutdown;
  watched.machine_events.on_shutdown(vmm::ShutdownCause::kGuestPoweredOff);
  CHECK(watched.client->heard().back() == "SHUTDOWNguest-shutdown");
  CHECK(watched.exits.empty());
  watched.factory.incoming->misses_pages = false;
  watched.factory.incoming->becomes(MigrationStatus::kCompleted);
  watched.client->heard();
  CHECK(watched.exits.size() == 1);
}

TEST_CASE("a guest that switches itself off during the pass ends the migration with it") {
  Watched watched;
  watched.start(true);
  watched.out().becomes(MigrationStatus::kActive);
  watched.machine_events.on_shutdown(vmm::ShutdownCause::kGuestPoweredOff);
  watched.client->heard();
  CHECK(watched.out().orders == std::vector<std::string>{"cancel"});
  CHECK(watched.exits.empty());
  watched.out().becomes(MigrationStatus::kCancelled);
  watched.client->heard();
  CHECK(watched.exits.size() == 1);
}

TEST_CASE("a guest that arrives running is told by RESUME, one that arrives stopped is not") {
  for (const bool stopped : {false, true}) {
    Watched watched(true);
    watched.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
    watched.guest.state = stopped ? vmm::RunState::kPaused : vmm::RunState::kRunning;
    watched.factory.incoming->observer->on_guest_started();
    CHECK(watched.client->heard() == (stopped ? Heard{} : Heard{"RESUME"}));
  }
}

TEST_CASE("exit-on-error: a failed incoming migration ends the process with 1, or is kept") {
  for (const bool exits : {true, false}) {
    Watched watched(true);
    watched.good("migrate-incoming",
                 std::string(R"({"uri": "tcp:127.0.0.1:0", "exit-on-error": )") +
                     (exits ? "true}" : "false}"));
    watched.factory.incoming->report.error = "the source closed the connection";
    watched.factory.incoming->becomes(MigrationStatus::kFailed);
    const Json answer = watched.good("query-migrate");
    CHECK(text_of(answer, "status") == "failed");
    CHECK(text_of(answer, "error-desc") == "the source closed the connection");
    REQUIRE(watched.exits.size() == (exits ? 1 : 0));
    if (exits) {
      CHECK(watched.exits[0].code == 1);
    }
  }
}

TEST_CASE("an end is told once, whatever else happens") {
  Watched watched;
  watched.good("quit");
  watched.monitor->on_signal("SIGTERM");
  watched.machine_events.on_shutdown(vmm::ShutdownCause::kGuestPoweredOff);
  watched.client->heard();
  CHECK(watched.exits.size() == 1);
}

TEST_CASE("what the machine says after the monitor has gone is dropped") {
  Watched watched;
  watched.machine_events.on_stop();
  watched.monitor.reset();
  run_posted(*watched.loop);
  CHECK(watched.exits.empty());
}

}  // namespace
}  // namespace towline::monitor
