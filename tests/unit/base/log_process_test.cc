#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include "base/ensure.h"
#include "base/fd.h"
#include "base/last_words.h"
#include "base/log.h"

// What a process leaves in its log, and that a log which nobody reads does not keep it. In
// children, because they end.
namespace towline::base {
namespace {

struct Child {
  std::string said;
  int status = 0;
};

// Runs `body` in a child whose standard error is a pipe: full from the start, or read to its end.
template <typename Body>
Child in_child(bool stuck, Body body) {
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  OwnedFd reader(ends[0]);
  OwnedFd writer(ends[1]);
  if (stuck) {
    const std::string again = "/proc/self/fd/" + std::to_string(writer.get());
    const OwnedFd own(::open(again.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    while (::write(own.get(), "\n", 1) == 1) {
    }
    REQUIRE(errno == EAGAIN);
  }
  std::cout << std::flush;  // Or the child says it too.
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(60);  // Instead of a hang.
    ::signal(SIGABRT, SIG_DFL);
    ::dup2(writer.get(), STDERR_FILENO);
    body();
    std::_Exit(0);
  }
  REQUIRE(pid > 0);
  writer.reset();
  Child child;
  if (!stuck) {
    std::array<char, 4096> some{};
    ssize_t got = 0;
    while ((got = ::read(reader.get(), some.data(), some.size())) > 0) {
      child.said.append(some.data(), static_cast<std::size_t>(got));
    }
  }
  REQUIRE(::waitpid(pid, &child.status, 0) == pid);
  return child;
}

// An end waits for a moment only, which may be too short for a machine that has other things to do:
// then another child is asked.
template <typename Body>
Child in_child_that_says(const std::string& text, Body body) {
  Child child;
  for (int i = 0; i < 50 && child.said.find(text) == std::string::npos; ++i) {
    child = in_child(false, body);
  }
  INFO(child.said);
  CHECK(child.said.find(text) != std::string::npos);
  return child;
}

bool aborted(const Child& child) {
  return WIFSIGNALED(child.status) && WTERMSIG(child.status) == SIGABRT;
}

void break_an_invariant() {
  for (int i = 0; i < 100; ++i) {
    log(LogLevel::kInfo, "test.before i={}", i);
  }
  ENSURE(2 + 2 == 5, "sums are right");
}

void throws() {
  throw std::runtime_error("no more\nof it");
}

// NOLINTNEXTLINE(bugprone-exception-escape): that is what is under test.
void throw_something() noexcept {
  install_terminate_handler();
  log(LogLevel::kInfo, "test.before");
  throws();
}

TEST_CASE("a child of fork() has a log of its own") {
  log(LogLevel::kInfo, "test.parent");  // Whose thread is not in the child.
  const Child child = in_child_that_says("Z \"a child\" info test.child n=1\n", [] {
    configure_log(LogLevel::kInfo, "a child");
    log(LogLevel::kInfo, "test.child n={}", 1);
    flush_log();
  });
  CHECK(WEXITSTATUS(child.status) == 0);
  CHECK(child.said.find("test.parent") == std::string::npos);
}

TEST_CASE("a process that exits leaves every line of its log") {
  const Child child = in_child_that_says("test.line i=99\n", [] {
    for (int i = 0; i < 100; ++i) {
      log(LogLevel::kInfo, "test.line i={}", i);
    }
    std::exit(0);  // NOLINT(concurrency-mt-unsafe): what is registered for it is under test.
  });
  CHECK(child.said.find("test.line i=0\n") != std::string::npos);
}

TEST_CASE("a broken invariant leaves its reason, behind what came before it") {
  const std::string reason = "process.broken_invariant why=\"sums are right\"";
  const Child child = in_child_that_says(reason, break_an_invariant);
  CHECK(aborted(child));
  CHECK(child.said.find("test.before i=99\n") < child.said.find(reason));
}

TEST_CASE("a broken invariant aborts though nobody reads the log") {
  CHECK(aborted(in_child(true, break_an_invariant)));
}

TEST_CASE("an exception that nobody takes is named, and aborts though nobody reads the log") {
  CHECK(aborted(
      in_child_that_says(R"(process.terminated exception="no more\nof it")", throw_something)));
  CHECK(aborted(in_child(true, throw_something)));
}

TEST_CASE("a process whose log nobody reads ends when it is told to") {
  const Child child = in_child(true, [] {
    log(LogLevel::kInfo, "test.line");
    say_on_error("for people\n");
    std::exit(7);  // NOLINT(concurrency-mt-unsafe): what is registered for it is under test.
  });
  CHECK(WIFEXITED(child.status));
  CHECK(WEXITSTATUS(child.status) == 7);
}

}  // namespace
}  // namespace towline::base
