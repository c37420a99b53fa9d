// A log of the debug level, fed to the source's brain that ships: does it ask for what it asked for
// then? Reads the log from standard input. Exit code: 0, the same; 1, it differs; 2, no such log.
#include <charconv>
#include <cstdio>
#include <deque>
#include <iostream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "runtime/core/source_protocol.h"

namespace {

using towline::runtime::LaneName;
using towline::runtime::MigrationOptions;
using towline::runtime::SourceEffect;
using towline::runtime::SourceInput;
using towline::runtime::SourceProtocol;
using towline::runtime::SourceTask;
using towline::runtime::Uri;
namespace base = towline::base;

using Fields = std::map<std::string, std::string>;

/// A value of the log as base::log_value() wrote it, from `at` on.
std::string take_value(const std::string& line, std::size_t& at) {
  std::string value;
  if (at >= line.size() || line[at] != '"') {
    const std::size_t end = std::min(line.find(' ', at), line.size());
    value = line.substr(at, end - at);
    at = end;
    return value;
  }
  for (++at; at < line.size() && line[at] != '"'; ++at) {
    if (line[at] == '\\' && at + 1 < line.size()) {
      ++at;
      value += line[at] == 'n' ? '\n' : line[at];
    } else {
      value += line[at];
    }
  }
  ++at;
  return value;
}

Fields fields_of(const std::string& line, std::size_t at) {
  Fields fields;
  while (at < line.size()) {
    const std::size_t equals = line.find('=', at);
    if (equals == std::string::npos) {
      break;
    }
    const std::string name = line.substr(at, equals - at);
    at = equals + 1;
    fields[name] = take_value(line, at);
    ++at;
  }
  return fields;
}

template <typename Number = std::uint64_t>
Number number(const std::string& text) {
  const bool hex = text.starts_with("0x");
  Number value{};
  const char* const end = text.data() + text.size();
  std::from_chars(text.data() + (hex ? 2 : 0), end, value, hex ? 16 : 10);
  return value;
}

/// The kind of this name.
template <typename Kind>
Kind kind_named(const std::string& name) {
  for (int i = 0; i < 64; ++i) {
    const auto kind = static_cast<Kind>(i);
    if (to_string(kind) == name) {
      return kind;
    }
  }
  std::cerr << "replay: no kind is called '" << name << "'\n";
  std::exit(2);
}

Uri uri(const std::string& text) {
  const auto parsed = Uri::parse(text);
  if (!parsed.ok()) {
    std::cerr << "replay: '" << text << "' is no address\n";
    std::exit(2);
  }
  return parsed.value();
}

SourceProtocol brain_of(const Fields& told) {
  MigrationOptions options;
  options.switch_policy =
      static_cast<towline::runtime::SwitchPolicy>(number<int>(told.at("policy")));
  options.passes = number<std::uint32_t>(told.at("passes"));
  options.bulk_lanes = number<std::uint32_t>(told.at("lanes"));
  options.switch_page_budget = number(told.at("budget"));
  options.switch_wait = std::chrono::milliseconds(number<std::int64_t>(told.at("wait_ms")));
  options.handshake_timeout =
      std::chrono::milliseconds(number<std::int64_t>(told.at("handshake_ms")));
  options.auto_recover = told.at("recovers") == "true";
  options.reconnect_deadline = std::chrono::seconds(number<std::int64_t>(told.at("deadline_s")));
  std::istringstream alternates(told.at("alternates"));
  for (std::string one; alternates >> one;) {
    options.alternates.push_back(uri(one));
  }
  return {uri(told.at("target")), options, base::PageCount{number(told.at("pages"))}};
}

SourceInput input_of(const Fields& told) {
  static std::set<std::string> steps;  // Names of operations live as long as the program.
  SourceInput input{.kind = kind_named<SourceInput::Kind>(told.at("kind"))};
  input.at = base::Instant(base::Duration(number<std::int64_t>(told.at("at_ns"))));
  if (told.at("task") != "none") {
    input.task = kind_named<SourceTask::Kind>(told.at("task"));
  }
  if (told.at("failed") == "true") {
    input.error = base::Error{static_cast<base::ErrorKind>(number<int>(told.at("error"))),
                              number<int>(told.at("errno")),
                              steps.insert(told.at("step")).first->c_str(), told.at("detail")};
  }
  input.lane = towline::runtime::lane_of_code(number(told.at("lane")));
  if (told.at("address") != "none") {
    input.address = uri(told.at("address"));
  }
  input.text = told.at("text");
  input.number = number(told.at("number"));
  input.features = number(told.at("features"));
  input.epoch = number(told.at("epoch"));
  input.attempt = number<std::uint32_t>(told.at("attempt"));
  input.flag = told.at("flag") == "true";
  return input;
}

std::string line_of(const SourceEffect& effect) {
  return fmt::format(
      "effect {} {} {} {} {} {:#x} {} {} {}", to_string(effect.kind), to_string(effect.rule.from),
      to_string(effect.rule.on), to_string(effect.rule.to), to_string(effect.status),
      towline::runtime::lane_code(effect.lane), effect.attempt, effect.flag, effect.text);
}

std::string line_of(const SourceTask& task) {
  return fmt::format("task {} {} {} {} {:#x} {} {} {}", to_string(task.kind), task.at.to_string(),
                     task.epoch, task.pass, towline::runtime::lane_code(task.lane), task.attempt,
                     task.flag, task.patience.has_value() ? task.patience->count() : -1);
}

std::string line_of_effect(Fields told) {
  return fmt::format("effect {} {} {} {} {} {} {} {} {}", told["kind"], told["from"], told["on"],
                     told["to"], told["status"], told["lane"], told["attempt"], told["flag"],
                     told["text"]);
}

std::string line_of_task(Fields told) {
  return fmt::format("task {} {} {} {} {} {} {} {}", told["kind"], told["at"], told["epoch"],
                     told["pass"], told["lane"], told["attempt"], told["flag"],
                     told["patience_ms"]);
}

/// What one brain asked for, then and now.
class Replay {
 public:
  explicit Replay(const Fields& told) : brain_(brain_of(told)) {}

