#include "vmm/monitor/migration_settings.h"

#include <sstream>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

#include "tests/unit/vmm/monitor/fakes.h"
#include "vmm/monitor/qemu_parameters.h"

namespace towline::monitor {
namespace {

base::Expected<MigrationSettings> capabilities(const std::string& list,
                                               const MigrationSettings& before = {}) {
  return with_capabilities(before, parsed(list));
}

base::Expected<MigrationSettings> parameters(const std::string& object) {
  const Json json = parsed(object);
  return with_parameters({}, &json, {});
}

std::string refusal(const base::Expected<MigrationSettings>& result) {
  REQUIRE_FALSE(result.ok());
  return result.error().detail;
}

TEST_CASE("the capabilities are exactly six, each of which can be set") {
  const Json list = capabilities_json({});
  CHECK(list.dump() ==
        R"([{"state": false, "capability": "events"}, {"state": false, "capability": )"
        R"("postcopy-ram"}, {"state": false, "capability": "postcopy-preempt"}, )"
        R"({"state": false, "capability": "multifd"}, )"
        R"({"state": false, "capability": "pause-before-switchover"}, )"
        R"({"state": true, "capability": "return-path"}])");
  const auto all = capabilities(R"([{"capability": "events", "state": true},
                                    {"capability": "postcopy-ram", "state": true},
                                    {"capability": "postcopy-preempt", "state": true},
                                    {"capability": "multifd", "state": true},
                                    {"capability": "pause-before-switchover", "state": true},
                                    {"capability": "return-path", "state": true}])");
  REQUIRE(all.ok());
  const Json told = capabilities_json(all.value());
  for (const auto& entry : *told.items()) {
    CHECK(entry.find("state")->boolean() == true);
  }
}

TEST_CASE("return-path stays on whatever is asked, and is told so") {
  const auto off = capabilities(R"([{"capability": "return-path", "state": false}])");
  REQUIRE(off.ok());
  CHECK(capabilities_json(off.value()).items()->back().find("state")->boolean() == true);
}

TEST_CASE("capabilities that are not built are refused as unknown values") {
  for (const std::string name : {"xbzrle", "mapped-ram", "release-ram", "nosuch", ""}) {
    const std::string said =
        refusal(capabilities(R"([{"capability": ")" + name + R"(", "state": true}])"));
    CHECK(said == "Parameter 'capability' does not accept value '" + name + "'");
  }
}

TEST_CASE("what QEMU has and Towline not may be turned off, where it always is, and not on") {
  constexpr const char* kQemus =
      "xbzrle rdma-pin-all auto-converge zero-blocks x-colo release-ram "
      "multifd dirty-bitmaps postcopy-blocktime late-block-activate x-ignore-shared validate-uuid "
      "background-snapshot zero-copy-send switchover-ack dirty-limit mapped-ram compress block";
  std::istringstream names(kQemus);
  std::string all = R"([{"capability": "postcopy-ram", "state": true})";
  for (std::string name; names >> name;) {
    const std::string off = R"({"capability": ")" + name + R"(", "state": false})";
    CHECK_MESSAGE(capabilities("[" + off + "]").ok(), name);
    all += ", " + off;
  }
  const auto set = capabilities(all + "]");
  REQUIRE(set.ok());
  CHECK(set.value().postcopy_ram);
  CHECK(capabilities_json(set.value()).items()->size() == 6);  // Told is only what there is.
  CHECK(refusal(capabilities(R"([{"capability": "nosuch", "state": false}])")) ==
        "Parameter 'capability' does not accept value 'nosuch'");
  CHECK(refusal(capabilities(all + R"(, {"capability": "mapped-ram", "state": true}])")) ==
        "Parameter 'capability' does not accept value 'mapped-ram'");
}

TEST_CASE("postcopy-preempt alone is refused, in whatever order the two are set") {
  CHECK(refusal(capabilities(R"([{"capability": "postcopy-preempt", "state": true}])")) ==
        "Postcopy preempt requires postcopy-ram");
  const auto both = capabilities(R"([{"capability": "postcopy-preempt", "state": true},
                                     {"capability": "postcopy-ram", "state": true}])");
  REQUIRE(both.ok());
  CHECK(refusal(capabilities(R"([{"capability": "postcopy-ram", "state": false}])",
                             both.value())) == "Postcopy preempt requires postcopy-ram");
}

