// The human monitor: words, commands over fakes, and a session's prompts.
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/unit/vmm/monitor/fakes.h"
#include "vmm/monitor/human_session.h"
#include "vmm/monitor/human_words.h"

namespace towline::monitor {
namespace {

using runtime::MigrationStatus;
using Words = std::vector<std::string>;

std::string human(Desk& desk, const std::string& line) {
  Json arguments = Json::object({{"command-line", line}});
  const Json answer = desk.good("human-monitor-command", arguments.dump());
  REQUIRE(answer.text() != nullptr);
  return *answer.text();
}

TEST_CASE("a line is cut at blanks, and a quoted word may hold them") {
  CHECK(split_words("").value().empty());
  CHECK(split_words("  \t ").value().empty());
  CHECK(split_words(" info  migrate\r").value() == Words{"info", "migrate"});
  CHECK(split_words(R"(a "b c" "" "d\"e\\")").value() == Words{"a", "b c", "", "d\"e\\"});
  CHECK(has(split_words("a \"b").error().detail, "not closed"));
}

TEST_CASE("values are read as QEMU's monitor reads them") {
  const auto value = [](const char* name, const char* word) {
    return parameter_word(name, word).value().dump();
  };
  CHECK(value("max-bandwidth", "100") == "104857600");
  CHECK(value("max-bandwidth", "1.5G") == "1610612736");
  CHECK(value("max-bandwidth", "1000b") == "1000");
  CHECK(value("avail-switchover-bandwidth", "1") == "1048576");
  CHECK(value("max-postcopy-bandwidth", "100") == "100");
  CHECK(value("max-postcopy-bandwidth", "100k") == "102400");
  CHECK(value("max-postcopy-bandwidth", "18446744073709551615") == "18446744073709551615");
  CHECK(value("downtime-limit", "250") == "250");
  CHECK(value("xbzrle-cache-size", "64M") == "67108864");
  CHECK(value("x-towline-auto-recover", "off") == "false");
  CHECK(value("direct-io", "on") == "true");
  CHECK(value("mode", "normal") == R"("normal")");
  CHECK(value("x-towline-alternates", "tcp:a:1,unix:/b") == R"(["tcp:a:1", "unix:/b"])");
  for (const char* const word : {"", "x", "-1", "1e400", "G", "99999999999999G", "1 "}) {
    CHECK_MESSAGE(has(parameter_word("max-bandwidth", word).error().detail,
                      "Parameter 'max-bandwidth' expects a size"),
                  word);
  }
  CHECK(has(parameter_word("downtime-limit", "1k").error().detail, "expects a number, not '1k'"));
  CHECK(has(parameter_word("direct-io", "maybe").error().detail, "'on' or 'off', not 'maybe'"));
  CHECK(has(parameter_word("warp", "9").error().detail, "Parameter 'warp' is unexpected"));
}

TEST_CASE("the tutorials' way through a post-copy works, word for word") {
  Desk desk;
  CHECK(human(desk, "info migrate").empty());
  CHECK(human(desk, "migrate_set_capability postcopy-ram on").empty());
  CHECK(has(human(desk, "info migrate_capabilities"), "postcopy-ram: on\r\n"));
  CHECK(human(desk, "migrate_set_parameter max-bandwidth 500").empty());
  const std::string told = human(desk, "info migrate_parameters");
  CHECK(has(told, "max-bandwidth: 524288000 bytes/second\r\n"));
  CHECK(has(told, "downtime-limit: 300 ms\r\n"));
  CHECK(has(told, "x-towline-auto-recover: on\r\n"));
  CHECK(human(desk, "migrate -d tcp:127.0.0.1:4444").empty());
  CHECK(desk.factory.outgoing->uri.port == 4444);
  desk.factory.outgoing->report.total_bytes = 64U << 20U;
  desk.factory.outgoing->becomes(MigrationStatus::kActive);
  CHECK(has(human(desk, "info migrate"), "Migration status: active\r\ntotal time: 0 ms\r\n"));
  CHECK(has(human(desk, "info migrate"), "total ram: 65536 kbytes\r\n"));
  CHECK(human(desk, "migrate_start_postcopy").empty());
  CHECK(desk.factory.outgoing->orders == Words{"start-postcopy"});
  CHECK(human(desk, "migrate_pause").empty());
  desk.factory.outgoing->becomes(MigrationStatus::kPostcopyPaused);
  CHECK(human(desk, "migrate -d -r tcp:127.0.0.1:4445").empty());
  CHECK(desk.factory.outgoing->orders.back() == "resume tcp:127.0.0.1:4445");
  CHECK_FALSE(has(human(desk, "info migrate"), "x-towline"));
  CHECK(has(human(desk, "info migrate -a"), "x-towline role: source\r\n"));
  CHECK(has(human(desk, "info status"), "VM status: running\r\n"));
}

TEST_CASE("a program that asks for a migration and its end gets it at once, and is told so") {
  Desk desk;
  human(desk, "migrate_set_capability postcopy-ram on");
  CHECK(human(desk, "migrate tcp:127.0.0.1:4444") ==
        "terminal does not allow synchronous migration, continuing detached\r\n");
  CHECK(human(desk, "migrate_cancel").empty());
  CHECK(desk.factory.outgoing->orders == Words{"cancel"});
}

TEST_CASE("a target is told where to listen, and a guest stopped, resumed, reset and ended") {
  Desk desk(MigrationConfig{.incoming = true});
  CHECK(human(desk, "migrate_incoming tcp:127.0.0.1:0").empty());
  CHECK(has(human(desk, "info migrate"), "socket address: [\r\n\ttcp:127.0.0.1:42187\r\n]\r\n"));
  CHECK(has(human(desk, "info status"), "VM status: paused (inmigrate)\r\n"));
  CHECK(has(human(desk, "migrate_recover tcp:127.0.0.1:0"), "Error: "));
  Desk other;
  CHECK(human(other, "stop").empty());
  CHECK(human(other, "c").empty());
  CHECK(human(other, "system_reset").empty());
  CHECK(other.guest.orders == Words{"stop", "cont", "reset"});
  CHECK(human(other, "q").empty());
  CHECK(other.quits == std::vector<bool>{false});
}

TEST_CASE("what is wrong is told in a line that names it, and is not carried out") {
  Desk desk;
  CHECK(human(desk, "warp 9") == "Error: unknown command: 'warp 9'; 'help' lists all\r\n");
  CHECK(has(human(desk, "info nosuch"), "unknown command: 'info nosuch'"));
  CHECK(human(desk, "migrate") == "Error: migrate: 0 words follow; use migrate [-d] [-r] uri\r\n");
  CHECK(has(human(desk, "migrate -x tcp:a:1"), "unknown option '-x'"));
  CHECK(has(human(desk, "stop now"), "stop: 1 words follow; use stop"));
  CHECK(has(human(desk, "migrate_set_capability postcopy-ram maybe"), "'on' or 'off'"));
  CHECK(has(human(desk, "migrate_set_capability nosuch on"), "does not accept value 'nosuch'"));
  CHECK(has(human(desk, "migrate_set_parameter tls-creds t"), "is not built in Towline"));
  CHECK(has(human(desk, "migrate -d tcp:127.0.0.1:1"), "Error: Every move is post-copy"));
  CHECK(has(human(desk, "\"open"), "not closed"));
  CHECK(human(desk, "").empty());
  CHECK(desk.guest.orders.empty());
  CHECK(desk.factory.outgoing == nullptr);
}

TEST_CASE("help lists every command, one, or those of a group") {
  Desk desk;
  const std::string all = human(desk, "help");
  for (const char* const name :
       {"info migrate [-a]", "migrate [-d] [-r] uri", "migrate_set_parameter parameter value",
        "migrate_start_postcopy", "quit"}) {
    CHECK_MESSAGE(has(all, name), name);
  }
  CHECK(human(desk, "help stop") == "stop -- stop the guest\r\n");
  CHECK(human(desk, "info") == human(desk, "help info"));
  CHECK(has(human(desk, "help info"), "info status -- "));
  CHECK_FALSE(has(human(desk, "help info"), "stop -- "));
  CHECK(has(human(desk, "help warp"), "unknown command: 'warp'"));
}

/// A session over the fakes of a desk.
struct Terminal {
  Terminal() {
    human(desk, "migrate_set_capability postcopy-ram on");
    session.greet();
    heard.clear();
  }

