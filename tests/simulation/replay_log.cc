#include "tests/simulation/replay_log.h"

#include <algorithm>
#include <set>

namespace towline::replay {
namespace {

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

}  // namespace

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

runtime::Uri uri(const std::string& text) {
  const auto parsed = runtime::Uri::parse(text);
  if (!parsed.ok()) {
    std::cerr << "replay: '" << text << "' is no address\n";
    std::exit(2);
  }
  return parsed.value();
}

std::optional<base::Error> error_of(const Fields& told) {
  static std::set<std::string> steps;  // Names of operations live as long as the program.
  if (told.at("failed") != "true") {
    return std::nullopt;
  }
  return base::Error{static_cast<base::ErrorKind>(number<int>(told.at("error"))),
                     number<int>(told.at("errno")), steps.insert(told.at("step")).first->c_str(),
                     told.at("detail")};
}

bool Replay::compare(const std::string& then) {
  ++outputs_;
  const std::string now = due_.empty() ? "nothing" : due_.front();
  if (!due_.empty()) {
    due_.pop_front();
  }
  if (now != then) {
    std::cout << "it differs\n  then: " << then << "\n  now:  " << now << '\n';
  }
  return now == then;
}

bool Replay::owes_nothing() const {
  if (!due_.empty()) {
    std::cout << "it differs\n  then: nothing more\n  now:  " << due_.front() << '\n';
  }
  return due_.empty();
}

}  // namespace towline::replay