TEST_CASE("entries of the wrong shape are refused") {
  CHECK(refusal(capabilities(R"([{"state": true}])")) == "Parameter 'capability' is missing");
  CHECK(refusal(capabilities(R"([{"capability": "events"}])")) == "Parameter 'state' is missing");
  CHECK(refusal(capabilities(R"([{"capability": "events", "state": 1}])")) ==
        "Invalid parameter type for 'state', expected: boolean");
  CHECK(refusal(capabilities(R"([{"capability": "events", "state": true, "x": 1}])")) ==
        "Parameter 'x' is unexpected");
  CHECK(has(refusal(capabilities("[1]")), "Invalid parameter type for 'capabilities'"));
}

TEST_CASE("the parameters and their defaults are told under QEMU's names") {
  const std::string all = parameters_json({}).dump();
  constexpr std::string_view kOurs =
      R"({"max-bandwidth": 134217728, "downtime-limit": 300, "max-postcopy-bandwidth": 0, )"
      R"("x-towline-switch": "manual", "x-towline-passes": 1, "x-towline-bulk-lanes": 2, "multifd-channels": 2, )"
      R"("x-towline-auto-recover": true, "x-towline-heartbeat-ms": 100, )"
      R"("x-towline-patience-ms": 250, "x-towline-frozen-patience-ms": 5000, )"
      R"("x-towline-paused-after-ms": 3000, )"
      R"("x-towline-reconnect-deadline-s": 0, "x-towline-alternates": [], )"
      R"("x-towline-memory-reserve": 67108864, "x-towline-source-loss": "wait", )"
      R"("x-towline-source-loss-deadline-s": 60, )"
      R"("x-towline-page-server": "none", "announce-initial": 50, )";
  CHECK(all.substr(0, kOurs.size()) == kOurs);
}

TEST_CASE("parameters that are told and set again as they were are nobody's word for post-copy") {
  const auto again = parameters(parameters_json({}).dump());
  REQUIRE(again.ok());
  CHECK_FALSE(check_postcopy_is_meant(again.value()).ok());
}

TEST_CASE("every parameter that is told can be set to what was told") {
  const auto all = parameters(R"({"max-bandwidth": 0, "downtime-limit": 1,
                                  "max-postcopy-bandwidth": 18446744073709551615,
                                  "x-towline-switch": "immediate", "x-towline-passes": 16,
                                  "x-towline-bulk-lanes": 16,
                                  "x-towline-auto-recover": false, "x-towline-heartbeat-ms": 10,
                                  "x-towline-patience-ms": 20, "x-towline-frozen-patience-ms": 100,
                                  "x-towline-reconnect-deadline-s": 60,
                                  "x-towline-source-loss": "give-up",
                                  "x-towline-source-loss-deadline-s": 5,
                                  "x-towline-alternates": ["tcp:[::1]:4", "unix:/a"],
                                  "x-towline-page-server": "unix:/run/pages"})");
  REQUIRE(all.ok());
  const auto again = parameters(parameters_json(all.value()).dump());
  REQUIRE(again.ok());
  CHECK(parameters_json(again.value()).dump() == parameters_json(all.value()).dump());
  const auto& options = all.value().options;
  CHECK(options.max_bandwidth == 0);
  CHECK_FALSE(options.auto_recover);
  CHECK(options.patience.count() == 20);
  CHECK(options.source_loss == runtime::SourceLoss::kGiveUp);
  CHECK(options.source_loss_deadline.count() == 5);
  CHECK(options.alternates.size() == 2);
  CHECK(options.page_server.path == "/run/pages");
  CHECK(options.max_postcopy_bandwidth == 18446744073709551615U);
  CHECK(options.switch_policy == runtime::SwitchPolicy::kImmediate);
  CHECK(options.passes == 16);
  CHECK(options.bulk_lanes == 16);
}