  void feed(const SourceInput& input) {
    const bool had_task = brain_.task().has_value() && input.kind != SourceInput::Kind::kDone;
    [[maybe_unused]] const auto taken = brain_.on(input);
    for (const SourceEffect& effect : brain_.take_effects()) {
      due_.push_back(line_of(effect));
    }
    if (!had_task && brain_.task().has_value()) {
      due_.push_back(line_of(*brain_.task()));
    }
  }

  /// False: then it asked for something else.
  bool compare(const std::string& then) {
    const std::string now = due_.empty() ? "nothing" : due_.front();
    if (!due_.empty()) {
      due_.pop_front();
    }
    if (now != then) {
      std::cout << "it differs\n  then: " << then << "\n  now:  " << now << '\n';
    }
    return now == then;
  }

  [[nodiscard]] bool owes() const { return !due_.empty(); }

  [[nodiscard]] const std::string& owed() const { return due_.front(); }

 private:
  SourceProtocol brain_;
  std::deque<std::string> due_;
};

/// Where the fields of event `name` begin; npos: it is another line.
std::size_t fields_at(const std::string& line, const std::string& name) {
  const std::size_t found = line.find(" " + name + " ");
  return found == std::string::npos ? found : found + name.size() + 2;
}

}  // namespace

int main() {
  std::optional<Replay> replay;
  std::size_t inputs = 0;
  std::size_t outputs = 0;
  for (std::string line; std::getline(std::cin, line);) {
    if (const auto at = fields_at(line, "source.brain"); at != std::string::npos) {
      replay.emplace(fields_of(line, at));
    } else if (const auto fed = fields_at(line, "source.input");
               fed != std::string::npos && replay) {
      if (replay->owes()) {
        std::cout << "it differs\n  then: nothing more\n  now:  " << replay->owed() << '\n';
        return 1;
      }
      ++inputs;
      replay->feed(input_of(fields_of(line, fed)));
    } else if (const auto asked = fields_at(line, "source.effect");
               asked != std::string::npos && replay) {
      ++outputs;
      if (!replay->compare(line_of_effect(fields_of(line, asked)))) {
        return 1;
      }
    } else if (const auto given = fields_at(line, "source.task");
               given != std::string::npos && replay) {
      ++outputs;
      if (!replay->compare(line_of_task(fields_of(line, given)))) {
        return 1;
      }
    }
  }
  if (!replay.has_value() || inputs == 0) {
    std::cerr << "replay: no line 'source.brain' and no input; was it a log of the debug level?\n";
    return 2;
  }
  std::cout << inputs << " inputs, " << outputs << " effects and tasks: the same\n";
  return 0;
}
