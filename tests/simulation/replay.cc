// A log of the debug level, fed to the brain that ships, of a source or of a target: does it ask
// for what it asked for then? Reads the log from standard input. Exit code: 0, the same; 1, it
// differs; 2, no such log.
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "tests/simulation/replay_log.h"

namespace {

using towline::replay::fields_of;
using towline::replay::Replay;

/// An event of the trace, and where its fields begin.
struct Event {
  std::string name;
  std::size_t fields = 0;
};

std::optional<Event> event_of(const std::string& line, const std::string& end) {
  const std::size_t found = line.find(" " + end + ".");
  if (found == std::string::npos) {
    return std::nullopt;
  }
  const std::size_t name = found + end.size() + 2;
  const std::size_t after = line.find(' ', name);
  if (after == std::string::npos) {
    return std::nullopt;
  }
  return Event{line.substr(name, after - name), after + 1};
}

}  // namespace

int main() {
  std::unique_ptr<Replay> replay;
  std::string end = "source";
  for (std::string line; std::getline(std::cin, line);) {
    for (const char* const one : {"source", "target"}) {
      const auto made = event_of(line, one);
      if (made.has_value() && made->name == "brain") {
        end = one;
        const auto told = fields_of(line, made->fields);
        replay = end == "source" ? towline::replay::replay_source(told)
                                 : towline::replay::replay_target(told);
      }
    }
    const auto event = event_of(line, end);
    const bool traced = event.has_value() &&
                        (event->name == "input" || event->name == "effect" ||
                         event->name == "task" || event->name == "load" || event->name == "signs");
    if (replay != nullptr && traced && !replay->take(event->name, fields_of(line, event->fields))) {
      return 1;
    }
  }
  if (replay == nullptr || replay->inputs() == 0) {
    std::cerr << "replay: no line 'source.brain' or 'target.brain' and no input; was it a log of "
                 "the debug level?\n";
    return 2;
  }
  std::cout << replay->inputs() << " inputs, " << replay->outputs()
            << " effects and tasks: the same\n";
  return 0;
}
