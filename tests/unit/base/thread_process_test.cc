#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <fstream>
#include <iostream>
#include <list>
#include <string>

#include <doctest/doctest.h>

#include "base/log.h"
#include "base/thread.h"

// In a child, whose limits are its own.
namespace towline::base {
namespace {

std::uint64_t bytes_of_address_space() {
  std::ifstream file("/proc/self/statm");
  std::uint64_t pages = 0;
  file >> pages;
  return pages * 4096;
}

void limit_address_space(rlim_t bytes) {
  rlimit limit{};
  ::getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = bytes;
  ::setrlimit(RLIMIT_AS, &limit);
}

bool was_told() {
  const auto lines = kept_log_lines();
  return std::any_of(lines.begin(), lines.end(), [](const KeptLine& line) {
    return line.text.find("thread.cannot_start name=tl-second") != std::string::npos;
  });
}

TEST_CASE("a thread that cannot be started is told of, waited for, and started once it can") {
  std::cout << std::flush;  // Or the child says it too.
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(60);  // Instead of a hang.
    ::signal(SIGABRT, SIG_DFL);
    std::atomic<bool> limited{false};
    std::atomic<bool> ran{false};
    NamedThread first("tl-first", [&] {
      while (!limited || !was_told()) {
        std::this_thread::yield();
      }
      limit_address_space(RLIM_INFINITY);
    });
    // No room for a stack, and some for a log line.
    limit_address_space(bytes_of_address_space() + (1U << 20U));
    limited = true;
    // The first of them take the stacks that ended threads have left.
    std::atomic<bool> ended{false};
    std::list<NamedThread> more;
    while (!was_told()) {
      more.emplace_back("tl-second", [&] {
        while (!ended) {
          std::this_thread::yield();
        }
        ran = true;
      });
    }
    ended = true;
    more.clear();
    first.join();
    std::_Exit(ran ? 0 : 1);
  }
  REQUIRE(pid > 0);
  int status = -1;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  CHECK(status == 0);
}

}  // namespace
}  // namespace towline::base
