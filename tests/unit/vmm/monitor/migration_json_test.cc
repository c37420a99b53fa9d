#include "vmm/monitor/migration_json.h"

#include <string>

#include <doctest/doctest.h>

#include "base/log.h"
#include "tests/unit/vmm/monitor/fakes.h"

namespace towline::monitor {
namespace {

using runtime::MigrationStatus;

RoleReport source(MigrationStatus status) {
  RoleReport latest;
  latest.report.status = status;
  latest.report.total_bytes = 8192;
  latest.report.remaining_bytes = 4096;
  latest.report.dirty_pages_rate = 11;
  latest.report.normal_pages = 3;
  latest.report.zero_pages = 2;
  latest.report.transferred = 12345;
  latest.report.mbps = 0.5;
  latest.report.expected_downtime_ms = 300;
  return latest;
}

TEST_CASE("a process that never migrated answers with an empty object") {
  CHECK(query_migrate_json(std::nullopt).dump() == "{}");
  CHECK(query_migrate_json(RoleReport{}).dump() == "{}");
}

TEST_CASE("every field of QEMU's ram statistics is there, under its name") {
  const Json answer = query_migrate_json(source(MigrationStatus::kActive));
  const Json* ram = answer.find("ram");
  REQUIRE(ram != nullptr);
  for (const char* name :
       {"total", "postcopy-requests", "dirty-sync-count", "multifd-bytes", "pages-per-second",
        "downtime-bytes", "page-size", "remaining", "postcopy-bytes", "mbps", "transferred",
        "dirty-sync-missed-zero-copy", "precopy-bytes", "duplicate", "dirty-pages-rate", "skipped",
        "normal-bytes", "normal"}) {
    REQUIRE_MESSAGE(ram->find(name) != nullptr, name);
    CHECK(ram->find(name)->number().has_value());
  }
  CHECK(whole_of(*ram, "duplicate") == 2);
  CHECK(whole_of(*ram, "normal-bytes") == 3 * 4096);
  CHECK(whole_of(*ram, "remaining") == 4096);
  CHECK(text_of(answer, "status") == "active");
  CHECK(whole_of(answer, "expected-downtime") == 300);
  CHECK(answer.find("downtime") == nullptr);
  CHECK(answer.find("error-desc") == nullptr);
}

TEST_CASE("the last lines about the guest's owner are in the answer, whatever the log's level") {
  base::log_owner(base::LogLevel::kDebug, "test.owner is={}", "the \"target\"");
  const Json answer = query_migrate_json(source(MigrationStatus::kActive));
  const Json* own = answer.find("x-towline");
  REQUIRE(own != nullptr);
  const Json* lines = own->find("log");
  REQUIRE(lines != nullptr);
  REQUIRE_FALSE(lines->items()->empty());
  const Json& last = lines->items()->back();
  CHECK(text_of(last, "text") == R"(test.owner is="the \"target\"")");
  CHECK(text_of(last, "level") == "debug");
  CHECK(text_of(last, "time").ends_with('Z'));
  CHECK(own->find("log-dropped")->number().has_value());
}

TEST_CASE("the statistics stay after every end, and a failure says why") {
  for (const auto status : {MigrationStatus::kCompleted, MigrationStatus::kFailed,
                            MigrationStatus::kCancelled, MigrationStatus::kPostcopyPaused}) {
    RoleReport latest = source(status);
    latest.report.error = "the peer said no";
    const Json answer = query_migrate_json(latest);
    CHECK(whole_of(*answer.find("ram"), "transferred") == 12345);
    CHECK(text_of(answer, "error-desc") == "the peer said no");
  }
}

TEST_CASE("what is waited for before the switch is told beside a status that stays as it is") {
  RoleReport latest = source(MigrationStatus::kActive);
  CHECK(query_migrate_json(latest).find("x-towline")->find("waits-for") == nullptr);
  latest.report.waits_for = "memory: none is left";
  const Json answer = query_migrate_json(latest);
  CHECK(text_of(*answer.find("x-towline"), "waits-for") == "memory: none is left");
  CHECK(text_of(answer, "status") == "active");
  CHECK(answer.find("error-desc") == nullptr);
}

TEST_CASE("before the first byte everything remains: nothing would read as done") {
  RoleReport latest = source(MigrationStatus::kSetup);
  latest.report.page_size = 4096;
  latest.report.remaining_bytes = 0;
  const Json answer = query_migrate_json(latest);
  CHECK(whole_of(*answer.find("ram"), "remaining") == 8192);
  CHECK(whole_of(*answer.find("x-towline"), "remaining-pages") == 2);
}

TEST_CASE("a rate without a fraction is written without one, as QEMU does") {
  const auto told = [](double mbps) {
    RoleReport latest = source(MigrationStatus::kActive);
    latest.report.mbps = mbps;
    return query_migrate_json(latest).find("ram")->find("mbps")->dump();
  };
  CHECK(told(0) == "0");
  CHECK(told(940) == "940");
  CHECK(told(0.5) == "0.5");
}

TEST_CASE("nothing remains and nothing is dirtied once it is completed") {
  const Json answer = query_migrate_json(source(MigrationStatus::kCompleted));
  CHECK(whole_of(*answer.find("ram"), "remaining", 9) == 0);
  CHECK(whole_of(*answer.find("ram"), "dirty-pages-rate", 9) == 0);
}

TEST_CASE("a blackout of a part of a millisecond is told as one, and exactly beside it") {
  RoleReport latest = source(MigrationStatus::kCompleted);
  latest.report.downtime_ms = 0.25;
  latest.report.downtime_error_ms = 0.01;
  const Json answer = query_migrate_json(latest);
  CHECK(whole_of(answer, "downtime") == 1);
  CHECK(answer.find("expected-downtime") == nullptr);
  CHECK(number_of(*answer.find("x-towline"), "blackout-ms") == 0.25);
}

TEST_CASE("the target tells what is missing and how faults were served") {
  RoleReport latest = source(MigrationStatus::kPostcopyActive);
  latest.role = Role::kTarget;
  latest.report.listening = runtime::Uri::parse("tcp:[::1]:77").value();
  latest.report.faults.served = 5;
  latest.report.faults.p99_us = 310.5;
  latest.report.faults.log2_us[7] = 5;
  const Json answer = query_migrate_json(latest);
  const Json* own = answer.find("x-towline");
  REQUIRE(own != nullptr);
  CHECK(text_of(*own, "role") == "target");
  CHECK(whole_of(*own, "remaining-pages") == 1);
  const Json* faults = own->find("faults");
  REQUIRE(faults != nullptr);
  CHECK(whole_of(*faults, "served") == 5);
  CHECK(number_of(*faults, "p99-us") == 310.5);
  CHECK(faults->find("histogram-log2-us")->items()->size() == 24);
  CHECK(faults->find("histogram-log2-us")->items()->at(7).whole() == 5U);
  CHECK(answer.find("socket-address")->dump() ==
        R"([{"port": "77", "ipv6": true, "host": "::1", "type": "inet"}])");
}

TEST_CASE("an address written as JSON is read back the same") {
  for (const std::string text : {"tcp:127.0.0.1:1", "tcp:[::1]:2", "tcp:host:3", "unix:/a b"}) {
    const auto uri = runtime::Uri::parse(text);
    REQUIRE(uri.ok());
    const auto again = address_from_json(address_json(uri.value()));
    REQUIRE(again.ok());
    CHECK(again.value().to_string() == text);
  }
  CHECK_FALSE(address_from_json(parsed(R"({"type": "inet", "host": "h"})")).ok());
  CHECK_FALSE(address_from_json(parsed(R"({"type": "fd", "str": "x"})")).ok());
}

}  // namespace
}  // namespace towline::monitor
