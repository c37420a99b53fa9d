#include "tools/client/progress.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include <doctest/doctest.h>

#include "tools/human.h"

namespace towline::tools {
namespace {

using monitor::Json;

/// A stream whose text can be looked at.
class Paper {
 public:
  Paper() : file_(::open_memstream(&text_, &size_)) {}

  Paper(const Paper&) = delete;
  Paper& operator=(const Paper&) = delete;

  ~Paper() {
    std::fclose(file_);
    std::free(text_);  // NOLINT(cppcoreguidelines-no-malloc): open_memstream() gave it.
  }

  [[nodiscard]] std::FILE* file() const { return file_; }

  std::string text() {
    std::fflush(file_);
    return {text_, size_};
  }

 private:
  char* text_ = nullptr;
  std::size_t size_ = 0;
  std::FILE* file_;
};

MoveView view(const char* status, std::uint64_t transferred, std::uint64_t remaining) {
  MoveView made;
  made.source = Json::object({{"status", status}});
  made.source.set(
      "ram",
      Json::object({{"total", 1U << 30U}, {"transferred", transferred}, {"remaining", remaining}}));
  return made;
}

long count(const std::string& text, char what) {
  return std::count(text.begin(), text.end(), what);
}

TEST_CASE("a link that is lost is said on the line, whatever the status") {
  Paper paper;
  Progress progress(paper.file(), false);
  MoveView lost = view("postcopy-active", 0, 1U << 29U);
  lost.source.set("x-towline", Json::object({{"link", "lost"}}));
  progress.show(lost, base::Instant{});
  CHECK(paper.text().find("the link is lost") != std::string::npos);
}

TEST_CASE("what the target has no room for is said once in full, and shortly on every line") {
  for (const bool terminal : {false, true}) {
    Paper paper;
    Progress progress(paper.file(), terminal);
    base::Instant now{};
    MoveView waits = view("active", 0, 1U << 29U);
    waits.source.set("x-towline", Json::object({{"waits-for", "memory: none is left"}}));
    for (int second = 0; second < 3; ++second) {
      progress.show(waits, now);
      now += std::chrono::seconds(1);
    }
    progress.show(view("active", 0, 1U << 29U), now);
    const std::string text = paper.text();
    CHECK(text.find("memory: none is left") == text.rfind("memory: none is left"));
    CHECK(text.find("memory: none is left") < text.find("waits for room at the target"));
    CHECK(text.rfind("waits for room at the target") < text.rfind("512"));
  }
}

TEST_CASE("without a terminal there is a line a second, and one for each new status") {
  Paper paper;
  Progress progress(paper.file(), false);
  base::Instant now{};
  for (int tenth = 0; tenth < 25; ++tenth) {
    progress.show(view("active", 0, 1U << 29U), now);
    now += std::chrono::milliseconds(100);
  }
  CHECK(count(paper.text(), '\n') == 3);
  progress.show(view("postcopy-active", 0, 1), now);
  CHECK(count(paper.text(), '\n') == 4);
  CHECK(count(paper.text(), '\r') == 0);
}

TEST_CASE("on a terminal one line is written over, and taken away at the end") {
  Paper paper;
  Progress progress(paper.file(), true);
  progress.show(view("active", 0, 1), base::Instant{});
  progress.show(view("active", 1, 1), base::Instant{} + std::chrono::milliseconds(100));
  CHECK(count(paper.text(), '\n') == 0);
  CHECK(count(paper.text(), '\r') == 2);
  progress.say("hello");
  CHECK(paper.text().find("\r\033[Khello\n") != std::string::npos);
}

TEST_CASE("rate and time left come from what was sent lately") {
  Paper paper;
  Progress progress(paper.file(), false);
  base::Instant now{};
  progress.show(view("active", 0, 1U << 30U), now);
  CHECK(paper.text().find("time left unknown") != std::string::npos);
  now += std::chrono::seconds(1);
  progress.show(view("active", 100U << 20U, 200U << 20U), now);
  CHECK(paper.text().find("200.0 MiB of 1.00 GiB to go, 100.0 MiB/s, 3 s left") !=
        std::string::npos);
  now += std::chrono::seconds(1);
  progress.show(view("postcopy-active", 300U << 20U, 0), now);
  CHECK(paper.text().find("nearly done") != std::string::npos);
}

TEST_CASE("before and after the move only its status is shown") {
  for (const char* status : {"setup", "cancelling", "cancelled", "failed", "completed"}) {
    Paper paper;
    Progress progress(paper.file(), false);
    progress.show(view(status, 0, 0), base::Instant{});
    CHECK(paper.text() == std::string(status) + "\n");
  }
}

TEST_CASE("a side that has gone is made up for by the other") {
  Paper paper;
  Progress progress(paper.file(), false);
  MoveView made = view("active", 0, 4096);
  std::swap(made.source, made.target);
  progress.show(made, base::Instant{});
  CHECK(paper.text().find("4.00 KiB of 1.00 GiB") != std::string::npos);
  made.target = Json();
  progress.show(made, base::Instant{} + std::chrono::seconds(5));
  CHECK(paper.text().find("gone") != std::string::npos);
}

TEST_CASE("quantities are written as people read them") {
  CHECK(human_bytes(0) == "0 B");
  CHECK(human_bytes(1023) == "1023 B");
  CHECK(human_bytes(1024) == "1.00 KiB");
  CHECK(human_bytes(10U << 20U) == "10.0 MiB");
  CHECK(human_bytes(1010U << 20U) == "0.99 GiB");
  CHECK(human_us(0.4) == "0 us");
  CHECK(human_us(999) == "999 us");
  CHECK(human_us(2100) == "2.1 ms");
  CHECK(human_us(3'200'000) == "3.20 s");
}

}  // namespace
}  // namespace towline::tools