TEST_CASE("values out of range name the parameter, the range and the value") {
  CHECK(refusal(parameters(R"({"x-towline-passes": 17})")) ==
        "Parameter 'x-towline-passes' expects an integer from 0 to 16, not 17");
  CHECK(has(refusal(parameters(R"({"x-towline-bulk-lanes": 0})")), "from 1 to 16, not 0"));
  CHECK(has(refusal(parameters(R"({"max-bandwidth": -1})")), "not -1"));
  CHECK(has(refusal(parameters(R"({"max-bandwidth": 1.5})")), "not 1.5"));
  CHECK(refusal(parameters(R"({"max-bandwidth": "5"})")) ==
        "Invalid parameter type for 'max-bandwidth', expected: integer");
  CHECK(refusal(parameters(R"({"x-towline-switch": "later"})")) ==
        "Parameter 'x-towline-switch' does not accept value 'later'; use immediate, after-pass or "
        "manual");
  CHECK(has(refusal(parameters(R"({"x-towline-switch": 1})")), "expected: string"));
  CHECK(refusal(parameters(R"({"downtime-limit": 2000001})")) ==
        "Parameter 'downtime-limit' expects an integer from 0 to 2000000 ms, not 2000001");
  CHECK(parameters(R"({"downtime-limit": 2000000})").ok());
  CHECK(has(refusal(parameters(R"({"x-towline-source-loss": "forget"})")),
            "use wait, poison or give-up"));
  CHECK(has(refusal(parameters(R"({"x-towline-source-loss-deadline-s": 0})")), "from 1 to"));
}

/// A parameter set to `value`, as JSON.
base::Expected<MigrationSettings> one_set(const runtime::Parameter& parameter, const Json& value,
                                          InProgress now = {}) {
  Json object = Json::object();
  object.set(std::string(parameter.name), value);
  return with_parameters({}, &object, now);
}

TEST_CASE(
    "each row of the table of parameters is told, set, read back, and kept within its range") {
  const Json told = parameters_json({});
  for (const runtime::Parameter& one : runtime::parameters()) {
    const std::string name(one.name);
    const Json* usual = told.find(name);
    REQUIRE_MESSAGE(usual != nullptr, name);
    CHECK(usual->dump() == json_of(default_of(one)).dump());
    CHECK_MESSAGE(one_set(one, *usual).ok(), name);
    CHECK(has(refusal(one_set(one, Json::object())),
              "Invalid parameter type for '" + name + "', expected: "));
    if (one.place.type != runtime::Parameter::Type::kNumber) {
      continue;
    }
    for (const std::uint64_t value : {one.least, one.most}) {
      const auto set = one_set(one, value);
      REQUIRE_MESSAGE(set.ok(), name);
      CHECK(parameters_json(set.value()).find(name)->whole() == value);
    }
    const std::string range = "Parameter '" + name + "' expects " + permitted(one) + ", not ";
    CHECK(refusal(one_set(one, static_cast<std::int64_t>(one.least) - 1)) ==
          range + std::to_string(static_cast<std::int64_t>(one.least) - 1));
    if (one.most + 1 != 0) {
      CHECK(refusal(one_set(one, one.most + 1)) == range + std::to_string(one.most + 1));
    }
  }
}

/// Another value than the default.
Json changed_value(const runtime::Parameter& one) {
  switch (one.place.type) {
    case runtime::Parameter::Type::kBoolean:
      return !std::get<bool>(default_of(one));
    case runtime::Parameter::Type::kNumber:
      return std::get<std::uint64_t>(default_of(one)) + 1;
    case runtime::Parameter::Type::kChoice:
      return one.place.choices[1];
    case runtime::Parameter::Type::kPageServer:
      return "own";
    case runtime::Parameter::Type::kAddresses:
      return Json::array().add("unix:/a");
  }
  __builtin_unreachable();
}

TEST_CASE("each row says when its parameter may change, and a value that stays is always taken") {
  using Change = runtime::Parameter::Change;
  for (const runtime::Parameter& one : runtime::parameters()) {
    const bool follows = one.change == Change::kAnyTime || one.change == Change::kForTheNext;
    const Json other = changed_value(one);
    CHECK_MESSAGE(one_set(one, other).ok(), one.name);
    CHECK_MESSAGE(one_set(one, other, {.leaving = true}).ok() == follows, one.name);
    CHECK_MESSAGE(
        one_set(one, other, {.arriving = true}).ok() == (one.change != Change::kBeforeIncoming),
        one.name);
    CHECK(one_set(one, json_of(default_of(one)), {.leaving = true, .arriving = true}).ok());
  }
}

