#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/error.h"

namespace towline::base {

/// libevent behind RAII. One thread runs it; post() and stop() may be called from any thread,
/// everything else from the thread that runs it (or before it runs). No callback may block.
class EventLoop {
 public:
  /// Keeps a watch or a timer alive; its destructor ends it, also from inside its own callback.
  class Handle {
   public:
    Handle() = default;
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    virtual ~Handle() = default;
  };

  using Callback = std::function<void()>;

  static Expected<std::unique_ptr<EventLoop>> create();

  EventLoop() = default;
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;
  virtual ~EventLoop() = default;

  /// Runs until stop().
  virtual void run() = 0;
  virtual void stop() = 0;

  /// Calls `work` on the loop's thread, in the order of the posts.
  virtual void post(Callback work) = 0;

  /// Level-triggered; the fd is borrowed and outlives the handle.
  [[nodiscard]] virtual std::unique_ptr<Handle> on_readable(int fd, Callback callback) = 0;
  [[nodiscard]] virtual std::unique_ptr<Handle> on_writable(int fd, Callback callback) = 0;

  /// Once, after `delay`; or again and again with `periodic`.
  [[nodiscard]] virtual std::unique_ptr<Handle> after(std::chrono::milliseconds delay,
                                                      Callback callback, bool periodic = false) = 0;

  [[nodiscard]] virtual std::unique_ptr<Handle> on_signal(int signal, Callback callback) = 0;
};

}  // namespace towline::base
