#include "tools/client/move.h"

#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tools/client/move_summary.h"

namespace towline::tools {
namespace {

using monitor::Json;
using monitor::text_of;
using monitor::whole_of;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A machine that answers what it is told to, and remembers what it was asked.
class FakePeer final : public Peer {
 public:
  using Peer::execute;

  base::Expected<Json> execute(const std::string& command, const Json& arguments) override {
    if (gone) {
      return base::fail(base::ErrorKind::kDisconnected, "read", "gone");
    }
    if (silent) {
      return base::fail(base::ErrorKind::kOverloaded, "poll", "silent");
    }
    if (!command.starts_with("query-")) {
      asked.push_back(command + (arguments.is_null() ? "" : " " + arguments.dump()));
    }
    if (const auto refusal = refusals.find(command); refusal != refusals.end()) {
      return base::fail(base::ErrorKind::kRefused, "QMP", refusal->second);
    }
    if (command == "query-status") {
      return Json::object({{"status", state}});
    }
    if (command == "query-migrate") {
      return migration;
    }
    if (command == "migrate-incoming") {
      listens("127.0.0.1", "42187");
    }
    return Json::object();
  }

  void listens(const char* host, const char* port) {
    migration = Json::object({{"status", "setup"}});
    migration.set("socket-address",
                  Json::array().add(Json::object(
                      {{"port", port}, {"ipv4", true}, {"host", host}, {"type", "inet"}})));
  }

  void becomes(const char* status, const char* error = nullptr) {
    migration.set("status", status);
    if (error != nullptr) {
      migration.set("error-desc", error);
    }
  }

  bool gone = false;
  bool silent = false;
  std::string state;
  Json migration = Json::object();
  std::map<std::string, std::string> refusals;
  std::vector<std::string> asked;
};

/// `towline migrate` with these options.
MigrateArguments given(const std::vector<std::string>& options) {
  std::vector<std::string> words{"migrate", "/source.qmp", "/target.qmp"};
  words.insert(words.end(), options.begin(), options.end());
  auto parsed = parse_arguments(words);
  REQUIRE(parsed.ok());
  return std::get<MigrateArguments>(std::move(parsed).value());
}

struct Pair {
  Pair() {
    source.state = "running";
    target.state = "inmigrate";
  }

  void begin() {
    REQUIRE(move.prepare().ok());
    REQUIRE(move.start().ok());
    source.becomes("active");
    target.becomes("active");
  }

  std::string refusal() {
    const auto prepared = move.prepare();
    REQUIRE_FALSE(prepared.ok());
    return prepared.error().detail;
  }

