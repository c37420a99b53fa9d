#include "vmm/monitor/migration_settings.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <string_view>
#include <tuple>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/migration.h"
#include "vmm/monitor/arguments.h"

namespace towline::monitor {
namespace {

using runtime::SwitchPolicy;

struct PolicyName {
  SwitchPolicy policy;
  std::string_view name;
};

constexpr std::array kPolicies{
    PolicyName{SwitchPolicy::kImmediate, "immediate"},
    PolicyName{SwitchPolicy::kAfterPass, "after-pass"},
    PolicyName{SwitchPolicy::kManual, "manual"},
};

/// What QEMU has and Towline not, with what to do instead.
struct NotBuilt {
  std::string_view prefix;
  std::string_view remedy;
};

constexpr std::array kNotBuilt{
    NotBuilt{"multifd-", "several lanes are always used; their number is 'x-towline-bulk-lanes'"},
    NotBuilt{"tls-", "the migration is not encrypted; send it through a tunnel"},
    NotBuilt{"cpu-throttle-", "the guest is never throttled: the switch needs no convergence"},
    NotBuilt{"max-cpu-throttle", "the guest is never throttled: the switch needs no convergence"},
    NotBuilt{"throttle-", "the guest is never throttled: the switch needs no convergence"},
    NotBuilt{"vcpu-dirty-limit", "the guest is never throttled: the switch needs no convergence"},
    NotBuilt{"x-vcpu-dirty-limit", "the guest is never throttled: the switch needs no convergence"},
    NotBuilt{"announce-", "the machine has no network card to announce"},
    NotBuilt{"xbzrle-", "pages are sent whole and once"},
    NotBuilt{"block-", "the machine has no disks"},
    NotBuilt{"compress", "pages are sent as they are"},
    NotBuilt{"decompress", "pages are sent as they are"},
    NotBuilt{"avail-switchover-bandwidth", "the switch needs no estimate; leave it out"},
    NotBuilt{"mode", "the only mode is a move to another process; leave it out"},
    NotBuilt{"zero-page-detection", "zero pages are always found by the sender; leave it out"},
    NotBuilt{"direct-io", "a migration goes to a socket, not to a file"},
    NotBuilt{"cpr-exec-command", "the only mode is a move to another process"},
    NotBuilt{"x-checkpoint-delay", "there are no checkpoints"},
};

/// The capabilities of QEMU 10.2 that are not built here. Each is off there unless it is set, and
/// off here always.
constexpr std::array<std::string_view, 18> kAlwaysOff{
    "xbzrle",        "rdma-pin-all",        "auto-converge",           "zero-blocks",
    "x-colo",        "release-ram",         "pause-before-switchover", "multifd",
    "dirty-bitmaps", "postcopy-blocktime",  "late-block-activate",     "x-ignore-shared",
    "validate-uuid", "background-snapshot", "zero-copy-send",          "switchover-ack",
    "dirty-limit",   "mapped-ram"};

bool is_always_off(std::string_view capability) {
  return std::find(kAlwaysOff.begin(), kAlwaysOff.end(), capability) != kAlwaysOff.end();
}

base::Err<base::Error> not_built(std::string_view name) {
  for (const auto& known : kNotBuilt) {
    if (name.starts_with(known.prefix)) {
      return refuse(fmt::format("Parameter '{}' is not built in Towline: {}", name, known.remedy));
    }
  }
  return unexpected(name);
}

base::Expected<std::uint64_t> whole(const Json::Member& member, std::uint64_t first,
                                    std::uint64_t last, std::string_view unit) {
  const auto value = member.value.whole();
  if (!member.value.number()) {
    return wrong_type(member.name, "integer");
  }
  if (!value || *value < first || *value > last) {
    return refuse(fmt::format("Parameter '{}' expects an integer from {} to {}{}, not {}",
                              member.name, first, last, unit, member.value.dump()));
  }
  return *value;
}

base::Expected<std::uint64_t> downtime(const Json::Member& member) {
  const auto value = member.value.whole();
  if (!member.value.number()) {
    return wrong_type(member.name, "integer");
  }
  if (!value || *value > 2'000'000) {
    return refuse("Option downtime_limit expects an integer in the range of 0 to (2000 * 1000) ms");
  }
  return *value;
}

base::Expected<SwitchPolicy> policy(const Json::Member& member) {
  if (member.value.text() == nullptr) {
    return wrong_type(member.name, "string");
  }
  const auto* const known =
      std::find_if(kPolicies.begin(), kPolicies.end(),
                   [&](const PolicyName& one) { return one.name == *member.value.text(); });
  if (known == kPolicies.end()) {
    return refuse(fmt::format(
        "Parameter '{}' does not accept value '{}'; use immediate, after-pass or manual",
        member.name, *member.value.text()));
  }
  return known->policy;
}

SwitchPolicy effective_policy(const MigrationSettings& settings) {
  return settings.switch_policy.value_or(SwitchPolicy::kManual);
}

base::Outcome set_bandwidth(MigrationSettings& settings, const Json::Member& member) {
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  const std::uint64_t value = TRY(whole(member, 0, kMost, " bytes/second"));
  (member.name == "max-bandwidth" ? settings.max_bandwidth : settings.max_postcopy_bandwidth) =
      value;
  return base::Done{};
}

base::Expected<std::vector<runtime::Uri>> addresses(const Json::Member& member) {
  if (member.value.items() == nullptr) {
    return wrong_type(member.name, "array of strings");
  }
  std::vector<runtime::Uri> parsed;
  for (const Json& entry : *member.value.items()) {
    if (entry.text() == nullptr) {
      return wrong_type(member.name, "array of strings");
    }
    parsed.push_back(TRY(runtime::Uri::parse(*entry.text())));
  }
  return parsed;
}

base::Outcome set_number(std::uint64_t& into, const Json::Member& member, std::uint64_t first,
                         std::uint64_t last, std::string_view unit) {
  into = TRY(whole(member, first, last, unit));
  return base::Done{};
}

base::Expected<runtime::SourceLoss> source_loss(const Json::Member& member) {
  if (member.value.text() == nullptr) {
    return wrong_type(member.name, "string");
  }
  const auto policy = runtime::source_loss_named(*member.value.text());
  if (!policy) {
    return refuse(
        fmt::format("Parameter '{}' does not accept value '{}'; use wait, poison or give-up",
                    member.name, *member.value.text()));
  }
  TRY(runtime::check_source_loss(*policy));
  return *policy;
}

/// What happens when the link is lost.
base::Outcome set_recovery(MigrationSettings& settings, const Json::Member& member) {
  if (member.name == "x-towline-heartbeat-ms") {
    return set_number(settings.heartbeat_ms, member, 10, 60'000, " ms");
  }
  if (member.name == "x-towline-patience-ms") {
    return set_number(settings.patience_ms, member, 20, 600'000, " ms");
  }
  if (member.name == "x-towline-frozen-patience-ms") {
    return set_number(settings.frozen_patience_ms, member, 100, 3'600'000, " ms");
  }
  if (member.name == "x-towline-reconnect-deadline-s") {
    return set_number(settings.reconnect_deadline_s, member, 0, 1U << 30U, " s");
  }
  if (member.name == "x-towline-source-loss") {
    settings.source_loss = TRY(source_loss(member));
    return base::Done{};
  }
  if (member.name == "x-towline-source-loss-deadline-s") {
    return set_number(settings.source_loss_deadline_s, member, 1,
                      runtime::kLongestSourceLossDeadlineS, " s");
  }
  if (member.name == "x-towline-memory-reserve") {
    return set_number(settings.memory_reserve, member, 0, 1ULL << 50U, " bytes");
  }
  if (member.name == "x-towline-alternates") {
    settings.alternates = TRY(addresses(member));
    return base::Done{};
  }
  if (member.name == "x-towline-page-server") {
    if (member.value.text() == nullptr) {
      return wrong_type(member.name, "string");
    }
    settings.page_server = TRY(runtime::PageServerChoice::parse(*member.value.text()));
    return base::Done{};
  }
  if (member.name == "x-towline-auto-recover") {
    if (!member.value.boolean().has_value()) {
      return wrong_type(member.name, "boolean");
    }
    settings.auto_recover = *member.value.boolean();
    return base::Done{};
  }
  return not_built(member.name);
}

/// The page budget of the switch that a downtime limit stands for.
///
/// A page of the last delta costs the pause about a microsecond at the target (it is zapped
/// there), so a limit in milliseconds is a number of thousands of pages. Only 0 is less than the
/// default budget: then the switch waits, as long as it may, for a moment without a dirty page.
std::uint64_t page_budget(const MigrationSettings& settings) {
  return std::min(runtime::MigrationOptions{}.switch_page_budget,
                  settings.downtime_limit_ms * 1000);
}

base::Outcome set_downtime(MigrationSettings& settings, const Json::Member& member, bool running) {
  const std::uint64_t before = page_budget(settings);
  settings.downtime_limit_ms = TRY(downtime(member));
  if (running && page_budget(settings) != before) {
    // Managers turn it up while they wait for a move, and QEMU takes it. Here it decides next to
    // nothing, so the move in progress keeps what it was begun with.
    base::log(base::LogLevel::kInfo, "migration.parameter name=downtime-limit value={} so={}",
              settings.downtime_limit_ms, "it counts from the next migration on");
  }
  return base::Done{};
}

base::Outcome set_shape(MigrationSettings& settings, const Json::Member& member, bool running) {
  if (member.name == "x-towline-switch") {
    settings.switch_policy = TRY(policy(member));
  } else if (member.name == "x-towline-passes") {
    settings.passes = static_cast<std::uint32_t>(TRY(whole(member, 0, 16, "")));
  } else if (member.name == "x-towline-bulk-lanes") {
    settings.bulk_lanes = static_cast<std::uint32_t>(TRY(whole(member, 1, 16, "")));
  } else if (member.name == "downtime-limit") {
    return set_downtime(settings, member, running);
  } else {
    return set_recovery(settings, member);
  }
  return base::Done{};
}

std::vector<std::string> texts(const std::vector<runtime::Uri>& addresses) {
  std::vector<std::string> list;
  list.reserve(addresses.size());
  for (const runtime::Uri& address : addresses) {
    list.push_back(address.to_string());
  }
  return list;
}

/// What a migration is given once, when it starts.
auto fixed_part(const MigrationSettings& settings) {
  return std::tuple(settings.switch_policy, settings.passes, settings.bulk_lanes,
                    settings.auto_recover, settings.heartbeat_ms, settings.patience_ms,
                    settings.frozen_patience_ms, settings.reconnect_deadline_s,
                    texts(settings.alternates), settings.memory_reserve,
                    settings.page_server.to_string());
}

base::Outcome set_parameter(MigrationSettings& settings, const Json::Member& member, bool running) {
  if (member.name == "max-bandwidth" || member.name == "max-postcopy-bandwidth") {
    return set_bandwidth(settings, member);
  }
  const auto before = fixed_part(settings);
  TRY(set_shape(settings, member, running));
  // Managers write the same values again and again: only a change is refused.
  if (running && fixed_part(settings) != before) {
    return refuse(
        fmt::format("Parameter '{}' cannot change while a migration runs; set it before "
                    "'migrate' ('max-bandwidth' and 'max-postcopy-bandwidth' can)",
                    member.name));
  }
  return base::Done{};
}

struct CapabilityChange {
  std::string name;
  bool state = false;
};

base::Expected<CapabilityChange> read_change(const Json& entry) {
  if (entry.members() == nullptr) {
    return wrong_type("capabilities", "array of objects");
  }
  Arguments arguments(&entry);
  CapabilityChange change{TRY(arguments.text("capability")), false};
  const auto state = TRY(arguments.optional_boolean("state"));
  if (!state) {
    return missing("state");
  }
  TRY(arguments.finish());
  change.state = *state;
  return change;
}

base::Outcome apply(MigrationSettings& settings, const CapabilityChange& change) {
  if (change.name == "events") {
    settings.events = change.state;
  } else if (change.name == "postcopy-ram") {
    if (settings.postcopy_ram && !change.state) {
      settings.switch_policy.reset();  // Who takes it back takes back what came with it.
    }
    settings.postcopy_ram = change.state;
  } else if (change.name == "postcopy-preempt") {
    settings.postcopy_preempt = change.state;
  } else if (change.name != "return-path") {
    // Managers write "off" for everything that they did not ask for, and off it is.
    return is_always_off(change.name) && !change.state
               ? base::Outcome(base::Done{})
               : base::Outcome(not_accepted("capability", change.name));
  } else if (!change.state) {
    // The same, and not true. A refusal would stop them for nothing; query-migrate-capabilities
    // keeps telling the truth.
    base::log(base::LogLevel::kWarning, "migration.capability name=return-path state=off reason={}",
              "it stays on, always in effect");
  }
  return base::Done{};
}

}  // namespace

Json capabilities_json(const MigrationSettings& settings) {
  Json list = Json::array();
  const auto add = [&list](const char* name, bool state) {
    list.add(Json::object({{"state", state}, {"capability", name}}));
  };
  add("events", settings.events);
  add("postcopy-ram", settings.postcopy_ram);
  add("postcopy-preempt", settings.postcopy_preempt);
  add("return-path", true);
  return list;
}

base::Expected<MigrationSettings> with_capabilities(MigrationSettings settings, const Json& list) {
  for (const auto& entry : *list.items()) {
    const CapabilityChange change = TRY(read_change(entry));
    TRY(apply(settings, change));
  }
  if (settings.postcopy_preempt && !settings.postcopy_ram) {
    return refuse("Postcopy preempt requires postcopy-ram");
  }
  return settings;
}

Json parameters_json(const MigrationSettings& settings) {
  const SwitchPolicy effective = effective_policy(settings);
  const auto* const name =
      std::find_if(kPolicies.begin(), kPolicies.end(),
                   [&](const PolicyName& one) { return one.policy == effective; });
  Json alternates = Json::array();
  for (const std::string& address : texts(settings.alternates)) {
    alternates.add(address);
  }
  return Json::object({{"max-bandwidth", settings.max_bandwidth},
                       {"downtime-limit", settings.downtime_limit_ms},
                       {"max-postcopy-bandwidth", settings.max_postcopy_bandwidth},
                       {"x-towline-switch", name->name},
                       {"x-towline-passes", settings.passes},
                       {"x-towline-bulk-lanes", settings.bulk_lanes},
                       {"x-towline-auto-recover", settings.auto_recover},
                       {"x-towline-heartbeat-ms", settings.heartbeat_ms},
                       {"x-towline-patience-ms", settings.patience_ms},
                       {"x-towline-frozen-patience-ms", settings.frozen_patience_ms},
                       {"x-towline-reconnect-deadline-s", settings.reconnect_deadline_s},
                       {"x-towline-alternates", std::move(alternates)},
                       {"x-towline-memory-reserve", settings.memory_reserve},
                       {"x-towline-source-loss", runtime::to_string(settings.source_loss)},
                       {"x-towline-source-loss-deadline-s", settings.source_loss_deadline_s},
                       {"x-towline-page-server", settings.page_server.to_string()}});
}

base::Expected<MigrationSettings> with_parameters(MigrationSettings settings, const Json* object,
                                                  bool running) {
  if (object != nullptr) {
    for (const auto& member : *object->members()) {
      TRY(set_parameter(settings, member, running));
    }
  }
  return settings;
}

runtime::MigrationOptions options_for(const MigrationSettings& settings) {
  runtime::MigrationOptions options;
  options.switch_policy = effective_policy(settings);
  options.passes = settings.passes;
  options.bulk_lanes = settings.bulk_lanes;
  options.max_bandwidth = settings.max_bandwidth;
  options.max_postcopy_bandwidth = settings.max_postcopy_bandwidth;
  options.switch_page_budget = page_budget(settings);
  using std::chrono::milliseconds;
  options.auto_recover = settings.auto_recover;
  options.heartbeat = milliseconds(settings.heartbeat_ms);
  options.patience = milliseconds(settings.patience_ms);
  options.frozen_patience = milliseconds(settings.frozen_patience_ms);
  options.reconnect_deadline = std::chrono::seconds(settings.reconnect_deadline_s);
  options.alternates = settings.alternates;
  options.memory_reserve = settings.memory_reserve;
  options.source_loss = settings.source_loss;
  options.source_loss_deadline = std::chrono::seconds(settings.source_loss_deadline_s);
  options.page_server = settings.page_server;
  return options;
}

base::Outcome check_postcopy_is_meant(const MigrationSettings& settings) {
  if (settings.postcopy_ram || effective_policy(settings) != SwitchPolicy::kManual) {
    return base::Done{};
  }
  return refuse(
      "Every move is post-copy (there is no pre-copy), and capability 'postcopy-ram' is off: if "
      "post-copy is meant, enable it here and at the target with migrate-set-capabilities "
      "{\"capabilities\": [{\"capability\": \"postcopy-ram\", \"state\": true}]}, and order the "
      "switch with migrate-start-postcopy. For a switch without an order set 'x-towline-switch' to "
      "'after-pass' with migrate-set-parameters. 'towline migrate' does all of this");
}

}  // namespace towline::monitor
