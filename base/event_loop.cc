#include "base/event_loop.h"

#include <sys/resource.h>
#include <sys/time.h>

#include <array>
#include <deque>
#include <utility>

#include <event2/event.h>
#include <fmt/format.h>

#include "base/ensure.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/sync.h"

namespace towline::base {
namespace {

struct BaseFree {
  void operator()(event_base* base) const { event_base_free(base); }
};

struct EventFree {
  void operator()(event* one) const { event_free(one); }
};

struct ConfigFree {
  void operator()(event_config* config) const { event_config_free(config); }
};

using OwnedBase = std::unique_ptr<event_base, BaseFree>;
using OwnedEvent = std::unique_ptr<event, EventFree>;

timeval to_timeval(std::chrono::milliseconds delay) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(delay);
  const auto rest = std::chrono::duration_cast<std::chrono::microseconds>(delay - seconds);
  return timeval{static_cast<time_t>(seconds.count()), static_cast<suseconds_t>(rest.count())};
}

class Watch : public EventLoop::Handle {
 public:
  explicit Watch(EventLoop::Callback callback)
      : callback_(std::make_shared<EventLoop::Callback>(std::move(callback))) {}

  void arm(event_base* base, int fd, short what, const timeval* delay) {
    event_.reset(event_new(base, fd, what, &Watch::fire, this));
    ENSURE(event_ != nullptr, "libevent has no memory for a watch, or was given a bad descriptor");
    ENSURE(event_add(event_.get(), delay) == 0, "libevent refused a watch");
  }

 private:
  static void fire(int /*fd*/, short /*what*/, void* self) noexcept {
    // The callback may destroy the watch that it belongs to: this copy keeps the callback, and
    // what it captured, alive until it has returned. Nothing of *self is touched afterwards.
    const auto callback = static_cast<Watch*>(self)->callback_;
    (*callback)();
  }

  const std::shared_ptr<EventLoop::Callback> callback_;  // shared: see fire().
  OwnedEvent event_;
};

class LibeventLoop : public EventLoop {
 public:
  LibeventLoop(OwnedBase base, OwnedFd wake) : base_(std::move(base)), wake_fd_(std::move(wake)) {
    wake_ = watch(wake_fd_.get(), EV_READ | EV_PERSIST, nullptr, [this] { run_posted(); });
  }

  void run() override {
    stopping_ = false;
    event_base_dispatch(base_.get());
  }

  void stop() override {
    post([this] {
      stopping_ = true;
      event_base_loopbreak(base_.get());
    });
  }

  void post(Callback work) override {
    {
      const Lock lock(mutex_);
      posted_.push_back(std::move(work));
    }
    signal_eventfd(wake_fd_.get());
  }

  std::unique_ptr<Handle> on_readable(int fd, Callback callback) override {
    return watch(fd, EV_READ | EV_PERSIST, nullptr, std::move(callback));
  }

  std::unique_ptr<Handle> on_writable(int fd, Callback callback) override {
    return watch(fd, EV_WRITE | EV_PERSIST, nullptr, std::move(callback));
  }

  std::unique_ptr<Handle> after(std::chrono::milliseconds delay, Callback callback,
                                bool periodic) override {
    const timeval wait = to_timeval(delay);
    const short again = periodic ? EV_PERSIST : 0;
    return watch(-1, static_cast<short>(EV_TIMEOUT | again), &wait, std::move(callback));
  }

  std::unique_ptr<Handle> on_signal(int signal, Callback callback) override {
    return watch(signal, EV_SIGNAL | EV_PERSIST, nullptr, std::move(callback));
  }

 private:
  std::unique_ptr<Handle> watch(int fd, short what, const timeval* delay, Callback callback) {
    auto made = std::make_unique<Watch>(std::move(callback));
    made->arm(base_.get(), fd, what, delay);
    return made;
  }

  void run_posted() {
    // Only what is there now: work that posts more work may not starve the watches.
    for (std::size_t left = take_wakeup(); left > 0 && !stopping_; --left) {
      const Callback work = next();
      work();
    }
    const Lock lock(mutex_);
    if (!posted_.empty()) {
      signal_eventfd(wake_fd_.get());
    }
  }

  std::size_t take_wakeup() {
    std::uint64_t count = 0;
    // Empty when an earlier call already ran this work: no failure.
    static_cast<void>(read_exactly(wake_fd_.get(), std::as_writable_bytes(std::span(&count, 1))));
    const Lock lock(mutex_);
    return posted_.size();
  }

  Callback next() {
    const Lock lock(mutex_);
    Callback work = std::move(posted_.front());
    posted_.pop_front();
    return work;
  }

  const OwnedBase base_;
  const OwnedFd wake_fd_;
  std::unique_ptr<Handle> wake_;  // After base_: it must go first.
  bool stopping_ = false;         // Loop's thread.
  Mutex mutex_;
  std::deque<Callback> posted_ GUARDED_BY(mutex_);
};

// By itself it writes to standard error, and waits for whoever reads that.
void log_of_libevent(int severity, const char* text) {
  const auto level = severity >= EVENT_LOG_ERR    ? LogLevel::kError
                     : severity == EVENT_LOG_WARN ? LogLevel::kWarning
                                                  : LogLevel::kDebug;
  log(level, "event_loop.said text={}", text);
}

// libevent ends the process when it cannot open the pair of sockets that it makes for itself: it is
// asked for beforehand, with one for the wake-up.
Outcome check_files() {
  std::array<OwnedFd, 3> some;
  for (OwnedFd& one : some) {
    auto opened = make_eventfd();
    if (!opened.ok()) {
      rlimit limit{};
      ::getrlimit(RLIMIT_NOFILE, &limit);
      Error error = std::move(opened).error();
      error.detail = fmt::format(
          "this process may have {} open files, and needs more; raise the limit (ulimit -n)",
          limit.rlim_cur);
      return Err{std::move(error)};
    }
    one = std::move(opened).value();
  }
  return Done{};
}

}  // namespace

Expected<std::unique_ptr<EventLoop>> EventLoop::create() {
  event_set_log_callback(log_of_libevent);
  TRY(check_files());
  const std::unique_ptr<event_config, ConfigFree> config(event_config_new());
  // Any kind of descriptor, so that standard input may be a regular file: that rules out epoll,
  // which would gain nothing for the few descriptors watched here.
  if (config == nullptr || event_config_require_features(config.get(), EV_FEATURE_FDS) != 0) {
    return fail(ErrorKind::kFailed, "event loop", "libevent has no memory");
  }
  OwnedBase made(event_base_new_with_config(config.get()));
  if (made == nullptr) {
    return fail(ErrorKind::kFailed, "event loop",
                "libevent found no way to wait for descriptors (poll or select)");
  }
  return std::unique_ptr<EventLoop>(
      std::make_unique<LibeventLoop>(std::move(made), TRY(make_eventfd())));
}

}  // namespace towline::base