  FakePeer source;
  FakePeer target;
  MigrateArguments arguments = given({});
  Move move{source, target, arguments};
};

TEST_CASE("a target that waits is told where to listen, and the source where that came to be") {
  Pair pair;
  pair.begin();
  REQUIRE(pair.target.asked.size() == 2);
  CHECK(pair.target.asked[0] == R"(migrate-incoming {"uri": "tcp:127.0.0.1:0"})");
  CHECK(has(pair.target.asked[1], "postcopy-ram"));
  REQUIRE(pair.source.asked.size() == 3);
  CHECK(has(pair.source.asked[0], "postcopy-ram"));
  CHECK(pair.source.asked[1] ==
        R"(migrate-set-parameters {"max-bandwidth": 0, "max-postcopy-bandwidth": 0, )"
        R"("x-towline-switch": "after-pass", "x-towline-passes": 1, "x-towline-bulk-lanes": 2, )"
        R"("x-towline-alternates": []})");
  CHECK(pair.source.asked[2] == R"(migrate {"uri": "tcp:127.0.0.1:42187"})");
}

TEST_CASE("a target that listens already is taken as it is") {
  Pair pair;
  pair.target.listens("::1", "77");
  pair.begin();
  CHECK(pair.target.asked.size() == 1);
  CHECK(pair.source.asked.back() == R"(migrate {"uri": "tcp:[::1]:77"})");
}

TEST_CASE("--via says where both ends meet, and its port 0 becomes the real one") {
  Pair pair;
  pair.arguments.via = "tcp:10.0.0.7:0";
  pair.begin();
  CHECK(pair.target.asked[0] == R"(migrate-incoming {"uri": "tcp:10.0.0.7:0"})");
  CHECK(pair.source.asked.back() == R"(migrate {"uri": "tcp:10.0.0.7:42187"})");
}

TEST_CASE("a target that listens at every address needs --via") {
  Pair pair;
  pair.target.listens("0.0.0.0", "77");
  CHECK(has(pair.refusal(), "--via tcp:HOST:77"));
  pair.arguments.via = "tcp:host:77";
  CHECK(pair.move.prepare().ok());
}

TEST_CASE("machines in the wrong state are named with it, before anything is changed") {
  Pair pair;
  pair.target.state = "running";
  CHECK(has(pair.refusal(), "'/target.qmp'"));
  CHECK(has(pair.refusal(), "--incoming"));
  pair.target.state = "inmigrate";
  pair.source.state = "postmigrate";
  CHECK(has(pair.refusal(), "'/source.qmp'"));
  CHECK(has(pair.refusal(), "'postmigrate'"));
  CHECK(pair.source.asked.empty());
  CHECK(pair.target.asked.empty());
}

TEST_CASE("what a machine refuses is passed on") {
  Pair pair;
  pair.target.refusals["migrate-incoming"] = "port in use";
  CHECK(pair.refusal() == "port in use");
  pair.target.refusals.clear();
  REQUIRE(pair.move.prepare().ok());
  pair.source.refusals["migrate"] = "There's a migration process in progress";
  CHECK_FALSE(pair.move.start().ok());
}

TEST_CASE("the guest has moved when both ends say so") {
  Pair pair;
  pair.begin();
  CHECK_FALSE(pair.move.look().end);
  pair.source.becomes("postcopy-active");
  pair.target.becomes("postcopy-active");
  CHECK_FALSE(pair.move.look().end);
  pair.source.becomes("completed");
  CHECK_FALSE(pair.move.look().end);
  pair.target.becomes("completed");
  CHECK(pair.move.look().end == MoveEnd::kMoved);
}

TEST_CASE("a source that has ended after its work does not spoil the move") {
  Pair pair;
  pair.begin();
  pair.target.becomes("completed");
  pair.source.gone = true;
  CHECK(pair.move.look().end == MoveEnd::kMoved);
}

TEST_CASE("a failure tells the reason of the side that knew it") {
  Pair pair;
  pair.begin();
  pair.target.becomes("failed", "memory: 128 MiB there, 64 MiB here");
  CHECK_FALSE(pair.move.look().end);  // The source decides what becomes of the guest.
  pair.source.becomes("failed");
  const auto view = pair.move.look();
  CHECK(view.end == MoveEnd::kFailed);
  CHECK(view.reason == "memory: 128 MiB there, 64 MiB here");
}

TEST_CASE("a source that dies before the switch takes the guest with it") {
  Pair pair;
  pair.begin();
  pair.source.gone = true;
  const auto view = pair.move.look();
  CHECK(view.end == MoveEnd::kFailed);
  CHECK(has(view.reason, "its guest"));
}

TEST_CASE("a source that has not said anything yet has not died either") {
  Pair pair;
  pair.begin();
  pair.source.silent = true;
  const MoveView view = pair.move.look();
  CHECK_FALSE(view.end.has_value());
  CHECK(has(view.silent, "/source.qmp"));
}

TEST_CASE("a source that only says nothing has not died, and is told to be silent") {
  Pair pair;
  pair.begin();
  CHECK(pair.move.look().silent.empty());
  pair.source.silent = true;
  MoveView view = pair.move.look();
  CHECK_FALSE(view.end.has_value());
  CHECK(has(view.silent, "/source.qmp"));
  CHECK(text_of(view.source, "status") == "active");
  pair.source.silent = false;
  pair.source.becomes("completed");
  pair.target.becomes("completed");
  view = pair.move.look();
  CHECK(view.end == MoveEnd::kMoved);
  CHECK(view.silent.empty());
}

TEST_CASE("a source that dies after the switch leaves the guest at the target, whole or not") {
  Pair pair;
  pair.begin();
  pair.target.becomes("postcopy-active");
  CHECK_FALSE(pair.move.look().end);
  pair.source.gone = true;
  CHECK_FALSE(pair.move.look().end);
  pair.target.becomes("failed", "3 pages are poisoned");
  pair.target.migration.set("x-towline",
                            Json::object({{"source-loss", Json::object({{"poisoned-pages", 3}})}}));
  const auto poisoned = pair.move.look();
  CHECK(poisoned.end == MoveEnd::kUndecided);
  CHECK(poisoned.reason == "3 pages are poisoned");
  pair.target.gone = true;
  const auto ended = pair.move.look();
  CHECK(ended.end == MoveEnd::kUndecided);
  CHECK(has(ended.reason, "neither process"));
}

TEST_CASE("the policy for a lost source is the target's to know, and told to it alone") {
  Pair pair;
  pair.arguments = given({"--source-loss", "poison", "--source-loss-deadline", "9"});
  pair.begin();
  CHECK(pair.target.asked.back() == R"(migrate-set-parameters {"x-towline-source-loss": "poison", )"
                                    R"("x-towline-source-loss-deadline-s": 9})");
}

TEST_CASE("a target that dies leaves the word to the source") {
  Pair pair;
  pair.begin();
  pair.target.gone = true;
  CHECK_FALSE(pair.move.look().end);
  pair.source.becomes("failed", "the target closed the connection");
  CHECK(pair.move.look().reason == "the target closed the connection");
  pair.source.becomes("completed");
  CHECK(pair.move.look().end == MoveEnd::kUndecided);
}

TEST_CASE("a move is called undecided when it stays paused, not when it was paused for a moment") {
  Pair pair;
  pair.begin();
  pair.source.becomes("postcopy-paused", "the link broke");
  pair.target.becomes("postcopy-paused");
  CHECK_FALSE(pair.move.look().end);
  pair.source.becomes("postcopy-active");
  pair.target.becomes("postcopy-active");
  CHECK_FALSE(pair.move.look().end);
  pair.source.gone = true;
  pair.target.becomes("postcopy-paused");
  int looks = 1;
  while (!pair.move.look().end && looks < 100) {
    ++looks;
  }
  CHECK(looks > 5);
  CHECK(looks < 100);
  pair.source.gone = false;
  pair.source.becomes("postcopy-paused", "the link broke");
  pair.target.becomes("postcopy-active");
  pair.source.becomes("postcopy-active");
  CHECK_FALSE(pair.move.look().end);
  pair.source.becomes("postcopy-paused", "the link broke");
  for (int i = 0; i < 100; ++i) {
    CHECK_FALSE(pair.move.look().end);  // It is being tied again.
  }
  pair.source.gone = true;
  pair.target.becomes("postcopy-paused");
  const auto view = pair.move.look();
  CHECK(view.end == MoveEnd::kUndecided);
  CHECK(has(summary_text(view, "/target.qmp"), "towline status /target.qmp"));
}

TEST_CASE("a cancel is asked of the source, and a cancelled move is one") {
  Pair pair;
  pair.begin();
  REQUIRE(pair.move.cancel().ok());
  CHECK(pair.source.asked.back() == "migrate_cancel");
  pair.source.becomes("cancelling");
  CHECK_FALSE(pair.move.look().end);
  pair.source.becomes("cancelled");
  CHECK(pair.move.look().end == MoveEnd::kCancelled);
  pair.source.refusals["migrate_cancel"] = "Postcopy migration in progress, cannot cancel.";
  CHECK_FALSE(pair.move.cancel().ok());
}

MoveView moved() {
  MoveView view;
  view.end = MoveEnd::kMoved;
  const auto source = Json::parse(
      R"({"status": "completed", "total-time": 3210, "ram": {"transferred": 2147483648,
          "precopy-bytes": 1073741824, "downtime-bytes": 65536, "postcopy-bytes": 1073676288}})");
  const auto target = Json::parse(
      R"({"status": "completed", "x-towline": {"blackout-ms": 0.84, "faults": {"served": 1234,
          "p50-us": 95.0, "p99-us": 310.0, "max-us": 2100.0}}})");
  REQUIRE(source.ok());
  REQUIRE(target.ok());
  view.source = source.value();
  view.target = target.value();
  return view;
}

