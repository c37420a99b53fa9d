#include "runtime/link/sockets.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include <fmt/format.h>

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail;
using base::fail_errno;
using base::OwnedFd;
using std::chrono::milliseconds;

// A dead link is noticed by the kernel after this long without an acknowledgement; a backstop.
constexpr unsigned int kUserTimeoutMs = 20'000;
constexpr int kKeepIdleSeconds = 5;
constexpr int kKeepIntervalSeconds = 2;
constexpr int kKeepProbes = 3;
// Guess: two of the largest post-copy frames.
constexpr int kNotSentLowWater = 128 << 10;
// The kernel's own bound (net.core.somaxconn) is below or equal: whoever knocks beside many others
// is not turned away before anybody has looked.
constexpr int kBacklog = 4096;

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Expected<Addresses> resolve(const Uri& uri, bool passive) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = passive ? AI_PASSIVE | AI_NUMERICSERV : AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(uri.host.empty() ? nullptr : uri.host.c_str(),
                                  std::to_string(uri.port).c_str(), &hints, &found);
  if (error != 0) {
    return fail(ErrorKind::kRefused, "getaddrinfo",
                fmt::format("address '{}' of '{}' is not known: {}", uri.host, uri.to_string(),
                            ::gai_strerror(error)));
  }
  return Addresses(found, &::freeaddrinfo);
}

Expected<sockaddr_un> unix_address(const Uri& uri) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (uri.path.size() >= sizeof address.sun_path) {
    return fail(ErrorKind::kRefused, "unix socket",
                fmt::format("path '{}' has {} bytes; a unix socket's path has at most {}", uri.path,
                            uri.path.size(), sizeof address.sun_path - 1));
  }
  std::memcpy(static_cast<char*>(address.sun_path), uri.path.c_str(), uri.path.size() + 1);
  return address;
}

void set_option(int fd, int level, int name, int value) {
  // Tuning: a kernel without the option is slower, not wrong.
  [[maybe_unused]] const int result = ::setsockopt(fd, level, name, &value, sizeof value);
}

base::Outcome finish_connect(int fd, const Uri& uri, milliseconds timeout) {
  pollfd waiting{.fd = fd, .events = POLLOUT, .revents = 0};
  int ready = 0;
  do {
    ready = ::poll(&waiting, 1, static_cast<int>(timeout.count()));
  } while (ready < 0 && errno == EINTR);
  if (ready == 0) {
    return fail(ErrorKind::kDisconnected, "connect",
                fmt::format("no answer from '{}' within {} ms", uri.to_string(), timeout.count()));
  }
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error != 0) {
    errno = error;
    return fail_errno(ErrorKind::kDisconnected, "connect",
                      fmt::format("cannot connect to '{}'", uri.to_string()));
  }
  return base::Done{};
}

Expected<OwnedFd> connect_address(const sockaddr* address, socklen_t size, int family,
                                  const Uri& uri, milliseconds timeout,
                                  const WaitingOn& waiting_on = {}) {
  OwnedFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kFailed, "socket", uri.to_string());
  }
  if (::connect(fd.get(), address, size) != 0) {
    if (errno != EINPROGRESS) {
      return fail_errno(ErrorKind::kDisconnected, "connect",
                        fmt::format("cannot connect to '{}'", uri.to_string()));
    }
    // Not before: a socket that does not connect yet cannot be shut down.
    const WaitingNote note(waiting_on, fd.get());
    TRY(finish_connect(fd.get(), uri, timeout));
  }
  TRY(set_blocking(fd.get(), true));
  return fd;
}

Expected<OwnedFd> bind_address(const sockaddr* address, socklen_t size, int family,
                               const Uri& uri) {
  OwnedFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kFailed, "socket", uri.to_string());
  }
  set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (::bind(fd.get(), address, size) != 0) {
    const bool in_use = errno == EADDRINUSE;
    return fail_errno(ErrorKind::kRefused, "bind",
                      fmt::format("cannot listen at '{}'{}", uri.to_string(),
                                  in_use ? "; choose another one, or port 0 for any" : ""));
  }
  if (::listen(fd.get(), kBacklog) != 0) {
    return fail_errno(ErrorKind::kRefused, "listen",
                      fmt::format("cannot listen at '{}'", uri.to_string()));
  }
  return fd;
}

