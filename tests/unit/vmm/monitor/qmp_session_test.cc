#include "vmm/monitor/qmp_session.h"

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/unit/vmm/monitor/fakes.h"

namespace towline::monitor {
namespace {

/// A session that has not negotiated yet.
struct Fresh {
  explicit Fresh(bool events = true)
      : session(context, events, [this](const std::string& line) { lines.push_back(line); }) {
    session.greet();
  }

  Json ask(const std::string& text) {
    session.receive(text);
    return parsed(lines.back());
  }

  std::string error_class(const std::string& text) {
    const Json answer = ask(text);
    const Json* error = answer.find("error");
    REQUIRE_MESSAGE(error != nullptr, lines.back());
    return text_of(*error, "class");
  }

  std::string desc(const std::string& text) {
    const Json answer = ask(text);
    const Json* error = answer.find("error");
    REQUIRE_MESSAGE(error != nullptr, lines.back());
    return text_of(*error, "desc");
  }

  Desk desk;

  class : public Quitter {
    base::Outcome quit(bool /*force*/) override { return base::Done{}; }
  } quitter;

  CommandContext context{desk.guest, desk.migration, quitter};
  std::vector<std::string> lines;
  QmpSession session;
};

constexpr const char* kNegotiate = R"({"execute": "qmp_capabilities"})";

TEST_CASE("the greeting is QEMU 10.2.0's with the name and version of this package") {
  const Fresh fresh;
  REQUIRE(fresh.lines.size() == 1);
  CHECK(fresh.lines[0] ==
        R"({"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 10}, "package": ")" +
            text_of(version_json(), "package") + R"("}, "capabilities": ["oob"]}})" + "\r\n");
  CHECK(text_of(version_json(), "package").starts_with("towline "));
}

TEST_CASE("every message to the client is one line that ends in CRLF") {
  Fresh fresh;
  fresh.ask(kNegotiate);
  fresh.ask("garbage\n");
  fresh.ask(R"({"execute": "query-commands"})");
  fresh.session.send_event(event_line("STOP", Json()));
  for (const auto& line : fresh.lines) {
    CHECK(line.find('\n') == line.size() - 1);
    CHECK(line[line.size() - 2] == '\r');
  }
}

TEST_CASE("before the negotiation every other command is refused, known or not") {
  Fresh fresh;
  CHECK(fresh.error_class(R"({"execute": "query-status"})") == "CommandNotFound");
  CHECK(fresh.desc(R"({"execute": "nosuch"})") ==
        "Expecting capabilities negotiation with 'qmp_capabilities'");
  CHECK(fresh.ask(kNegotiate).find("return") != nullptr);
  CHECK(fresh.ask(R"({"execute": "query-status"})").find("return") != nullptr);
}

TEST_CASE("a second negotiation is refused and changes nothing") {
  Fresh fresh;
  fresh.ask(kNegotiate);
  CHECK(fresh.error_class(R"({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}})") ==
        "CommandNotFound");
  CHECK(fresh.desc(R"({"exec-oob": "query-status"})") ==
        "QMP input member 'exec-oob' is unexpected");
}

TEST_CASE(
    "only capabilities that exist can be enabled, and a refusal leaves the negotiation open") {
  Fresh fresh;
  CHECK(fresh.desc(R"({"execute": "qmp_capabilities", "arguments": {"enable": ["x"]}})") ==
        "Parameter 'enable' does not accept value 'x'");
  CHECK(has(fresh.desc(R"({"execute": "qmp_capabilities", "arguments": {"enable": "oob"}})"),
            "Invalid parameter type for 'enable'"));
  CHECK(has(fresh.desc(R"({"execute": "qmp_capabilities", "arguments": {"enable": [1]}})"),
            "Invalid parameter type for 'enable'"));
  CHECK(fresh.desc(R"({"execute": "qmp_capabilities", "arguments": {"x": 1}})") ==
        "Parameter 'x' is unexpected");
  CHECK(fresh.ask(kNegotiate).find("return") != nullptr);
}

