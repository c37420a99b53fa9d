#include "runtime/parameters.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <type_traits>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace towline::runtime {
namespace {

using Options = MigrationOptions;
using Place = Parameter::Place;
using Type = Parameter::Type;
using Unit = Parameter::Unit;
using Change = Parameter::Change;
using End = Parameter::End;
using On = Parameter::On;

constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();
// Where only an overflow has to be kept away. Guess.
constexpr std::uint64_t kLongestSeconds = 1U << 30U;
constexpr std::uint64_t kMostReserved = 1ULL << 50U;

base::Err<base::Error> refuse_value(std::string detail) {
  return base::fail(base::ErrorKind::kRefused, "parameter", std::move(detail));
}

// ---- where values go: one place for each kind of member --------------------------------------

template <auto kMember>
ParameterValue get_boolean(const Options& options) {
  return options.*kMember;
}

template <auto kMember>
base::Outcome put_boolean(Options& options, const ParameterValue& value) {
  options.*kMember = std::get<bool>(value);
  return base::Done{};
}

template <auto kMember>
constexpr Place kBoolean{Type::kBoolean, get_boolean<kMember>, put_boolean<kMember>};

template <auto kMember>
ParameterValue get_number(const Options& options) {
  if constexpr (requires { (options.*kMember).count(); }) {
    return static_cast<std::uint64_t>((options.*kMember).count());
  } else {
    return static_cast<std::uint64_t>(options.*kMember);
  }
}

template <auto kMember>
base::Outcome put_number(Options& options, const ParameterValue& value) {
  using Field = std::remove_reference_t<decltype(options.*kMember)>;
  options.*kMember = static_cast<Field>(std::get<std::uint64_t>(value));
  return base::Done{};
}

template <auto kMember>
constexpr Place kNumber{Type::kNumber, get_number<kMember>, put_number<kMember>};

template <auto kMember, const auto& kNames>
ParameterValue get_choice(const Options& options) {
  return std::string(kNames.at(static_cast<std::size_t>(options.*kMember)));
}

template <auto kMember, const auto& kNames>
base::Outcome put_choice(Options& options, const ParameterValue& value) {
  using Field = std::remove_reference_t<decltype(options.*kMember)>;
  const auto* const found = std::find(kNames.begin(), kNames.end(), std::get<std::string>(value));
  options.*kMember = static_cast<Field>(found - kNames.begin());
  return base::Done{};
}

template <auto kMember, const auto& kNames>
constexpr Place kChoice{Type::kChoice, get_choice<kMember, kNames>, put_choice<kMember, kNames>,
                        kNames};

ParameterValue get_downtime(const Options& options) {
  return static_cast<std::uint64_t>(options.downtime_limit.count());
}

base::Outcome put_downtime(Options& options, const ParameterValue& value) {
  options.limit_downtime(std::chrono::milliseconds(std::get<std::uint64_t>(value)));
  return base::Done{};
}

ParameterValue get_alternates(const Options& options) {
  std::vector<std::string> texts;
  texts.reserve(options.alternates.size());
  for (const Uri& address : options.alternates) {
    texts.push_back(address.to_string());
  }
  return texts;
}

base::Outcome put_alternates(Options& options, const ParameterValue& value) {
  std::vector<Uri> addresses;
  for (const std::string& text : std::get<std::vector<std::string>>(value)) {
    addresses.push_back(TRY(Uri::parse(text)));
  }
  options.alternates = std::move(addresses);
  return base::Done{};
}

ParameterValue get_page_server(const Options& options) {
  return options.page_server.to_string();
}

base::Outcome put_page_server(Options& options, const ParameterValue& value) {
  auto choice = TRY(PageServerChoice::parse(std::get<std::string>(value)));
  choice.command = std::move(options.page_server.command);  // Not the user's to choose.
  options.page_server = std::move(choice);
  return base::Done{};
}

// ---- the table
// -----------------------------------------------------------------------------------

constexpr std::array kParameters{
    Parameter{.name = "max-bandwidth",
              .place = kNumber<&Options::max_bandwidth>,
              .unit = Unit::kBytesPerSecond,
              .most = kNoLimit,
              .in_mebibytes = true,
              .change = Change::kAnyTime,
              .end = End::kSource,
              .on = On::kMigrate,
              .option = "--max-bandwidth",
              .for_migrate = "0",
              .help = "Limit of all lanes together before the switch; 0: no limit."},
    Parameter{.name = "downtime-limit",
              .place = {Type::kNumber, get_downtime, put_downtime},
              .unit = Unit::kMilliseconds,
              .most = 2'000'000,  // As in QEMU.
              .change = Change::kForTheNext,
              .end = End::kSource,
              .help = "The switch is short whatever this says; with 0 it waits up to 200 ms for a "
                      "moment without a dirty page."},
    Parameter{.name = "max-postcopy-bandwidth",
              .place = kNumber<&Options::max_postcopy_bandwidth>,
              .unit = Unit::kBytesPerSecond,
              .most = kNoLimit,
              .change = Change::kAnyTime,
              .end = End::kSource,
              .on = On::kMigrate,
              .option = "--max-postcopy-bandwidth",
              .help = "Limit of the bulk lanes after the switch; 0: no limit. Demanded pages are "
                      "never limited."},
    Parameter{.name = "x-towline-switch",
              .place = kChoice<&Options::switch_policy, kSwitchPolicyNames>,
              .change = Change::kBeforeMigrate,
              .end = End::kSource,
              .on = On::kMigrate,
              .option = "--switch",
              .for_migrate = "after-pass",
              .help = "When the vCPUs go over: without any pass, after the passes, or when "
                      "migrate-start-postcopy says so."},
    Parameter{.name = "x-towline-passes",
              .place = kNumber<&Options::passes>,
              .most = 16,
              .change = Change::kBeforeMigrate,
              .end = End::kSource,
              .on = On::kMigrate,
              .option = "--passes",
              .help = "Passes over memory before the switch."},
    Parameter{.name = "x-towline-bulk-lanes",
              .also = "multifd-channels",
              .place = kNumber<&Options::bulk_lanes>,
              .least = 1,
              .most = 16,
              .change = Change::kBeforeMigrate,
              .end = End::kSource,
              .on = On::kMigrate,
              .option = "--bulk-lanes",
              .help = "Connections for the bulk of the pages; each has a thread at both ends."},
    Parameter{.name = "x-towline-auto-recover",
              .place = kBoolean<&Options::auto_recover>,
              .change = Change::kBeforeMigrate,
              .end = End::kSource,
              .help = "The source reconnects by itself when the link is lost in post-copy."},
    Parameter{.name = "x-towline-heartbeat-ms",
              .place = kNumber<&Options::heartbeat>,
              .unit = Unit::kMilliseconds,
              .least = 10,
              .most = 60'000,
              .change = Change::kBeforeMigrate,
              .end = End::kBoth,
              .help = "Time between two signs of life in post-copy, and between two looks for room "
                      "at the target."},
    Parameter{.name = "x-towline-patience-ms",
              .place = kNumber<&Options::patience>,
              .unit = Unit::kMilliseconds,
              .least = 20,
              .most = 600'000,
              .change = Change::kBeforeMigrate,
              .end = End::kBoth,
              .help = "The link is dead when the other kernel acknowledges nothing for so long."},
    Parameter{.name = "x-towline-frozen-patience-ms",
              .place = kNumber<&Options::frozen_patience>,
              .unit = Unit::kMilliseconds,
              .least = 100,
              .most = 3'600'000,
              .change = Change::kBeforeMigrate,
              .end = End::kBoth,
              .help =
                  "The peer is frozen when its kernel acknowledges and its process says nothing "
                  "for so long."},
    Parameter{.name = "x-towline-paused-after-ms",
              .place = kNumber<&Options::paused_after>,
              .unit = Unit::kMilliseconds,
              .most = 3'600'000,
              .change = Change::kBeforeMigrate,
              .end = End::kBoth,
              .help = "A lost link shows as postcopy-paused after so long, if it can still heal."},
    Parameter{.name = "x-towline-reconnect-deadline-s",
              .place = kNumber<&Options::reconnect_deadline>,
              .unit = Unit::kSeconds,
              .most = kLongestSeconds,
              .change = Change::kBeforeMigrate,
              .end = End::kSource,
              .help = "The source stops reconnecting after so long; 0: never."},
    Parameter{.name = "x-towline-alternates",
              .place = {Type::kAddresses, get_alternates, put_alternates},
              .change = Change::kBeforeMigrate,
              .end = End::kSource,
              .on = On::kMigrate,
              .option = "--alternate",
              .help =
                  "Further addresses of the same target, tried in turn when the link is lost in "
                  "post-copy."},
    Parameter{.name = "x-towline-memory-reserve",
              .place = kNumber<&Options::memory_reserve>,
              .unit = Unit::kBytes,
              .most = kMostReserved,
              .change = Change::kBeforeIncoming,
              .end = End::kTarget,
              .help =
                  "The move waits while the target's control group has less memory left, because "
                  "the kernel kills at the limit."},
    Parameter{.name = "x-towline-source-loss",
              .place = kChoice<&Options::source_loss, kSourceLossNames>,
              .change = Change::kAnyTime,
              .end = End::kTarget,
              .on = On::kRunAndMigrate,
              .option = "--source-loss",
              .help = "What the target does when its source stays away in post-copy: wait, poison "
                      "what is missing, or give up the guest."},
    Parameter{.name = "x-towline-source-loss-deadline-s",
              .place = kNumber<&Options::source_loss_deadline>,
              .unit = Unit::kSeconds,
              .least = 1,
              .most = kLongestSeconds,
              .change = Change::kAnyTime,
              .end = End::kTarget,
              .on = On::kRunAndMigrate,
              .option = "--source-loss-deadline",
              .help = "How long the source may stay away before that is done."},
    Parameter{.name = "x-towline-page-server",
              .place = {Type::kPageServer, get_page_server, put_page_server},
              .change = Change::kBeforeMigrate,
              .end = End::kSource,
              .on = On::kRun,
              .option = "--page-server",
              .help =
                  "Who holds the guest's memory when the source's process dies in post-copy: own "
                  "(a process that is started for each migration), scope (the same, in a scope "
                  "of systemd), unix:PATH (a page server that listens there), or none."},
};

std::string_view suffix(Unit unit) {
  switch (unit) {
    case Unit::kNone:
      return "";
    case Unit::kBytes:
      return " bytes";
    case Unit::kBytesPerSecond:
      return " bytes/second";
    case Unit::kMilliseconds:
      return " ms";
    case Unit::kSeconds:
      return " s";
  }
  __builtin_unreachable();
}

/// "wait, poison or give-up"
std::string listed(std::span<const std::string_view> choices) {
  return fmt::format("{} or {}", fmt::join(choices.first(choices.size() - 1), ", "),
                     choices.back());
}

/// Which alternative of ParameterValue holds it.
std::size_t index_of(Type type) {
  switch (type) {
    case Type::kBoolean:
      return 0;
    case Type::kNumber:
      return 1;
    case Type::kChoice:
    case Type::kPageServer:
      return 2;
    case Type::kAddresses:
      return 3;
  }
  __builtin_unreachable();
}

bool permits(const Parameter& parameter, const ParameterValue& value) {
  if (value.index() != index_of(parameter.place.type)) {
    return false;
  }
  if (parameter.place.type == Type::kNumber) {
    const auto number = std::get<std::uint64_t>(value);
    return number >= parameter.least && number <= parameter.most;
  }
  const auto& choices = parameter.place.choices;
  return parameter.place.type != Type::kChoice ||
         std::find(choices.begin(), choices.end(), std::get<std::string>(value)) != choices.end();
}

/// "128 MiB", and the number as it is when that says no more.
std::string binary_size(std::uint64_t bytes) {
  constexpr std::array kUnits{" bytes", " KiB", " MiB", " GiB", " TiB", " PiB"};
  std::size_t unit = 0;
  while (bytes != 0 && bytes % 1024 == 0 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{}{}", bytes, kUnits.at(unit));
}

}  // namespace

std::span<const Parameter> parameters() {
  return kParameters;
}

const Parameter* find_parameter(std::string_view name) {
  const auto* const found =
      std::find_if(kParameters.begin(), kParameters.end(), [&](const Parameter& one) {
        return one.name == name || (!name.empty() && one.also == name);
      });
  return found == kParameters.end() ? nullptr : found;
}

std::string permitted(const Parameter& parameter) {
  switch (parameter.place.type) {
    case Type::kBoolean:
      return "true or false";
    case Type::kNumber:
      return fmt::format("an integer from {} to {}{}", parameter.least, parameter.most,
                         suffix(parameter.unit));
    case Type::kChoice:
      return listed(parameter.place.choices);
    case Type::kPageServer:
      return "own, scope, unix:PATH or none";
    case Type::kAddresses:
      return "a list of tcp:HOST:PORT, tcp:[IPV6-ADDRESS]:PORT and unix:PATH";
  }
  __builtin_unreachable();
}

ParameterValue default_of(const Parameter& parameter) {
  return parameter.place.get(MigrationOptions{});
}

base::Outcome set_parameter(MigrationOptions& options, const Parameter& parameter,
                            const ParameterValue& value) {
  return permits(parameter, value) ? parameter.place.put(options, value)
                                   : refuse_value("use " + permitted(parameter));
}

std::string to_string(const Parameter& parameter, const ParameterValue& value) {
  if (const auto* boolean = std::get_if<bool>(&value)) {
    return *boolean ? "true" : "false";
  }
  if (const auto* text = std::get_if<std::string>(&value)) {
    return *text;
  }
  if (const auto* list = std::get_if<std::vector<std::string>>(&value)) {
    return fmt::format("[{}]", fmt::join(*list, ", "));
  }
  const auto number = std::get<std::uint64_t>(value);
  switch (parameter.unit) {
    case Unit::kBytes:
      return binary_size(number);
    case Unit::kBytesPerSecond:
      return number == 0 ? "0" : binary_size(number) + "/s";
    case Unit::kNone:
    case Unit::kMilliseconds:
    case Unit::kSeconds:
      return fmt::format("{}{}", number, suffix(parameter.unit));
  }
  __builtin_unreachable();
}

std::string_view unit_of(const Parameter& parameter) {
  return suffix(parameter.unit);
}

std::string dump(const MigrationOptions& options) {
  std::vector<std::string> changed;
  for (const Parameter& one : kParameters) {
    const ParameterValue value = one.place.get(options);
    if (value != default_of(one)) {
      changed.push_back(fmt::format("{}={}", one.name, to_string(one, value)));
    }
  }
  return fmt::format("{}", fmt::join(changed, " "));
}

std::string_view to_string(Parameter::Change change) {
  switch (change) {
    case Change::kAnyTime:
      return "at any time";
    case Change::kForTheNext:
      return "at any time; counts from the next migration on";
    case Change::kBeforeMigrate:
      return "before `migrate`";
    case Change::kBeforeIncoming:
      return "before `migrate-incoming`";
  }
  __builtin_unreachable();
}

std::string_view to_string(Parameter::End end) {
  switch (end) {
    case End::kSource:
      return "source";
    case End::kTarget:
      return "target";
    case End::kBoth:
      return "both";
  }
  __builtin_unreachable();
}

}  // namespace towline::runtime