TEST_CASE("a parameter that cannot change now is named with what to do instead") {
  const auto* passes = runtime::find_parameter("x-towline-passes");
  CHECK(refusal(one_set(*passes, 3, {.leaving = true})) ==
        "Parameter 'x-towline-passes' cannot change while a migration runs; set it before "
        "'migrate' ('max-bandwidth' and 'max-postcopy-bandwidth' can)");
  const auto* reserve = runtime::find_parameter("x-towline-memory-reserve");
  CHECK(refusal(one_set(*reserve, 3, {.arriving = true})) ==
        "Parameter 'x-towline-memory-reserve' cannot change once this machine waits for a guest; "
        "set it before 'migrate-incoming' (start the machine with --incoming defer)");
}

TEST_CASE("addresses and page servers that cannot be are named with the parameter and the forms") {
  const std::string address = refusal(parameters(R"({"x-towline-alternates": ["tcp:a:1", "b"]})"));
  CHECK(has(address, "Parameter 'x-towline-alternates': "));
  CHECK(has(address, "tcp:HOST:PORT"));
  const std::string server = refusal(parameters(R"({"x-towline-page-server": "mine"})"));
  CHECK(has(server, "Parameter 'x-towline-page-server': "));
  CHECK(has(server, "'mine'"));
  CHECK(has(server, "unix:PATH"));
}

TEST_CASE("the number of lanes has QEMU's name too, and errors use the name that was used") {
  const auto four = parameters(R"({"multifd-channels": 4})");
  REQUIRE(four.ok());
  CHECK(four.value().options.bulk_lanes == 4);
  CHECK(whole_of(parameters_json(four.value()), "multifd-channels") == 4);
  CHECK(whole_of(parameters_json(four.value()), "x-towline-bulk-lanes") == 4);
  CHECK(refusal(parameters(R"({"multifd-channels": 17})")) ==
        "Parameter 'multifd-channels' expects an integer from 1 to 16, not 17");
  const Json json = parsed(R"({"multifd-channels": 4})");
  CHECK(has(refusal(with_parameters({}, &json, {.leaving = true})), "'multifd-channels' cannot"));
}

TEST_CASE("parameters of QEMU 10.2 are told with its defaults, and all can be set to them") {
  const Json told = parameters_json({});
  std::string all;
  for (const QemuParameter& one : qemu_parameters()) {
    const Json usual = usual_value(one);
    CHECK_FALSE_MESSAGE(usual.is_null(), one.name);
    const bool inert = one.kind == QemuParameter::Kind::kInert;
    const Json* found = told.find(one.name);
    CHECK_MESSAGE((found != nullptr) == (inert && one.newest), one.name);
    CHECK_MESSAGE((found == nullptr || found->dump() == one.usual), one.name);
    all += (all.empty() ? "{\"" : ", \"") + std::string(one.name) + "\": " + usual.dump();
  }
  const auto set = parameters(all + "}");
  REQUIRE(set.ok());
  CHECK(parameters_json(set.value()).dump() == told.dump());
  CHECK(parameters(told.dump()).ok());
}

TEST_CASE("what has no effect is taken within QEMU's range, told back, and changes nothing") {
  const auto set = parameters(R"({"xbzrle-cache-size": 134217728, "cpu-throttle-tailslow": true,
                                  "zero-page-detection": "legacy", "compress-level": 3})");
  REQUIRE(set.ok());
  const Json told = parameters_json(set.value());
  CHECK(whole_of(told, "xbzrle-cache-size") == 134217728);
  CHECK(told.find("cpu-throttle-tailslow")->boolean() == true);
  CHECK(text_of(told, "zero-page-detection") == "legacy");
  CHECK(whole_of(told, "compress-level") == 3);
  CHECK(dump(set.value().options) == dump(MigrationSettings{}.options));
  CHECK(refusal(parameters(R"({"cpu-throttle-initial": 100})")) ==
        "Parameter 'cpu-throttle-initial' expects an integer from 1 to 99, not 100");
  CHECK(refusal(parameters(R"({"announce-rounds": 1.5})")) ==
        "Parameter 'announce-rounds' expects an integer from 0 to 1000, not 1.5");
  CHECK(refusal(parameters(R"({"announce-rounds": "5"})")) ==
        "Invalid parameter type for 'announce-rounds', expected: integer");
  CHECK(has(refusal(parameters(R"({"zero-page-detection": "all"})")), "none, legacy, multifd"));
}

