#pragma once

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define TOWLINE_TSA(attribute) __attribute__((attribute))
#else
#define TOWLINE_TSA(attribute)
#endif

#define CAPABILITY(name) TOWLINE_TSA(capability(name))
#define SCOPED_CAPABILITY TOWLINE_TSA(scoped_lockable)
#define GUARDED_BY(what) TOWLINE_TSA(guarded_by(what))
#define REQUIRES(what) TOWLINE_TSA(requires_capability(what))
#define EXCLUDES(what) TOWLINE_TSA(locks_excluded(what))
#define ACQUIRES(...) TOWLINE_TSA(acquire_capability(__VA_ARGS__))
#define TRY_ACQUIRES(...) TOWLINE_TSA(try_acquire_capability(__VA_ARGS__))
#define RELEASES(...) TOWLINE_TSA(release_capability(__VA_ARGS__))
/// On a lambda that runs only while its mutex is held (the predicate of a wait): the analysis does
/// not see through the call.
#define UNDER_LOCK TOWLINE_TSA(no_thread_safety_analysis)
#define UNCHECKED TOWLINE_TSA(no_thread_safety_analysis)

namespace towline::base {

/// std::mutex as a capability: libstdc++'s own is not annotated.
class CAPABILITY("mutex") Mutex {
 public:
  void lock() ACQUIRES() { mutex_.lock(); }

  void unlock() RELEASES() { mutex_.unlock(); }

  [[nodiscard]] bool try_lock() TRY_ACQUIRES(true) { return mutex_.try_lock(); }

 private:
  std::mutex mutex_;
};

/// Holds a Mutex for a scope.
class SCOPED_CAPABILITY Lock {
 public:
  explicit Lock(Mutex& mutex) ACQUIRES(mutex) : mutex_(mutex) { mutex_.lock(); }

  ~Lock() RELEASES() { mutex_.unlock(); }

  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  Mutex& mutex_;
};

/// std::condition_variable_any for Mutex.
///
/// A `ready` that looks at guarded members says so: `[this]() REQUIRES(mutex_) { … }`. The analysis
/// cannot see that `mutex` is that same one, hence UNCHECKED; it does check the callers.
class Condition {
 public:
  /// Waits until `ready()`; the caller holds `mutex` through a Lock.
  template <typename Ready>
  void wait(Mutex& mutex, Ready ready) REQUIRES(mutex) UNCHECKED {
    while (!ready()) {
      condition_.wait(mutex);
    }
  }

  /// As wait(), but gives up at `deadline`. Returns ready().
  template <typename Deadline, typename Ready>
  bool wait_until(Mutex& mutex, Deadline deadline, Ready ready) REQUIRES(mutex) UNCHECKED {
    while (!ready()) {
      if (condition_.wait_until(mutex, deadline) == std::cv_status::timeout) {
        return ready();
      }
    }
    return true;
  }

  void notify_all() { condition_.notify_all(); }

  void notify_one() { condition_.notify_one(); }

 private:
  std::condition_variable_any condition_;
};

}  // namespace towline::base
