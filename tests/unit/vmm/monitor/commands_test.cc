#include "vmm/monitor/commands.h"

#include <array>
#include <string>

#include <doctest/doctest.h>

#include "tests/unit/vmm/monitor/fakes.h"

namespace towline::monitor {
namespace {

using runtime::MigrationStatus;

constexpr const char* kUri = R"({"uri": "tcp:127.0.0.1:4444"})";
constexpr const char* kPostcopy =
    R"({"capabilities": [{"capability": "postcopy-ram", "state": true}]})";

MigrationConfig waiting() {
  return {.incoming = true};
}

TEST_CASE("query-commands lists what can be called, and every query answers in every run state") {
  Desk desk;
  const Json list = desk.good("query-commands");
  REQUIRE(list.items()->size() == commands().size() + 1);
  CHECK(text_of(list.items()->front(), "name") == "qmp_capabilities");  // The session's own.
  constexpr std::array kStates{vmm::RunState::kPrelaunch,     vmm::RunState::kRunning,
                               vmm::RunState::kPaused,        vmm::RunState::kInmigrate,
                               vmm::RunState::kFinishMigrate, vmm::RunState::kPostmigrate,
                               vmm::RunState::kShutdown,      vmm::RunState::kInternalError};
  for (const auto state : kStates) {
    desk.guest.state = state;
    for (const auto& entry : *list.items()) {
      const std::string name = text_of(entry, "name");
      REQUIRE((name == "qmp_capabilities" || find_command(name) != nullptr));
      if (name.starts_with("query-")) {
        desk.good(name);
      }
    }
  }
}

TEST_CASE("every command refuses arguments that it does not know") {
  Desk desk;
  for (const auto& command : commands()) {
    const std::string name(command.name);
    const std::string arguments =
        name == "migrate" || name == "migrate-incoming" || name == "migrate-recover"
            ? R"({"uri": "tcp:127.0.0.1:1", "extra": 1})"
        : name == "migrate-set-capabilities" ? R"({"capabilities": [], "extra": 1})"
        : name == "migrate-continue"         ? R"({"state": "pre-switchover", "extra": 1})"
        : name == "human-monitor-command"    ? R"({"command-line": "quit", "extra": 1})"
                                             : R"({"extra": 1})";
    CHECK_MESSAGE(desk.bad(name, arguments) == "Parameter 'extra' is unexpected", name);
  }
  CHECK(desk.guest.orders.empty());
  CHECK(desk.quits.empty());
}

TEST_CASE("query-status tells the run state, and the reason of an internal error") {
  Desk desk;
  CHECK(desk.good("query-status").dump() == R"({"status": "running", "running": true})");
  desk.guest.state = vmm::RunState::kFinishMigrate;
  CHECK(desk.good("query-status").dump() == R"({"status": "finish-migrate", "running": false})");
  desk.guest.state = vmm::RunState::kInternalError;
  CHECK(text_of(desk.good("query-status"), "x-towline-reason") == "KVM said no");
}

TEST_CASE("small questions of managers are answered") {
  Desk desk;
  CHECK(desk.good("query-name").dump() == R"({"name": "fake"})");
  CHECK(desk.good("query-kvm").dump() == R"({"enabled": true, "present": true})");
  CHECK(whole_of(*desk.good("query-version").find("qemu"), "major") == 10);
  CHECK(text_of(desk.good("query-target"), "arch") == "x86_64");
  CHECK(text_of(desk.good("query-uuid"), "UUID") == "00000000-0000-0000-0000-000000000000");
  CHECK(desk.good("query-memory-size-summary").dump() ==
        R"({"base-memory": 67108864, "plugged-memory": 0})");
  const Json vcpus = desk.good("query-cpus-fast");
  REQUIRE(vcpus.items()->size() == 2);
  CHECK(vcpus.items()->back().dump() ==
        R"({"thread-id": 72, "props": {"core-id": 0, "thread-id": 0, "socket-id": 1}, )"
        R"("qom-path": "/machine/unattached/device[1]", "cpu-index": 1, "target": "x86_64"})");
}

TEST_CASE("stop, cont and reset are the machine's business while no migration has the guest") {
  Desk desk;
  desk.good("stop");
  desk.good("cont");
  desk.good("system_reset");
  CHECK(desk.guest.orders == std::vector<std::string>{"stop", "cont", "reset"});
}

TEST_CASE("cont and reset are refused once the guest was handed over, also after the end") {
  Desk desk;
  desk.guest.state = vmm::RunState::kFinishMigrate;
  CHECK(desk.bad("cont") == "Migration is not finalized yet");
  CHECK(desk.bad("system_reset") == "Migration is not finalized yet");
  desk.guest.state = vmm::RunState::kPostmigrate;
  CHECK(has(desk.bad("cont"), "second copy"));
  CHECK(has(desk.bad("system_reset"), "second copy"));
  CHECK(desk.guest.orders.empty());
}

TEST_CASE("a machine that waits for a guest takes cont as a wish and refuses reset") {
  Desk desk(waiting());
  desk.good("cont");
  CHECK(desk.guest.orders == std::vector<std::string>{"cont"});
  CHECK(desk.bad("system_reset") == "Guest is waiting for an incoming migration");
}

TEST_CASE("quit passes on whether it is forced") {
  Desk desk;
  desk.good("quit");
  desk.good("quit", R"({"x-force": true})");
  desk.good("quit", R"({"x-force": false})");
  CHECK(desk.quits == std::vector<bool>{false, true, false});
  CHECK(desk.bad("quit", R"({"x-force": 1})") ==
        "Invalid parameter type for 'x-force', expected: boolean");
}

TEST_CASE("migrate needs one address, of a kind that is built") {
  Desk desk;
  CHECK(desk.bad("migrate") == "need either 'uri' or 'channels' argument");
  CHECK(desk.bad("migrate", R"({"uri": "tcp:h:1", "channels": []})") ==
        "need either 'uri' or 'channels' argument");
  CHECK(has(desk.bad("migrate", R"({"uri": "exec:cat"})"), "unknown migration protocol: exec:cat"));
  CHECK(has(desk.bad("migrate", R"({"uri": "tcp:host"})"), "port is missing"));
  CHECK(desk.bad("migrate", R"({"uri": 5})") ==
        "Invalid parameter type for 'uri', expected: string");
  CHECK(desk.bad("migrate", R"({"channels": 5})") ==
        "Invalid parameter type for 'channels', expected: array");
  CHECK(desk.factory.outgoing == nullptr);
  CHECK(desk.good("query-migrate").dump() == "{}");
}

TEST_CASE("migrate takes the same address as channels") {
  Desk desk;
  desk.good("migrate-set-capabilities", kPostcopy);
  desk.good("migrate",
            R"({"channels": [{"channel-type": "main", "addr": {"transport": "socket",
                "type": "inet", "host": "::1", "port": "42187"}}]})");
  CHECK(desk.factory.outgoing->uri.to_string() == "tcp:[::1]:42187");
  Desk other;
  other.good("migrate-set-capabilities", kPostcopy);
  other.good("migrate", R"({"channels": [{"channel-type": "main", "addr": {"transport": "socket",
                            "type": "unix", "path": "/x"}}]})");
  CHECK(other.factory.outgoing->uri.to_string() == "unix:/x");
}

