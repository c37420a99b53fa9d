#include "vmm/monitor/human_commands.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/parameters.h"
#include "vmm/monitor/human_info.h"
#include "vmm/monitor/human_words.h"
#include "vmm/monitor/qemu_parameters.h"

// A namespace of its own: commands.cc has functions of the same names, for programs.
namespace towline::monitor::human {
namespace {

using Answer = base::Expected<std::string>;

/// A line, its command and its options taken off.
struct Call {
  CommandContext& context;
  std::string options;             ///< Their letters.
  std::vector<std::string> words;  ///< What follows them.

  [[nodiscard]] bool has(char option) const { return options.find(option) != std::string::npos; }
};

/// One command of the human monitor. `name` may be two words: "info migrate".
struct HumanCommand {
  std::string_view name;
  std::string_view options;    ///< Letters: "dr" for -d and -r.
  std::string_view arguments;  ///< As they are told: "uri", "parameter value".
  std::size_t least = 0;       ///< Words.
  std::size_t most = 0;
  std::string_view help;
  Answer (*run)(const Call& call);
};

std::span<const HumanCommand> human_commands();

base::Expected<Json> ask(const Call& call, std::string_view name, const Json& arguments) {
  CommandArguments taken(&arguments);
  return find_command(name)->run(call.context, taken);
}

/// For a command whose QMP answer says nothing but that it was done.
Answer order(const Call& call, std::string_view name, const Json& arguments = Json::object()) {
  TRY(ask(call, name, arguments));
  return std::string();
}

Answer help(const Call& call) {
  std::string text;
  for (const HumanCommand& one : human_commands()) {
    const bool wanted = call.words.empty() || one.name == call.words.front() ||
                        one.name.starts_with(call.words.front() + " ");
    if (wanted) {
      text += usage(one.name, one.options, one.arguments) + fmt::format(" -- {}\r\n", one.help);
    }
  }
  if (text.empty()) {
    return refuse(fmt::format("unknown command: '{}'; 'help' lists all", call.words.front()));
  }
  return text;
}

Answer show_status(const Call& call) {
  return info_status(TRY(ask(call, "query-status", Json::object())));
}

Answer show_migrate(const Call& call) {
  return info_migrate(TRY(ask(call, "query-migrate", Json::object())), call.has('a'));
}

Answer show_capabilities(const Call& call) {
  return info_capabilities(TRY(ask(call, "query-migrate-capabilities", Json::object())));
}

Answer show_parameters(const Call& call) {
  return info_parameters(TRY(ask(call, "query-migrate-parameters", Json::object())));
}

Answer show_name(const Call& call) {
  return text_of(TRY(ask(call, "query-name", Json::object())), "name") + "\r\n";
}

Answer show_kvm(const Call& /*call*/) {
  return std::string("kvm support: enabled\r\n");
}

Answer show_version(const Call& /*call*/) {
  return text_of(version_json(), "package") + ", QMP as in QEMU 10.2.0\r\n";
}

Answer migrate(const Call& call) {
  Json arguments = Json::object({{"uri", call.words.front()}});
  if (call.has('r')) {
    arguments.set("resume", true);
  }
  return order(call, "migrate", arguments);
}

Answer migrate_continue(const Call& call) {
  return order(call, "migrate-continue", Json::object({{"state", call.words.front()}}));
}

Answer migrate_incoming(const Call& call) {
  return order(call, "migrate-incoming", Json::object({{"uri", call.words.front()}}));
}

Answer migrate_recover(const Call& call) {
  return order(call, "migrate-recover", Json::object({{"uri", call.words.front()}}));
}

Answer set_capability(const Call& call) {
  const auto state = boolean_word(call.words[1]);
  if (!state) {
    return refuse(fmt::format("Parameter 'state' expects 'on' or 'off', not '{}'", call.words[1]));
  }
  return order(
      call, "migrate-set-capabilities",
      Json::object({{"capabilities", Json::array().add(Json::object(
                                         {{"capability", call.words[0]}, {"state", *state}}))}}));
}

Answer set_parameter(const Call& call) {
  const std::string& name = call.words[0];
  const Json value = TRY(parameter_word(name, call.words[1]));
  return order(call, "migrate-set-parameters", Json::object({{name, value}}));
}

// clang-format off
constexpr std::array kHumanCommands{
    HumanCommand{"help", "", "[command]", 0, 2, "show what there is", help},
    HumanCommand{"info status", "", "", 0, 0, "whether the guest runs", show_status},
    HumanCommand{"info migrate", "a", "", 0, 0, "the migration; -a: all that is known", show_migrate},
    HumanCommand{"info migrate_capabilities", "", "", 0, 0, "the capabilities", show_capabilities},
    HumanCommand{"info migrate_parameters", "", "", 0, 0, "the parameters", show_parameters},
    HumanCommand{"info name", "", "", 0, 0, "the machine's name", show_name},
    HumanCommand{"info kvm", "", "", 0, 0, "KVM", show_kvm},
    HumanCommand{"info version", "", "", 0, 0, "the version", show_version},
    HumanCommand{"migrate", "dr", "uri", 1, 1,
                 "move the guest to uri; -d: do not wait for its end; -r: go on with a paused move", migrate},
    HumanCommand{"migrate_cancel", "", "", 0, 0, "cancel the move", [](const Call& call) { return order(call, "migrate_cancel"); }},
    HumanCommand{"migrate_continue", "", "state", 1, 1, "go on from a state in which the move waits: pre-switchover", migrate_continue},
    HumanCommand{"migrate_incoming", "", "uri", 1, 1, "wait for a guest at uri", migrate_incoming},
    HumanCommand{"migrate_pause", "", "", 0, 0, "pause a move in post-copy", [](const Call& call) { return order(call, "migrate-pause"); }},
    HumanCommand{"migrate_recover", "", "uri", 1, 1, "wait for a paused move's source at uri", migrate_recover},
    HumanCommand{"migrate_set_capability", "", "capability on|off", 2, 2, "set a capability", set_capability},
    HumanCommand{"migrate_set_parameter", "", "parameter value", 2, 2, "set a parameter", set_parameter},
    HumanCommand{"migrate_start_postcopy", "", "", 0, 0, "switch to post-copy", [](const Call& call) { return order(call, "migrate-start-postcopy"); }},
    HumanCommand{"stop", "", "", 0, 0, "stop the guest", [](const Call& call) { return order(call, "stop"); }},
    HumanCommand{"cont", "", "", 0, 0, "let the guest run", [](const Call& call) { return order(call, "cont"); }},
    HumanCommand{"system_reset", "", "", 0, 0, "reset the guest", [](const Call& call) { return order(call, "system_reset"); }},
    HumanCommand{"quit", "", "", 0, 0, "end the process", [](const Call& call) { return order(call, "quit"); }},
};

// clang-format on

std::span<const HumanCommand> human_commands() {
  return kHumanCommands;
}

/// QEMU's short forms.
std::string_view long_name(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kShort{
      {{"c", "cont"},
       {"q", "quit"},
       {"s", "stop"},
       {"?", "help"},
       {"system-reset", "system_reset"}}};
  const auto* const found = std::find_if(kShort.begin(), kShort.end(),
                                         [&](const auto& one) { return one.first == name; });
  return found == kShort.end() ? name : found->second;
}

/// The command, and how many words are its name.
std::pair<const HumanCommand*, std::size_t> find_human_command(
    const std::vector<std::string>& words) {
  const std::string one(long_name(words[0]));
  const std::string two = words.size() > 1 ? one + " " + words[1] : one;
  for (const HumanCommand& command : kHumanCommands) {
    if (command.name == two && two != one) {
      return {&command, 2};
    }
    if (command.name == one) {
      return {&command, 1};
    }
  }
  return {nullptr, 0};
}

base::Outcome take_options(const HumanCommand& command, Call& call) {
  while (!call.words.empty() && call.words.front().size() > 1 && call.words.front()[0] == '-') {
    const std::string letters = call.words.front().substr(1);
    for (const char letter : letters) {
      if (command.options.find(letter) == std::string_view::npos) {
        return refuse(fmt::format("{}: unknown option '-{}'; {}", command.name, letter,
                                  usage(command.name, command.options, command.arguments)));
      }
    }
    call.options += letters;
    call.words.erase(call.words.begin());
  }
  if (call.words.size() < command.least || call.words.size() > command.most) {
    return refuse(fmt::format("{}: {} words follow; use {}", command.name, call.words.size(),
                              usage(command.name, command.options, command.arguments)));
  }
  return base::Done{};
}

base::Expected<HumanAnswer> carry_out(CommandContext& context, std::string_view line) {
  std::vector<std::string> words = TRY(split_words(line));
  if (words.empty()) {
    return HumanAnswer{};
  }
  if (words.size() == 1 && words[0] == "info") {
    words.insert(words.begin(), "help");
  }
  const auto [command, taken] = find_human_command(words);
  if (command == nullptr) {
    return refuse(fmt::format("unknown command: '{}'; 'help' lists all", line));
  }
  words.erase(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(taken));
  Call call{context, {}, std::move(words)};
  TRY(take_options(*command, call));
  const bool waits = command->run == migrate && !call.has('d');
  return HumanAnswer{TRY(command->run(call)), waits};
}

HumanAnswer answer_to(CommandContext& context, std::string_view line) {
  auto answer = carry_out(context, line);
  if (answer.ok()) {
    return std::move(answer).value();
  }
  return {fmt::format("Error: {}\r\n", base::to_string(answer.error())), false};
}

}  // namespace
}  // namespace towline::monitor::human

namespace towline::monitor {

HumanAnswer run_human_command(CommandContext& context, std::string_view line) {
  return human::answer_to(context, line);
}

}  // namespace towline::monitor
