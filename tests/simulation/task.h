#pragma once

#include <coroutine>
#include <functional>
#include <utility>

namespace towline::simulation {

/// A thread of the simulated world: it runs from one pause to the next, and the scheduler alone
/// decides when. `co_await step()` is a place where anybody else may run, `co_await until(...)`
/// also waits for a condition, and `co_await` of another Task runs that as a function of this
/// thread.
class Task {
 public:
  struct promise_type;
  using Handle = std::coroutine_handle<promise_type>;

  /// Goes on with the caller, if there is one.
  struct Return {
    [[nodiscard]] bool await_ready() const noexcept { return false; }

    std::coroutine_handle<> await_suspend(Handle finished) noexcept;

    void await_resume() const noexcept {}
  };

  struct promise_type {
    promise_type* thread = this;      // The promise of the thread's own task.
    Handle caller;                    // Who awaits this task.
    Handle innermost;                 // Of the thread: the task that runs.
    std::function<bool()> condition;  // Of the thread: what it waits for.

    Task get_return_object() {
      innermost = Handle::from_promise(*this);
      return Task(innermost);
    }

    std::suspend_always initial_suspend() noexcept { return {}; }

    Return final_suspend() noexcept { return {}; }

    void return_void() {}

    void unhandled_exception() { throw; }
  };

  Task() = default;

  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

  Task& operator=(Task&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  ~Task() {
    if (handle_ != nullptr) {
      handle_.destroy();
    }
  }

  // ---- for the scheduler, of a thread's own task ----

  [[nodiscard]] bool done() const { return handle_ == nullptr || handle_.done(); }

  [[nodiscard]] bool ready() const {
    return !done() && (handle_.promise().condition == nullptr || handle_.promise().condition());
  }

  void resume() {
    handle_.promise().condition = nullptr;
    handle_.promise().innermost.resume();
  }

  // ---- for a task that awaits this one ----

  [[nodiscard]] bool await_ready() const noexcept { return false; }

  Handle await_suspend(Handle caller) noexcept {
    promise_type& own = handle_.promise();
    own.thread = caller.promise().thread;
    own.caller = caller;
    own.thread->innermost = handle_;
    return handle_;
  }

  void await_resume() const noexcept {}

 private:
  explicit Task(Handle handle) : handle_(handle) {}

  Handle handle_ = nullptr;
};

inline std::coroutine_handle<> Task::Return::await_suspend(Handle finished) noexcept {
  const promise_type& own = finished.promise();
  if (own.caller == nullptr) {
    return std::noop_coroutine();
  }
  own.thread->innermost = own.caller;
  return own.caller;
}

struct Pause {
  std::function<bool()> condition;

  [[nodiscard]] bool await_ready() const noexcept { return false; }

  void await_suspend(Task::Handle waiting) {
    waiting.promise().thread->condition = std::move(condition);
  }

  void await_resume() const noexcept {}
};

inline Pause step() {
  return {};
}

inline Pause until(std::function<bool()> condition) {
  return {std::move(condition)};
}

}  // namespace towline::simulation