TEST_CASE("channels that are not built are refused by name") {
  Desk desk;
  const auto with = [&](const std::string& channels) {
    return desk.bad("migrate", R"({"channels": )" + channels + "}");
  };
  CHECK(has(with("[]"), "one entry"));
  CHECK(has(with(R"([{"channel-type": "cpr"}])"), "'cpr'"));
  CHECK(has(with(R"([{"channel-type": "main"}])"), "'addr' is missing"));
  CHECK(has(with(R"([{"channel-type": "main", "addr": {"transport": "exec"}}])"), "'exec'"));
  CHECK(has(with(R"([{"channel-type": "main",
                      "addr": {"transport": "socket", "type": "vsock"}}])"),
            "'vsock'"));
}

TEST_CASE("migrate with resume goes to a paused migration, and to no other") {
  Desk desk;
  const std::string resume = R"({"uri": "tcp:127.0.0.1:1", "resume": true})";
  CHECK(desk.bad("migrate", resume) == "Cannot resume if there is no paused migration");
  desk.start_active();
  CHECK(desk.bad("migrate", resume) == "Cannot resume if there is no paused migration");
  desk.factory.outgoing->becomes(MigrationStatus::kPostcopyPaused);
  desk.good("migrate", resume);
  CHECK(desk.factory.outgoing->orders.back() == "resume tcp:127.0.0.1:1");
  desk.good("query-migrate");
}

