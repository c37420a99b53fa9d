#include "base/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <set>
#include <string>

#include <doctest/doctest.h>

#include "base/fd.h"
#include "base/line_writer.h"

namespace towline::base {
namespace {

using std::chrono::hours;

std::string text_of(const LogLine& line) {
  return line.text + "\n";
}

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
    reader.reset(ends[0]);
    writer.reset(ends[1]);
  }

  // A reader that stopped long ago.
  std::size_t fill() const {
    const std::string again = "/proc/self/fd/" + std::to_string(writer.get());
    const OwnedFd own(::open(again.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    REQUIRE(own.valid());
    std::size_t bytes = 0;
    while (::write(own.get(), "\n", 1) == 1) {
      ++bytes;
    }
    REQUIRE(errno == EAGAIN);
    return bytes;
  }

  [[nodiscard]] std::string read(std::size_t bytes) const {
    std::string text(bytes, '\0');
    REQUIRE(read_exactly(reader.get(), std::as_writable_bytes(std::span(text))).ok());
    return text;
  }

  OwnedFd reader;
  OwnedFd writer;
};

LogLine line(std::string text, LogLevel level = LogLevel::kDebug) {
  LogLine made;
  made.level = level;
  made.text = std::move(text);
  return made;
}

TEST_CASE("who says a line does not wait for a reader that stopped, and nothing is lost by that") {
  const Pipe pipe;
  const std::size_t before = pipe.fill();
  LineWriter log(pipe.writer.get(), "tl-test", {text_of, nullptr}, 4096);
  for (int i = 0; i < 10; ++i) {
    log.put(line("waits"));
  }
  CHECK_FALSE(log.flush(system_clock().now()));
  CHECK(pipe.read(before) == std::string(before, '\n'));
  CHECK(log.flush(system_clock().now() + hours(1)));
  for (int i = 0; i < 10; ++i) {
    CHECK(pipe.read(6) == "waits\n");
  }
}

TEST_CASE("a flood into a pipe that nobody reads ends, and the dearest lines are read later") {
  const Pipe pipe;
  const std::size_t before = pipe.fill();
  LineWriter log(pipe.writer.get(), "tl-test", {text_of, nullptr}, 4096);
  for (int i = 0; i < 10'000; ++i) {
    log.put(line("debug"));
  }
  log.put(line("dear", LogLevel::kError));
  CHECK(log.dropped() > 9'000);
  static_cast<void>(pipe.read(before));
  REQUIRE(log.flush(system_clock().now() + hours(1)));
  // More than is there, so that its end shows where a line is missing.
  std::string all(65536, '\0');
  const ssize_t got = ::read(pipe.reader.get(), all.data(), all.size());
  REQUIRE(got > 0);
  all.resize(static_cast<std::size_t>(got));
  CHECK(all.find("\nlog.dropped debug=" + std::to_string(log.dropped()) + "\n") !=
        std::string::npos);
  CHECK(all.find("dear\n") != std::string::npos);
}

TEST_CASE("a log's descriptor stays as it was given: blocking") {
  const Pipe pipe;
  LineWriter log(pipe.writer.get(), "tl-test", {text_of, nullptr}, 4096);
  log.put(line("a"));
  REQUIRE(log.flush(system_clock().now() + hours(1)));
  CHECK((::fcntl(pipe.writer.get(), F_GETFL) & O_NONBLOCK) == 0);
}

int last_failure = 0;

TEST_CASE("a reader that is gone is told to whoever wants to know, and the next line is tried") {
  Pipe pipe;
  pipe.reader.reset();
  LineWriter log(pipe.writer.get(), "tl-test",
                 {text_of, [](const LogLine&, int error) { last_failure = error; }}, 4096);
  log.put(line("a"));
  log.put(line("b"));
  REQUIRE(log.flush(system_clock().now() + hours(1)));
  CHECK(log.dropped() == 2);
  CHECK(last_failure == EPIPE);
}

// ---- values -------------------------------------------------------------------------------------

TEST_CASE("a value that is one plain word is written as it is, every other one in quotes") {
  CHECK(log_value("tcp:127.0.0.1:4444") == "tcp:127.0.0.1:4444");
  CHECK(log_value("the link is lost") == R"("the link is lost")");
  CHECK(log_value("") == R"("")");
  CHECK(log_value("a=b") == R"("a=b")");
  CHECK(log_value(R"(say "no" \)") == R"("say \"no\" \\")");
  CHECK(log_value("Grüße") == "\"Grüße\"");
}

TEST_CASE("a value is one line of UTF-8, whatever a peer wrote into it") {
  CHECK(log_value("a\nb\tc\x1b[2J\x7f") == R"("a\nb\x09c\x1b[2J\x7f")");
  CHECK(log_value(std::string("\0", 1)) == R"("\x00")");
  CHECK(log_value("\xc2\x85\xe2\x80\xa8") == R"("\xc2\x85\xe2\x80\xa8")");  // Ends of lines, too.
  CHECK(log_value("\xff\xc3") == R"("\xff\xc3")");
  CHECK(log_value("\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80") ==
        R"("\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80")");
}

TEST_CASE("an event quotes the texts among its fields and leaves numbers as they are") {
  log_owner(LogLevel::kDebug, "test.quoting reason={} pages={:#x} ms={:.3f} lane={}",
            std::string("the link\nis lost"), 255, 1.5, "control");
  const auto kept = kept_log_lines();
  REQUIRE_FALSE(kept.empty());
  CHECK(kept.back().text ==
        R"(test.quoting reason="the link\nis lost" pages=0xff ms=1.500 lane=control)");
  // 2026-01-31T12:34:56.789Z
  CHECK(kept.back().time.size() == 24);
  CHECK(kept.back().time.back() == 'Z');
}

TEST_CASE("a line is bounded, cut between two characters, and says so") {
  std::string much;
  for (int i = 0; i < 4000; ++i) {
    much += "ü";
  }
  log_owner(LogLevel::kDebug, "test.long text={}", much);
  const std::string text = kept_log_lines().back().text;
  CHECK(text.size() < 4000);
  CHECK(text.ends_with("bytes more)"));
  CHECK(text.find("ü... (") != std::string::npos);
}

TEST_CASE("the last owners' lines are kept beside a flood of errors, and the last of these") {
  log_owner(LogLevel::kDebug, "test.owner_before_the_flood");
  for (int i = 0; i < 20; ++i) {
    write_log(LogLevel::kError, false, "test.flood i=" + std::to_string(i));
  }
  std::set<std::string> texts;
  for (const KeptLine& one : kept_log_lines()) {
    texts.insert(one.text);
  }
  CHECK(texts.contains("test.owner_before_the_flood"));
  CHECK(texts.contains("test.flood i=19"));
  CHECK_FALSE(texts.contains("test.flood i=0"));
  CHECK(texts.size() <= 32);
}

}  // namespace
}  // namespace towline::base
