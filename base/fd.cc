#include "base/fd.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>

namespace towline::base {

void OwnedFd::reset(int fd) {
  if (fd_ >= 0) {
    // close() reports errors of earlier writes; nobody here can act on them, and on Linux the
    // descriptor is gone in every case.
    ::close(fd_);
  }
  fd_ = fd;
}

Outcome read_exactly(int fd, std::span<std::byte> into) {
  std::size_t done = 0;
  while (done < into.size()) {
    const ssize_t got = ::read(fd, into.data() + done, into.size() - done);
    if (got > 0) {
      done += static_cast<std::size_t>(got);
    } else if (got == 0) {
      return fail(ErrorKind::kDisconnected, "read",
                  "the peer closed after " + std::to_string(done) + " of " +
                      std::to_string(into.size()) + " bytes");
    } else if (errno != EINTR) {
      return fail_errno(ErrorKind::kDisconnected, "read");
    }
  }
  return Done{};
}

Outcome write_all(int fd, std::span<const std::byte> from) {
  std::size_t done = 0;
  while (done < from.size()) {
    ssize_t put = ::send(fd, from.data() + done, from.size() - done, MSG_NOSIGNAL);
    if (put < 0 && errno == ENOTSOCK) {
      put = ::write(fd, from.data() + done, from.size() - done);
    }
    if (put >= 0) {
      done += static_cast<std::size_t>(put);
    } else if (errno != EINTR) {
      return fail_errno(ErrorKind::kDisconnected, "write");
    }
  }
  return Done{};
}

Expected<OwnedFd> make_eventfd() {
  OwnedFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kFailed, "eventfd");
  }
  return fd;
}

void signal_eventfd(int fd) noexcept {
  const std::uint64_t one = 1;
  // EAGAIN means that the counter is full, so that the reader is woken anyway.
  [[maybe_unused]] const ssize_t put = ::write(fd, &one, sizeof one);
}

}  // namespace towline::base