TEST_CASE("migrate-pause goes to the end that this process is") {
  Desk source;
  CHECK(has(source.bad("migrate-pause"), "only supported during postcopy-active"));
  source.start_active();
  source.good("migrate-pause");
  CHECK(source.factory.outgoing->orders.back() == "pause");
  Desk target(MigrationConfig{.incoming = true});
  target.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  target.good("migrate-pause");
  CHECK(target.factory.incoming->orders.back() == "pause");
}

TEST_CASE("migrate-recover needs a paused target and an address that is protected") {
  Desk desk(MigrationConfig{.incoming = true});
  const std::string here = R"({"uri": "tcp:127.0.0.1:0"})";
  CHECK(has(desk.bad("migrate-recover", here), "only be run when postcopy is paused"));
  desk.good("migrate-incoming", here);
  CHECK(has(desk.bad("migrate-recover", here), "only be run when postcopy is paused"));
  desk.factory.incoming->becomes(MigrationStatus::kPostcopyPaused);
  desk.good("migrate-recover", here);
  CHECK(desk.factory.incoming->orders.back() == "recover tcp:127.0.0.1:0");
  CHECK(has(desk.bad("migrate-recover", R"({"uri": "tcp:0.0.0.0:0"})"), "--secret FILE"));
}

TEST_CASE("a guest is taken back only by who says that the target is fenced") {
  Desk desk;
  CHECK(has(desk.bad("x-towline-take-back"), "no migration"));
  desk.start_active();
  CHECK(has(desk.bad("x-towline-take-back"), "two running copies"));
  CHECK(has(desk.bad("x-towline-take-back", R"({"target-is-fenced": false})"), "fenced"));
  desk.good("x-towline-take-back", R"({"target-is-fenced": true})");
  CHECK(desk.factory.outgoing->orders.back() == "take-back");
}

TEST_CASE("a source is given up only by who says what becomes of the guest") {
  MigrationConfig config;
  config.incoming = true;
  Desk desk(config);
  CHECK(has(desk.bad("x-towline-give-up-source", R"({"mode": "poison"})"), "no migration"));
  desk.good("migrate-incoming", R"({"uri": "unix:/tmp/x"})");
  CHECK(has(desk.bad("x-towline-give-up-source"), "poison"));
  CHECK(has(desk.bad("x-towline-give-up-source", R"({"mode": "wait"})"), "wait"));
  desk.good("x-towline-give-up-source", R"({"mode": "give-up"})");
  CHECK(desk.factory.incoming->orders.back() == "give up source: give-up");
  desk.good("migrate-set-parameters",
            R"({"x-towline-source-loss": "poison", "x-towline-source-loss-deadline-s": 7})");
  CHECK(desk.factory.incoming->orders.back() == "source loss poison 7");
  desk.good("x-towline-give-up-source");
  CHECK(desk.factory.incoming->orders.back() == "give up source: poison");
}

