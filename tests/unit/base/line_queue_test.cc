#include "base/line_queue.h"

#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace towline::base {
namespace {

LogLine line(LogLevel level, std::string text, bool about_owner = false) {
  LogLine made;
  made.level = level;
  made.about_owner = about_owner;
  made.text = std::move(text);
  return made;
}

std::vector<std::string> all_of(LineQueue& queue) {
  std::vector<std::string> texts;
  while (queue.ready()) {
    texts.push_back(queue.pop().value().text);
  }
  return texts;
}

// Room for `lines` of one letter.
LineQueue queue_for(std::size_t lines) {
  for (std::size_t bytes = 1;; ++bytes) {
    LineQueue probe(bytes);
    for (std::size_t i = 0; i < lines; ++i) {
      probe.push(line(LogLevel::kError, "x"));
    }
    if (probe.dropped() == 0) {
      return LineQueue(bytes);
    }
  }
}

using Texts = std::vector<std::string>;

TEST_CASE("lines of all levels leave a queue in the order in which they came") {
  LineQueue queue = queue_for(4);
  queue.push(line(LogLevel::kError, "a"));
  queue.push(line(LogLevel::kDebug, "b"));
  queue.push(line(LogLevel::kInfo, "c", true));
  queue.push(line(LogLevel::kWarning, "d"));
  CHECK(all_of(queue) == Texts{"a", "b", "c", "d"});
  CHECK(queue.dropped() == 0);
}

TEST_CASE("in a full queue debug lines go first, then info, the newest of them first") {
  LineQueue queue = queue_for(4);
  queue.push(line(LogLevel::kDebug, "1"));
  queue.push(line(LogLevel::kInfo, "2"));
  queue.push(line(LogLevel::kDebug, "3"));
  queue.push(line(LogLevel::kInfo, "4"));
  queue.push(line(LogLevel::kWarning, "5"));  // Instead of 3.
  queue.push(line(LogLevel::kInfo, "6"));     // Instead of 1.
  queue.push(line(LogLevel::kError, "7"));    // Instead of 6.
  queue.push(line(LogLevel::kInfo, "8"));     // It is the newest itself.
  CHECK(queue.dropped() == 4);
  CHECK(all_of(queue) == Texts{"log.dropped debug=2 info=2", "2", "4", "5", "7"});
}

TEST_CASE("a flood of warnings drops neither an error nor what is said of the guest's owner") {
  LineQueue queue = queue_for(3);
  queue.push(line(LogLevel::kInfo, "a", true));
  queue.push(line(LogLevel::kError, "b"));
  for (int i = 0; i < 100; ++i) {
    queue.push(line(LogLevel::kWarning, "w"));
  }
  queue.push(line(LogLevel::kInfo, "c", true));
  CHECK(all_of(queue) == Texts{"a", "b", "log.dropped warning=100", "c"});
}

TEST_CASE("the dropped are told in the place of the first, once there is room, and once") {
  LineQueue queue = queue_for(2);
  queue.push(line(LogLevel::kInfo, "a"));
  queue.push(line(LogLevel::kInfo, "b"));
  queue.push(line(LogLevel::kInfo, "c"));
  CHECK(queue.pop()->text == "a");
  queue.push(line(LogLevel::kInfo, "d"));
  CHECK(queue.pop()->text == "b");
  const auto told = queue.pop();
  CHECK(told->text == "log.dropped info=1");
  CHECK(told->level == LogLevel::kWarning);
  CHECK(all_of(queue) == Texts{"d"});
}

TEST_CASE("a line that could not be written is told with the next one that can") {
  LineQueue queue = queue_for(8);
  queue.push(line(LogLevel::kInfo, "a"));
  queue.push(line(LogLevel::kError, "b"));
  queue.lose(queue.pop().value());
  queue.lose(queue.pop().value());
  CHECK_FALSE(queue.ready());  // Nothing is tried for its own sake: the disk may stay full.
  CHECK_FALSE(queue.pop().has_value());  // At an end neither: whose descriptor is that by then?
  queue.push(line(LogLevel::kInfo, "c"));
  const auto told = queue.pop();
  CHECK(told->text == "log.dropped info=1 error=1");
  queue.lose(*told);  // Still full: it does not stand in the way of others, nor is it forgotten.
  CHECK(queue.pop()->text == "c");
  CHECK_FALSE(queue.ready());
  queue.push(line(LogLevel::kInfo, "d"));
  CHECK(all_of(queue) == Texts{"log.dropped info=1 error=1", "d"});
  CHECK(queue.dropped() == 2);
}

}  // namespace
}  // namespace towline::base