  std::string type(const std::string& bytes) {
    heard.clear();
    session.receive(bytes);
    return heard;
  }

  /// As the monitor tells its clients.
  std::string becomes(MigrationStatus status) {
    heard.clear();
    desk.factory.outgoing->becomes(status);
    session.migration_changed();
    return heard;
  }

  Desk desk;
  CommandContext context{desk.guest, desk.migration, desk.quitter()};
  std::string heard;
  HumanSession session{context, [this](const std::string& text) { heard += text; }};
};

TEST_CASE("a session greets, and answers each line before its prompt") {
  Terminal terminal;
  terminal.session.greet();
  CHECK(has(terminal.heard, "type 'help' for more information\r\n(qemu) "));
  CHECK(terminal.type("info status\n") == "VM status: running\r\n(qemu) ");
  CHECK(terminal.type("\n") == "(qemu) ");
  CHECK(terminal.type("info sta").empty());
  CHECK(terminal.type("tus\r\nstop\n") == "VM status: running\r\n(qemu) (qemu) ");
  CHECK(terminal.desk.guest.orders == Words{"stop"});
  terminal.heard.clear();
  terminal.session.send_event("{}\r\n");
  CHECK(terminal.heard.empty());
}

TEST_CASE("migrate without -d keeps the prompt until the move is over, and lines wait behind it") {
  for (const auto end :
       {MigrationStatus::kCompleted, MigrationStatus::kFailed, MigrationStatus::kPostcopyPaused}) {
    Terminal terminal;
    CHECK(terminal.type("migrate tcp:127.0.0.1:4444\n").empty());
    CHECK(terminal.type("info status\n").empty());
    CHECK(terminal.becomes(MigrationStatus::kActive).empty());
    CHECK(terminal.becomes(end) == "Migration status: " + std::string(runtime::to_string(end)) +
                                       "\r\n(qemu) VM status: running\r\n(qemu) ");
    CHECK(terminal.becomes(end).empty());
  }
  Terminal refused;
  CHECK(has(refused.type("migrate nonsense\n"), "(qemu) "));
  CHECK(refused.type("migrate -d tcp:127.0.0.1:4444\n") == "(qemu) ");
}

TEST_CASE("a line that is too long is refused once, and the next one is read") {
  Terminal terminal;
  std::string told;
  for (int i = 0; i < 100; ++i) {
    told += terminal.type(std::string(kMaxHumanBytes / 4, 'x'));
  }
  CHECK(told == "Error: a line of more than 4096 bytes; it is not carried out\r\n(qemu) ");
  CHECK(terminal.type("stop\ninfo status\n") == "VM status: running\r\n(qemu) ");
  CHECK(terminal.desk.guest.orders.empty());
}

}  // namespace
}  // namespace towline::monitor