TEST_CASE("a guest with lost pages is not migrated on") {
  MigrationConfig config;
  config.incoming = true;
  Desk desk(config);
  desk.good("migrate-incoming", R"({"uri": "unix:/tmp/x"})");
  desk.guest.state = vmm::RunState::kRunning;
  desk.factory.incoming->report.status = MigrationStatus::kFailed;
  desk.factory.incoming->report.source_loss.poisoned_pages = 3;
  CHECK(has(desk.bad("migrate", kUri), "poisoned"));
}

TEST_CASE("a second migrate is refused while one runs, in every status of it") {
  Desk desk;
  desk.start_active();
  for (const auto status :
       {MigrationStatus::kSetup, MigrationStatus::kActive, MigrationStatus::kDevice,
        MigrationStatus::kPostcopyDevice, MigrationStatus::kPostcopyActive,
        MigrationStatus::kPostcopyRecoverSetup, MigrationStatus::kPostcopyRecover,
        MigrationStatus::kCancelling, MigrationStatus::kPostcopyPaused}) {
    desk.factory.outgoing->report.status = status;
    CHECK(desk.bad("migrate", kUri) == "There's a migration process in progress");
    CHECK(desk.bad("migrate-set-capabilities", kPostcopy) ==
          "There's a migration process in progress");
  }
}

TEST_CASE("what decides over an arrival is set before it, and set again at any time") {
  constexpr const char* kBoth =
      R"({"capabilities": [{"capability": "postcopy-ram", "state": true},
                           {"capability": "postcopy-preempt", "state": true},
                           {"capability": "events", "state": true}]})";
  constexpr const char* kNoPreempt =
      R"({"capabilities": [{"capability": "postcopy-preempt", "state": false}]})";
  constexpr const char* kNeither =
      R"({"capabilities": [{"capability": "postcopy-preempt", "state": false},
                           {"capability": "postcopy-ram", "state": false}]})";
  constexpr const char* kNoEvents =
      R"({"capabilities": [{"capability": "events", "state": false}]})";
  Desk desk(MigrationConfig{.incoming = true});
  desk.good("migrate-set-capabilities", kBoth);
  desk.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  for (const auto status : {MigrationStatus::kSetup, MigrationStatus::kActive,
                            MigrationStatus::kPostcopyDevice, MigrationStatus::kPostcopyActive,
                            MigrationStatus::kPostcopyPaused, MigrationStatus::kPostcopyRecover}) {
    desk.factory.incoming->report.status = status;
    CHECK(desk.bad("migrate-set-capabilities", kNoPreempt) ==
          "Postcopy preempt must be set before incoming starts");
    CHECK(has(desk.bad("migrate-set-capabilities", kNeither), "must be set before"));
    desk.good("migrate-set-capabilities", kNoEvents);
    desk.good("migrate-set-capabilities", kBoth);
  }
  for (const auto end : {MigrationStatus::kCompleted, MigrationStatus::kFailed}) {
    desk.factory.incoming->report.status = end;
    desk.good("migrate-set-capabilities", kNeither);
    desk.good("migrate-set-capabilities", kBoth);
  }
}

TEST_CASE("a target that listens since it started can still be told of postcopy-ram") {
  Desk desk(MigrationConfig{.incoming = true});
  desk.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  desk.good("migrate-set-capabilities", kPostcopy);
  constexpr const char* kOff =
      R"({"capabilities": [{"capability": "postcopy-ram", "state": false}]})";
  for (const auto status : {MigrationStatus::kActive, MigrationStatus::kPostcopyActive}) {
    desk.factory.incoming->report.status = status;
    CHECK(desk.bad("migrate-set-capabilities", kOff) ==
          "Postcopy-ram must be set before a guest is received");
    desk.good("migrate-set-capabilities", kPostcopy);
  }
}