TEST_CASE("the summary says in plain words what the guest went through") {
  const std::string text = summary_text(moved(), "/t");
  for (const char* part : {"3.21 s", "840 us", "1234 pages", "95 us", "310 us", "2.1 ms",
                           "2.00 GiB", "1.00 GiB before", "64.0 KiB in it"}) {
    CHECK_MESSAGE(has(text, part), text << " lacks " << part);
  }
}

TEST_CASE("the summary for programs holds the end, the numbers and both sides") {
  const Json json = summary_json(moved());
  CHECK(text_of(json, "status") == "completed");
  CHECK(whole_of(json, "exit-status", 9) == 0);
  CHECK(monitor::number_of(json, "blackout-ms") == 0.84);
  CHECK(whole_of(json, "bytes") == 2147483648U);
  CHECK(whole_of(*json.find("faults"), "served") == 1234);
  CHECK(text_of(*json.find("source"), "status") == "completed");
  CHECK(text_of(*json.find("target"), "status") == "completed");
}

TEST_CASE("every end has its own exit status and its own words") {
  MoveView view = moved();
  view.reason = "the peer said no";
  view.end = MoveEnd::kFailed;
  CHECK(has(summary_text(view, "/t"), "Failed: the peer said no."));
  CHECK(whole_of(summary_json(view), "exit-status") == 1);
  view.end = MoveEnd::kCancelled;
  CHECK(has(summary_text(view, "/t"), "runs on at the source"));
  CHECK(whole_of(summary_json(view), "exit-status") == 3);
  view.end = MoveEnd::kUndecided;
  CHECK(has(summary_text(view, "/t"), "End neither process"));
  CHECK(whole_of(summary_json(view), "exit-status") == 4);
}

}  // namespace
}  // namespace towline::tools