TEST_CASE("a parameter that promises what is not built is refused by every value but the usual") {
  CHECK(parameters(R"({"tls-creds": "", "tls-hostname": null, "tls-authz": ""})").ok());
  CHECK(parameters(R"({"mode": "normal", "multifd-compression": "none", "direct-io": false,
                       "block-bitmap-mapping": [], "cpr-exec-command": []})")
            .ok());
  for (const std::string other :
       {R"("tls-creds": "tls0")", R"("tls-hostname": "a")", R"("tls-authz": "b")",
        R"("mode": "cpr-reboot")", R"("multifd-compression": "zstd")", R"("direct-io": true)",
        R"("block-bitmap-mapping": [{}])", R"("cpr-exec-command": ["sh"])"}) {
    const std::string said = refusal(parameters("{" + other + "}"));
    CHECK_MESSAGE(has(said, " is not built in Towline, and "), said);
  }
  CHECK(refusal(parameters(R"({"tls-creds": "tls0"})")) ==
        "Parameter 'tls-creds' is not built in Towline, and \"tls0\" is not \"\": the migration is "
        "not encrypted; send it through a tunnel, and leave this empty");
  CHECK(refusal(parameters(R"({"tls-creds": 3})")) ==
        "Invalid parameter type for 'tls-creds', expected: string");
  CHECK(refusal(parameters(R"({"warp-factor": 9})")) == "Parameter 'warp-factor' is unexpected");
}

TEST_CASE("one bad parameter leaves the others as they were") {
  MigrationSettings settings;
  const Json json = parsed(R"({"max-bandwidth": 1, "announce-max": 1, "tls-creds": "a"})");
  CHECK_FALSE(with_parameters(settings, &json, {}).ok());
  CHECK(settings.options.max_bandwidth == 128U << 20U);
  CHECK(settings.inert.empty());
  CHECK(with_parameters(settings, nullptr, {}).ok());
}

TEST_CASE("post-copy is meant by the capability or by a switch without an order, else refused") {
  for (const bool capability : {false, true}) {
    for (const std::string word : {"", "manual", "immediate", "after-pass"}) {
      auto settings = parameters(word.empty() ? "{}" : R"({"x-towline-switch": ")" + word + "\"}");
      REQUIRE(settings.ok());
      settings.value().postcopy_ram = capability;
      const auto judged = check_postcopy_is_meant(settings.value());
      const bool without_order = word == "immediate" || word == "after-pass";
      CHECK_MESSAGE(judged.ok() == (capability || without_order), word);
      if (!judged.ok()) {
        CHECK(has(judged.error().detail, "'postcopy-ram' is off"));
        CHECK(has(judged.error().detail, "migrate-set-capabilities"));
        CHECK(has(judged.error().detail, "after-pass"));
      }
    }
  }
}

TEST_CASE("who turns the capability off takes back the switch that was set with it") {
  auto settings = parameters(R"({"x-towline-switch": "after-pass"})");
  REQUIRE(settings.ok());
  constexpr const char* kOff = R"([{"capability": "postcopy-ram", "state": false}])";
  const auto same = capabilities(kOff, settings.value());
  REQUIRE(same.ok());
  CHECK(check_postcopy_is_meant(same.value()).ok());  // Nothing was turned off.
  settings.value().postcopy_ram = true;
  const auto off = capabilities(kOff, settings.value());
  REQUIRE(off.ok());
  CHECK_FALSE(check_postcopy_is_meant(off.value()).ok());
  CHECK(text_of(parameters_json(off.value()), "x-towline-switch") == "manual");
}

TEST_CASE("a downtime limit of zero asks for a switch without any dirty page") {
  CHECK(MigrationSettings{}.options.switch_page_budget == 300);
  CHECK(parameters(R"({"downtime-limit": 0})").value().options.switch_page_budget == 0);
  CHECK(parameters(R"({"downtime-limit": 1})").value().options.switch_page_budget == 300);
}

}  // namespace
}  // namespace towline::monitor