TEST_CASE("after a failure or a cancel the guest can be migrated again") {
  for (const auto end : {MigrationStatus::kFailed, MigrationStatus::kCancelled}) {
    Desk desk;
    desk.start_active();
    const auto first = desk.factory.outgoing;
    first->becomes(end);
    desk.good("migrate", kUri);
    CHECK_FALSE(first->alive);
    CHECK(desk.factory.outgoing->alive);
    CHECK(text_of(desk.good("query-migrate"), "status") == "setup");
    desk.factory.outgoing->becomes(MigrationStatus::kFailed);
  }
}

TEST_CASE("a list with one bad capability changes none, whatever stands before it") {
  Desk desk;
  const std::string before = desk.good("query-migrate-capabilities").dump();
  CHECK(desk.bad("migrate-set-capabilities",
                 R"({"capabilities": [{"capability": "postcopy-ram", "state": true},
                                      {"capability": "events", "state": true},
                                      {"capability": "mapped-ram", "state": true}]})") ==
        "Parameter 'capability' does not accept value 'mapped-ram'");
  CHECK(desk.good("query-migrate-capabilities").dump() == before);
}

TEST_CASE("a guest that left, or is leaving, is not migrated again") {
  Desk desk;
  desk.guest.state = vmm::RunState::kPostmigrate;
  CHECK(desk.bad("migrate", kUri) ==
        "Can't migrate the vm that was paused due to previous migration");
  desk.guest.state = vmm::RunState::kFinishMigrate;
  CHECK(desk.bad("migrate", kUri) ==
        "Can't migrate the vm that was paused due to previous migration");
}

TEST_CASE("a machine that waits for a guest, or misses pages of it, is not migrated") {
  Desk desk(waiting());
  CHECK(desk.bad("migrate", kUri) == "Guest is waiting for an incoming migration");
  desk.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  CHECK(desk.bad("migrate", kUri) == "Guest is waiting for an incoming migration");
  desk.guest.state = vmm::RunState::kRunning;
  desk.factory.incoming->misses_pages = true;
  CHECK(has(desk.bad("migrate", kUri), "still misses pages"));
  desk.factory.incoming->misses_pages = false;
  desk.good("migrate-set-capabilities", kPostcopy);
  desk.good("migrate", kUri);
  desk.factory.outgoing->becomes(MigrationStatus::kFailed);
}

TEST_CASE("what the machine refuses reaches the user, and the numbers of the last try stay") {
  Desk desk;
  desk.start_active();
  desk.factory.outgoing->report.transferred = 77;
  desk.factory.outgoing->becomes(MigrationStatus::kFailed);
  desk.factory.refusal = "the vCPUs are busy";
  CHECK(desk.bad("migrate", kUri) == "the vCPUs are busy");
  const Json answer = desk.good("query-migrate");
  CHECK(text_of(answer, "status") == "failed");
  CHECK(whole_of(*answer.find("ram"), "transferred") == 77);
}

TEST_CASE("migrate-start-postcopy needs its capability, then a migration, then nothing") {
  Desk desk;
  CHECK(desk.bad("migrate-start-postcopy") ==
        "Enable postcopy with migrate_set_capability before the start of migration");
  desk.good("migrate-set-capabilities", kPostcopy);
  CHECK(desk.bad("migrate-start-postcopy") ==
        "Postcopy must be started after migration has been started");
  desk.start_active();
  desk.good("migrate-start-postcopy");
  CHECK(desk.factory.outgoing->orders == std::vector<std::string>{"start-postcopy"});
  desk.factory.outgoing->becomes(MigrationStatus::kCompleted);
  desk.good("migrate-start-postcopy");
}

TEST_CASE("migrate_cancel succeeds when nothing runs, and cancels before the switch") {
  Desk desk;
  desk.good("migrate_cancel");
  desk.start_active();
  desk.good("migrate_cancel");
  CHECK(desk.factory.outgoing->orders == std::vector<std::string>{"cancel"});
  desk.factory.outgoing->becomes(MigrationStatus::kCancelled);
  desk.good("migrate_cancel");
  CHECK(desk.factory.outgoing->orders.size() == 1);
}

