#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "base/error.h"

namespace towline::base {

/// A file descriptor with one owner. Deliberately no operator bool: descriptor 0 would lie.
class OwnedFd {
 public:
  OwnedFd() = default;

  explicit OwnedFd(int fd) : fd_(fd) {}

  OwnedFd(OwnedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

  OwnedFd& operator=(OwnedFd&& other) noexcept {
    if (this != &other) {
      reset(std::exchange(other.fd_, -1));
    }
    return *this;
  }

  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;

  ~OwnedFd() { reset(); }

  [[nodiscard]] int get() const { return fd_; }

  [[nodiscard]] bool valid() const { return fd_ >= 0; }

  [[nodiscard]] int release() { return std::exchange(fd_, -1); }

  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

/// Reads exactly `into.size()` bytes; retries EINTR.
///
/// Errors: kDisconnected at end of file or on any errno; `detail` says how many bytes were there.
Outcome read_exactly(int fd, std::span<std::byte> into);

/// Writes all of `from`; retries EINTR and short writes. Never raises SIGPIPE on sockets.
Outcome write_all(int fd, std::span<const std::byte> from);

/// An eventfd, non-blocking, close-on-exec.
Expected<OwnedFd> make_eventfd();

/// Adds one to an eventfd. Never blocks.
void signal_eventfd(int fd) noexcept;

}  // namespace towline::base
