#include "base/thread.h"

#include <pthread.h>
#include <signal.h>

#include <utility>

namespace towline::base {

NamedThread::NamedThread(std::string name, std::function<void()> body) {
  // Signals are the main thread's business: it reads them from its event loop. The new thread
  // inherits the mask, so it is set before and put back after.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  sigdelset(&all, SIGUSR1);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([name = std::move(name), body = std::move(body)]() noexcept {
    pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
    body();
  });
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