TEST_CASE("migrate_cancel is refused in every status of post-copy") {
  Desk desk;
  desk.start_active();
  for (const auto status :
       {MigrationStatus::kPostcopyDevice, MigrationStatus::kPostcopyActive,
        MigrationStatus::kPostcopyRecover, MigrationStatus::kPostcopyRecoverSetup,
        MigrationStatus::kPostcopyPaused}) {
    desk.factory.outgoing->report.status = status;
    CHECK(desk.bad("migrate_cancel") == "Postcopy migration in progress, cannot cancel.");
  }
  CHECK(desk.factory.outgoing->orders.empty());
  SUBCASE("and in the last moment before it the migration itself refuses") {
    desk.factory.outgoing->report.status = MigrationStatus::kDevice;
    desk.factory.outgoing->cancel_refused = true;
    CHECK(desk.bad("migrate_cancel") == "too late");
  }
  desk.factory.outgoing->report.status = MigrationStatus::kFailed;
}

TEST_CASE("an incoming migration cannot be cancelled here, and one that has not begun need not") {
  Desk desk(waiting());
  desk.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  desk.good("migrate_cancel");
  desk.factory.incoming->becomes(MigrationStatus::kActive);
  CHECK(has(desk.bad("migrate_cancel"), "at its source"));
  desk.factory.incoming->becomes(MigrationStatus::kCompleted);
  desk.good("migrate_cancel");
}

TEST_CASE("migrate-incoming works once, on a machine started for it") {
  Desk plain;
  CHECK(plain.bad("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})") ==
        "'-incoming' was not specified on the command line");
  Desk desk(waiting());
  CHECK(desk.bad("migrate-incoming") == "need either 'uri' or 'channels' argument");
  desk.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0", "exit-on-error": false})");
  CHECK_FALSE(desk.migration.exits_on_error());
  CHECK(desk.bad("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})") ==
        "The incoming migration has already been started");
  const Json answer = desk.good("query-migrate");
  CHECK(text_of(answer, "status") == "setup");
  CHECK(answer.find("socket-address")->dump() ==
        R"([{"port": "42187", "ipv4": true, "host": "127.0.0.1", "type": "inet"}])");
}

TEST_CASE("an address that cannot be listened at may be given anew") {
  Desk desk(waiting());
  desk.factory.refusal = "tcp:127.0.0.1:80 (bind: Address already in use)";
  CHECK(has(desk.bad("migrate-incoming", R"({"uri": "tcp:127.0.0.1:80"})"), "already in use"));
  desk.factory.refusal.clear();
  desk.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  CHECK(desk.migration.exits_on_error());
}

TEST_CASE("listening beyond this host needs a secret or the user's word, and says both ways") {
  const std::string anywhere = R"({"uri": "tcp:0.0.0.0:4444"})";
  Desk bare(waiting());
  const std::string said = bare.bad("migrate-incoming", anywhere);
  CHECK(has(said, "tcp:0.0.0.0:4444"));
  CHECK(has(said, "--secret"));
  CHECK(has(said, "--allow-unprotected"));
  MigrationConfig secret = waiting();
  secret.options.secret = "s3cret";
  Desk with_secret(secret);
  with_secret.good("migrate-incoming", anywhere);
  CHECK(with_secret.factory.incoming->options.secret == "s3cret");
  Desk allowed(MigrationConfig{.incoming = true, .allow_unprotected = true});
  allowed.good("migrate-incoming", anywhere);
}

