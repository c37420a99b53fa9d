#include "base/line_writer.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "base/sync.h"

namespace towline::base {
namespace {

/// A flush is waited for in steps: where the whole machine stalls, the writer loses one of them.
constexpr std::chrono::milliseconds kStep{10};

// 0, or the errno that ended it.
int write_whole(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd, bytes.data(), bytes.size());
    if (put >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(put));
    } else if (errno == EAGAIN) {  // Somebody else made the open file non-blocking.
      pollfd waiting{.fd = fd, .events = POLLOUT, .revents = 0};
      ::poll(&waiting, 1, -1);
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

}  // namespace

class LineWriter::Shared : public std::enable_shared_from_this<Shared> {
 public:
  Shared(int fd, const char* name, Ways ways, std::size_t most_bytes)
      : fd_(fd), name_(name), ways_(ways), queue_(most_bytes) {}

  void put(LogLine line) {
    const Lock lock(mutex_);
    queue_.push(std::move(line));
    started_ = started_ || start();  // Without one, for want of memory, the next line tries again.
    changed_.notify_all();
  }

  bool flush(Instant deadline) {
    const Lock lock(mutex_);
    bool done = false;
    for (auto steps = (deadline - system_clock().now()) / kStep; !done && steps >= 0; --steps) {
      done = changed_.wait_until(mutex_, system_clock().now() + kStep,
                                 [this]() UNDER_LOCK { return !writing_ && !queue_.ready(); });
    }
    return done;
  }

  void end() {
    const Lock lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }

  std::uint64_t dropped() {
    const Lock lock(mutex_);
    return queue_.dropped();
  }

 private:
  // Not a std::thread: it has an owner who waits, and throws where there is no memory for another.
  bool start() {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    auto self = std::make_unique<std::shared_ptr<Shared>>(shared_from_this());
    pthread_t thread{};
    const bool made = pthread_create(&thread, &attributes, &Shared::enter, self.get()) == 0;
    if (made) {
      [[maybe_unused]] auto* const of_the_thread = self.release();
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return made;
  }

  static void* enter(void* raw) noexcept {
    const std::unique_ptr<std::shared_ptr<Shared>> self(static_cast<std::shared_ptr<Shared>*>(raw));
    pthread_setname_np(pthread_self(), (*self)->name_);
    (*self)->run();
    return nullptr;
  }

  void run() {
    while (const auto line = next()) {
      const int error = write_whole(fd_, ways_.format(*line));
      if (error != 0) {
        {
          const Lock lock(mutex_);
          queue_.lose(*line);
        }
        if (ways_.failed != nullptr) {
          ways_.failed(*line, error);
        }
      }
    }
  }

  std::optional<LogLine> next() {
    const Lock lock(mutex_);
    writing_ = false;
    changed_.notify_all();
    changed_.wait(mutex_, [this]() UNDER_LOCK { return ending_ || queue_.ready(); });
    auto line = queue_.pop();
    writing_ = line.has_value();
    return line;
  }

  const int fd_;
  const char* const name_;
  const Ways ways_;

  Mutex mutex_;
  Condition changed_;
  LineQueue queue_ GUARDED_BY(mutex_);
  bool started_ GUARDED_BY(mutex_) = false;
  bool writing_ GUARDED_BY(mutex_) = false;
  bool ending_ GUARDED_BY(mutex_) = false;
};

LineWriter::LineWriter(int fd, const char* thread, Ways ways, std::size_t most_bytes)
    : shared_(std::make_shared<Shared>(fd, thread, ways, most_bytes)) {
}

LineWriter::~LineWriter() {
  shared_->end();
}

void LineWriter::put(LogLine line) {
  shared_->put(std::move(line));
}

bool LineWriter::flush(Instant deadline) {
  return shared_->flush(deadline);
}

std::uint64_t LineWriter::dropped() const {
  return shared_->dropped();
}

}  // namespace towline::base