TEST_CASE("an id of any kind comes back with the answer, good or bad") {
  Fresh fresh;
  fresh.ask(kNegotiate);
  for (const std::string id : {"7", "\"a\"", "{\"x\": [1]}", "null", "false"}) {
    CHECK(fresh.ask(R"({"execute": "query-status", "id": )" + id + "}").find("id")->dump() == id);
    CHECK(fresh.ask(R"({"execute": "nosuch", "id": )" + id + "}").find("id")->dump() == id);
    CHECK(fresh.ask(R"({"id": )" + id + "}").find("id")->dump() == id);
  }
  CHECK(fresh.ask(R"({"execute": "query-status"})").find("id") == nullptr);
}

TEST_CASE("a message of the wrong shape is answered with what is wrong") {
  Fresh fresh;
  fresh.ask(kNegotiate);
  CHECK(fresh.desc("[1, 2]") == "QMP input must be a JSON object");
  CHECK(fresh.desc("{}") == "QMP input lacks member 'execute'");
  CHECK(fresh.desc(R"({"execute": 7})") == "QMP input member 'execute' must be a string");
  CHECK(fresh.desc(R"({"execute": "stop", "arguments": []})") ==
        "QMP input member 'arguments' must be an object");
  CHECK(fresh.desc(R"({"execute": "stop", "extra": 1})") ==
        "QMP input member 'extra' is unexpected");
  CHECK(has(fresh.desc("{\"execute\": }"), "JSON parse error"));
  CHECK(has(fresh.desc("hello\n"), "JSON parse error"));
  CHECK(fresh.error_class("hello\n") == "GenericError");
  CHECK(fresh.error_class(R"({"execute": "nosuch"})") == "CommandNotFound");
  CHECK(fresh.desc(R"({"execute": "nosuch"})") == "The command nosuch has not been found");
  CHECK(fresh.desc(R"({"execute": ""})") == "The command  has not been found");
}

TEST_CASE("out of band: queries and what steers a migration, when it was enabled") {
  Desk desk;  // Has enabled it.
  CHECK(desk.ask(R"({"exec-oob": "query-migrate", "id": 1})").find("return") != nullptr);
  CHECK(desk.ask(R"({"exec-oob": "migrate_cancel", "id": 2})").find("return") != nullptr);
  const Json refused = desk.ask(R"({"exec-oob": "migrate", "arguments": {"uri": "tcp:h:1"}})");
  CHECK(text_of(*refused.find("error"), "desc") == "The command migrate does not support OOB");
  const Json both = desk.ask(R"({"execute": "stop", "exec-oob": "stop"})");
  CHECK(text_of(*both.find("error"), "desc") ==
        "QMP input member 'exec-oob' clashes with 'execute'");
}

TEST_CASE("several commands in one read are answered in their order") {
  Fresh fresh;
  fresh.session.receive(R"({"execute": "qmp_capabilities", "id": 1}{"execute": "stop", "id": 2})"
                        R"({"execute": "query-status", "id": 3})");
  REQUIRE(fresh.lines.size() == 4);
  for (std::size_t at = 1; at <= 3; ++at) {
    CHECK(whole_of(parsed(fresh.lines[at]), "id") == at);
  }
}

TEST_CASE("events reach a client after its negotiation, and never one that wants none") {
  Fresh fresh;
  fresh.session.send_event(event_line("STOP", Json()));
  CHECK(fresh.lines.size() == 1);
  fresh.ask(kNegotiate);
  fresh.session.send_event(event_line("MIGRATION", Json::object({{"status", "setup"}})));
  const Json event = parsed(fresh.lines.back());
  CHECK(text_of(event, "event") == "MIGRATION");
  CHECK(event.find("data")->dump() == R"({"status": "setup"})");
  CHECK(whole_of(*event.find("timestamp"), "seconds") > 1'700'000'000);
  CHECK(whole_of(*event.find("timestamp"), "microseconds") < 1'000'000);

  Fresh quiet(false);
  quiet.ask(kNegotiate);
  quiet.session.send_event(event_line("STOP", Json()));
  CHECK(quiet.lines.size() == 2);
}

}  // namespace
}  // namespace towline::monitor