TEST_CASE("a migrate that nobody called post-copy is refused, and nothing begins") {
  Desk desk;
  const std::string said = desk.bad("migrate", kUri);
  CHECK(has(said, "'postcopy-ram' is off"));
  CHECK(has(said, "migrate-set-capabilities"));
  run_posted(*desk.loop);
  CHECK(desk.seen.empty());
  CHECK(desk.factory.outgoing == nullptr);
  CHECK(desk.good("query-migrate").dump() == "{}");
  desk.good("migrate-set-parameters", R"({"x-towline-switch": "manual"})");
  CHECK(desk.bad("migrate", kUri) == said);
  desk.good("migrate-set-capabilities", kPostcopy);
  desk.good("migrate", kUri);
  CHECK(desk.factory.outgoing->options.switch_policy == runtime::SwitchPolicy::kManual);
}

TEST_CASE("what was set is no matter of a target that begins to listen") {
  Desk desk(waiting());
  desk.good("migrate-set-parameters", R"({"x-towline-switch": "manual"})");
  desk.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
}

TEST_CASE("a small script's migrate, with a switch set by hand, goes over without an order") {
  Desk desk;
  desk.good("migrate-set-parameters", R"({"x-towline-switch": "after-pass"})");
  desk.good("migrate", kUri);
  CHECK(desk.factory.outgoing->options.switch_policy == runtime::SwitchPolicy::kAfterPass);
  CHECK(desk.factory.outgoing->options.max_bandwidth == 128U << 20U);
  desk.factory.outgoing->becomes(MigrationStatus::kCompleted);
}

TEST_CASE("a manager's migrate waits for migrate-start-postcopy") {
  Desk desk;
  desk.start_active();
  CHECK(desk.factory.outgoing->options.switch_policy == runtime::SwitchPolicy::kManual);
  desk.factory.outgoing->becomes(MigrationStatus::kCompleted);
}

TEST_CASE("bandwidth can change while a migration runs, and what cannot is refused") {
  Desk desk;
  desk.start_active();
  desk.good("migrate-set-parameters", R"({"max-bandwidth": 5, "max-postcopy-bandwidth": 6})");
  CHECK(desk.factory.outgoing->orders == std::vector<std::string>{"bandwidth 5 6"});
  CHECK(has(desk.bad("migrate-set-parameters", R"({"x-towline-passes": 3})"),
            "'x-towline-passes' cannot change while a migration runs"));
  CHECK(has(desk.bad("migrate-set-parameters", R"({"max-bandwidth": 9, "x-towline-passes": 3})"),
            "cannot change"));
  CHECK(desk.migration.settings().options.max_bandwidth == 5);
  desk.good("migrate-set-parameters", R"({"x-towline-passes": 1, "downtime-limit": 500})");
  for (const char* limit : {"0", "2000", "300"}) {
    desk.good("migrate-set-parameters", std::string(R"({"downtime-limit": )") + limit + "}");
  }
  desk.factory.outgoing->becomes(MigrationStatus::kCompleted);
}

TEST_CASE("what a target reads when it begins to listen cannot change afterwards") {
  Desk desk(waiting());
  desk.good("migrate-set-parameters", R"({"x-towline-memory-reserve": 4096})");
  desk.good("migrate-incoming", R"({"uri": "tcp:127.0.0.1:0"})");
  CHECK(desk.factory.incoming->options.memory_reserve == 4096);
  CHECK(has(desk.bad("migrate-set-parameters", R"({"x-towline-memory-reserve": 8192})"),
            "set it before 'migrate-incoming'"));
  desk.good("migrate-set-parameters", R"({"x-towline-memory-reserve": 4096})");
  desk.good("migrate-set-parameters", R"({"x-towline-heartbeat-ms": 200})");  // For its next move.
}

TEST_CASE("the observer hears of setup before the migration's threads can say anything") {
  Desk desk;
  desk.good("migrate-set-capabilities", kPostcopy);
  desk.good("migrate", kUri);
  desk.factory.outgoing->becomes(MigrationStatus::kFailed);
  desk.good("migrate", kUri);
  desk.factory.outgoing->becomes(MigrationStatus::kFailed);
  CHECK(desk.seen ==
        std::vector<std::string>{"source setup", "source failed", "source setup", "source failed"});
}

}  // namespace
}  // namespace towline::monitor