std::uint16_t bound_port(int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) {
    return 0;
  }
  if (storage.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

bool is_socket(const std::string& path) {
  struct stat about {};

  return ::lstat(path.c_str(), &about) == 0 && S_ISSOCK(about.st_mode);
}

Expected<Listening> listen_unix(const Uri& at) {
  const sockaddr_un address = TRY(unix_address(at));
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  auto bound = bind_address(generic, sizeof address, AF_UNIX, at);
  if (!bound.ok() && bound.error().errno_value == EADDRINUSE && !is_socket(at.path)) {
    return fail(ErrorKind::kRefused, "bind",
                fmt::format("cannot listen at '{}': a file that is no socket is there, and it is "
                            "left alone; choose another path",
                            at.to_string()));
  }
  if (!bound.ok() && bound.error().errno_value == EADDRINUSE) {
    const auto alive = connect_address(generic, sizeof address, AF_UNIX, at, milliseconds(100));
    if (!alive.ok() && alive.error().errno_value == ECONNREFUSED) {
      ::unlink(at.path.c_str());
      bound = bind_address(generic, sizeof address, AF_UNIX, at);
    }
  }
  return Listening{TRY(std::move(bound)), at};
}

}  // namespace

void remove_socket(const std::string& path) {
  if (is_socket(path)) {
    ::unlink(path.c_str());
  }
}

base::Outcome set_blocking(int fd, bool blocking) {
  const int flags = ::fcntl(fd, F_GETFL);
  const int wanted = blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
  if (flags < 0 || ::fcntl(fd, F_SETFL, wanted) != 0) {
    return fail_errno(ErrorKind::kFailed, "fcntl");
  }
  return base::Done{};
}

void set_receive_timeout(int fd, milliseconds timeout) {
  const timeval value{.tv_sec = timeout.count() / 1000, .tv_usec = timeout.count() % 1000 * 1000};
  [[maybe_unused]] const int result =
      ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value);
}

void tune_lane(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepIdleSeconds);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepIntervalSeconds);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepProbes);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(kUserTimeoutMs));
}

void bear_closed_window(int fd, bool bear) {
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, bear ? 0 : static_cast<int>(kUserTimeoutMs));
}

void tune_bulk(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, kNotSentLowWater);
}

Expected<OwnedFd> connect_to(const Uri& target, milliseconds timeout, const WaitingOn& waiting_on) {
  if (target.kind == Uri::Kind::kUnix) {
    const sockaddr_un address = TRY(unix_address(target));
    return connect_address(reinterpret_cast<const sockaddr*>(&address), sizeof address, AF_UNIX,
                           target, timeout, waiting_on);
  }
  const Addresses addresses = TRY(resolve(target, false));
  base::Error last{ErrorKind::kDisconnected, 0, "connect", "no address for " + target.to_string()};
  for (const addrinfo* one = addresses.get(); one != nullptr; one = one->ai_next) {
    auto connected =
        connect_address(one->ai_addr, one->ai_addrlen, one->ai_family, target, timeout, waiting_on);
    if (connected.ok()) {
      tune_lane(connected.value().get());
      return connected;
    }
    last = std::move(connected).error();
  }
  return base::Err{std::move(last)};
}

Expected<Listening> listen_at(const Uri& at) {
  if (at.kind == Uri::Kind::kUnix) {
    return listen_unix(at);
  }
  const Addresses addresses = TRY(resolve(at, true));
  base::Error last{ErrorKind::kRefused, 0, "bind", "no address for " + at.to_string()};
  for (const addrinfo* one = addresses.get(); one != nullptr; one = one->ai_next) {
    auto bound = bind_address(one->ai_addr, one->ai_addrlen, one->ai_family, at);
    if (bound.ok()) {
      Uri real = at;
      real.port = bound_port(bound.value().get());
      return Listening{std::move(bound).value(), real};
    }
    last = std::move(bound).error();
  }
  return base::Err{std::move(last)};
}

}  // namespace towline::runtime
