#include "base/thread.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <system_error>

#include "base/clock.h"
#include "base/log.h"

namespace towline::base {
namespace {

constexpr std::chrono::milliseconds kPause{20};
constexpr std::chrono::seconds kBetweenWords{1};

// There is no way back from half of a switch: a guest whose next thread finds no place waits for
// one, and does not go with its process. Whoever limits the threads can raise the limit.
void wait_for_a_place(const std::string& name, const std::system_error& error, Instant& told) {
  const Instant now = system_clock().now();
  if (now - told >= kBetweenWords) {
    told = now;
    log(LogLevel::kError, "thread.cannot_start name={} reason={} so={} remedy={}", name,
        error.what(), "it is tried again until it can; what needs it waits",
        "raise the limit on processes and threads (TasksMax of the unit, pids.max, ulimit -u)");
  }
  std::this_thread::sleep_for(kPause);
}

}  // namespace

NamedThread::NamedThread(std::string name, std::function<void()> body) {
  // Signals are the main thread's business: it reads them from its event loop. The new thread
  // inherits the mask, so it is set before and put back after.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  sigdelset(&all, SIGUSR1);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const std::string called = name;
  const auto start = [name = std::move(name), body = std::move(body)]() noexcept {
    pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
    body();
  };
  for (Instant told{}; !thread_.joinable();) {
    try {
      thread_ = std::thread(start);
    } catch (const std::system_error& error) {
      wait_for_a_place(called, error, told);
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

NamedThread& NamedThread::operator=(NamedThread&& other) noexcept {
  join();
  thread_ = std::move(other.thread_);
  return *this;
}

NamedThread::~NamedThread() {
  join();
}

void NamedThread::join() {
  if (thread_.joinable()) {
    thread_.join();
  }
}

}  // namespace towline::base
