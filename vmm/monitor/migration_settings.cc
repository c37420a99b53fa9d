#include "vmm/monitor/migration_settings.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/log.h"
#include "vmm/monitor/command_arguments.h"
#include "vmm/monitor/qemu_parameters.h"

namespace towline::monitor {
namespace {

using runtime::Parameter;
using runtime::ParameterValue;
using runtime::SwitchPolicy;

/// The capabilities of QEMU 7.2 to 10.2 that are not built here. Each is off there unless it is
/// set, and off here always.
constexpr std::array<std::string_view, 18> kAlwaysOff{"xbzrle",
                                                      "rdma-pin-all",
                                                      "auto-converge",
                                                      "zero-blocks",
                                                      "x-colo",
                                                      "release-ram",
                                                      "compress",
                                                      "dirty-bitmaps",
                                                      "postcopy-blocktime",
                                                      "late-block-activate",
                                                      "x-ignore-shared",
                                                      "validate-uuid",
                                                      "background-snapshot",
                                                      "zero-copy-send",
                                                      "switchover-ack",
                                                      "dirty-limit",
                                                      "mapped-ram",
                                                      "block"};

bool is_always_off(std::string_view capability) {
  return std::find(kAlwaysOff.begin(), kAlwaysOff.end(), capability) != kAlwaysOff.end();
}

/// Keeps what a manager sets although it has no effect, and says so in the log once for a value.
base::Outcome set_qemus(MigrationSettings& settings, const Json::Member& member) {
  const QemuParameter* parameter = find_qemu_parameter(member.name);
  if (parameter == nullptr) {
    return unexpected(member.name);
  }
  const Json value = TRY(accepted_value(*parameter, member.value));
  const auto kept = std::find_if(settings.inert.begin(), settings.inert.end(),
                                 [&](const Json::Member& one) { return one.name == member.name; });
  const Json before = kept == settings.inert.end() ? usual_value(*parameter) : kept->value;
  if (value.dump() == before.dump()) {
    return base::Done{};
  }
  base::log(base::LogLevel::kInfo, "migration.parameter name={} value={} so={}", member.name,
            value.dump(), fmt::format("it has no effect: {}", parameter->why));
  if (kept == settings.inert.end()) {
    settings.inert.push_back({member.name, value});
  } else {
    kept->value = value;
  }
  return base::Done{};
}

std::string_view type_name(Parameter::Type type) {
  switch (type) {
    case Parameter::Type::kBoolean:
      return "boolean";
    case Parameter::Type::kNumber:
      return "integer";
    case Parameter::Type::kChoice:
    case Parameter::Type::kPageServer:
      return "string";
    case Parameter::Type::kAddresses:
      return "array of strings";
  }
  __builtin_unreachable();
}

std::optional<std::vector<std::string>> texts_of(const Json& json) {
  if (json.items() == nullptr) {
    return std::nullopt;
  }
  std::vector<std::string> texts;
  for (const Json& entry : *json.items()) {
    if (entry.text() == nullptr) {
      return std::nullopt;
    }
    texts.push_back(*entry.text());
  }
  return texts;
}

/// The value, if it is of that type. A number with a fraction or a sign is none.
std::optional<ParameterValue> value_of(const Json& json, Parameter::Type type) {
  switch (type) {
    case Parameter::Type::kBoolean:
      return json.boolean();
    case Parameter::Type::kNumber:
      return json.whole();
    case Parameter::Type::kChoice:
    case Parameter::Type::kPageServer:
      return json.text() == nullptr ? std::nullopt : std::optional(*json.text());
    case Parameter::Type::kAddresses:
      return texts_of(json);
  }
  __builtin_unreachable();
}

/// The error for a value that the row does not permit, in QEMU's words where QEMU has this error.
base::Err<base::Error> not_permitted(const Parameter& parameter, std::string_view name,
                                     const Json& given, const std::string& remedy) {
  switch (parameter.place.type) {
    case Parameter::Type::kBoolean:
    case Parameter::Type::kNumber:
      return refuse(fmt::format("Parameter '{}' expects {}, not {}", name, permitted(parameter),
                                given.dump()));
    case Parameter::Type::kChoice:
      return refuse(fmt::format("Parameter '{}' does not accept value '{}'; {}", name,
                                *given.text(), remedy));
    case Parameter::Type::kPageServer:
    case Parameter::Type::kAddresses:
      return refuse(fmt::format("Parameter '{}': {}", name, remedy));
  }
  __builtin_unreachable();
}

/// The parameters of the source that may change while a guest leaves.
std::string changeable() {
  std::vector<std::string> names;
  for (const Parameter& one : runtime::parameters()) {
    if (one.change == Parameter::Change::kAnyTime && one.end == Parameter::End::kSource) {
      names.push_back(fmt::format("'{}'", one.name));
    }
  }
  return fmt::format("{}", fmt::join(names, " and "));
}

/// Whether the parameter may be set to another value now.
base::Outcome may_change(const Parameter& parameter, std::string_view name, InProgress now) {
  switch (parameter.change) {
    case Parameter::Change::kAnyTime:
    case Parameter::Change::kForTheNext:
      return base::Done{};
    case Parameter::Change::kBeforeIncoming:
      if (now.arriving) {
        return refuse(fmt::format(
            "Parameter '{}' cannot change once this machine waits for a guest; set it before "
            "'migrate-incoming' (start the machine with --incoming defer)",
            name));
      }
      break;
    case Parameter::Change::kBeforeMigrate:
      break;
  }
  if (now.leaving) {
    return refuse(
        fmt::format("Parameter '{}' cannot change while a migration runs; set it before 'migrate' "
                    "({} can)",
                    name, changeable()));
  }
  return base::Done{};
}

/// Managers raise some limits while they wait for a move, and QEMU accepts that. Here the move in
/// progress keeps the value that it began with, so the log says when the new one counts.
void tell_if_later(const Parameter& parameter, const ParameterValue& value, InProgress now) {
  const bool of_next = parameter.change == Parameter::Change::kForTheNext && now.leaving;
  const bool of_both = parameter.change == Parameter::Change::kBeforeMigrate &&
                       parameter.end == Parameter::End::kBoth && now.arriving;
  if (of_next || of_both) {
    base::log(base::LogLevel::kInfo, "migration.parameter name={} value={} so={}", parameter.name,
              to_string(parameter, value), "it counts from the next migration on");
  }
}

base::Outcome set_one(MigrationSettings& settings, const Json::Member& member, InProgress now) {
  const Parameter* parameter = runtime::find_parameter(member.name);
  if (parameter == nullptr) {
    return set_qemus(settings, member);
  }
  const auto value = value_of(member.value, parameter->place.type);
  if (!value) {
    return parameter->place.type == Parameter::Type::kNumber && member.value.number()
               ? not_permitted(*parameter, member.name, member.value, {})
               : wrong_type(member.name, type_name(parameter->place.type));
  }
  const ParameterValue before = parameter->place.get(settings.options);
  if (const auto set = set_parameter(settings.options, *parameter, *value); !set.ok()) {
    return not_permitted(*parameter, member.name, member.value, set.error().detail);
  }
  // Managers write the same values again and again: only a change is refused.
  if (parameter->place.get(settings.options) == before) {
    return base::Done{};
  }
  TRY(may_change(*parameter, member.name, now));
  tell_if_later(*parameter, *value, now);
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
  CommandArguments arguments(&entry);
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
      // A switch that was set together with the capability must not outlive it.
      settings.options.switch_policy = SwitchPolicy::kManual;
    }
    settings.postcopy_ram = change.state;
  } else if (change.name == "postcopy-preempt") {
    settings.postcopy_preempt = change.state;
  } else if (change.name == "multifd") {
    settings.multifd = change.state;
  } else if (change.name == "pause-before-switchover") {
    settings.options.pause_before_switchover = change.state;
  } else if (change.name != "return-path") {
    // Managers turn off every capability that they do not use; these are always off.
    return is_always_off(change.name) && !change.state
               ? base::Outcome(base::Done{})
               : base::Outcome(not_accepted("capability", change.name));
  } else if (!change.state) {
    // Managers turn this one off too, but it stays on. A refusal would stop them without need;
    // query-migrate-capabilities still says that it is on.
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
  add("multifd", settings.multifd);
  add("pause-before-switchover", settings.options.pause_before_switchover);
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

Json json_of(const ParameterValue& value) {
  if (const auto* boolean = std::get_if<bool>(&value)) {
    return *boolean;
  }
  if (const auto* number = std::get_if<std::uint64_t>(&value)) {
    return *number;
  }
  if (const auto* text = std::get_if<std::string>(&value)) {
    return *text;
  }
  Json list = Json::array();
  for (const std::string& text : std::get<std::vector<std::string>>(value)) {
    list.add(text);
  }
  return list;
}

Json parameters_json(const MigrationSettings& settings) {
  Json all = Json::object();
  for (const Parameter& one : runtime::parameters()) {
    const Json value = json_of(one.place.get(settings.options));
    all.set(std::string(one.name), value);
    if (!one.also.empty()) {
      all.set(std::string(one.also), value);
    }
  }
  for (const QemuParameter& one : qemu_parameters()) {
    if (one.newest && one.kind == QemuParameter::Kind::kInert) {
      all.set(std::string(one.name), usual_value(one));
    }
  }
  for (const Json::Member& one : settings.inert) {
    all.set(one.name, one.value);
  }
  return all;
}

base::Expected<MigrationSettings> with_parameters(MigrationSettings settings, const Json* object,
                                                  InProgress now) {
  if (object != nullptr) {
    for (const auto& member : *object->members()) {
      TRY(set_one(settings, member, now));
    }
  }
  return settings;
}

base::Outcome check_postcopy_is_meant(const MigrationSettings& settings) {
  if (settings.postcopy_ram || settings.options.switch_policy != SwitchPolicy::kManual) {
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
