#pragma once

#include <functional>
#include <string>
#include <thread>

namespace towline::base {

/// A thread with a name (at most 15 characters, "tl-fault"), joined by its destructor.
///
/// The body must return by itself once its owner has made it stop; nothing is cancelled. All
/// signals except SIGUSR1 (the vCPU kick) are blocked in it.
///
/// Where no thread can be started just now (a limit on processes), the constructor says so in the
/// log, waits and tries again.
class NamedThread {
 public:
  NamedThread() = default;
  NamedThread(std::string name, std::function<void()> body);
  NamedThread(NamedThread&&) = default;
  NamedThread& operator=(NamedThread&& other) noexcept;
  NamedThread(const NamedThread&) = delete;
  NamedThread& operator=(const NamedThread&) = delete;
  ~NamedThread();

  [[nodiscard]] bool joinable() const { return thread_.joinable(); }

  void join();

  /// For pthread_kill; valid while joinable().
  [[nodiscard]] std::thread::native_handle_type native_handle() { return thread_.native_handle(); }

 private:
  std::thread thread_;
};

}  // namespace towline::base
