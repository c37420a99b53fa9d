#include "tools/fd_store.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace towline::tools {
namespace {

using base::ErrorKind;

// sd_listen_fds(3).
constexpr int kFirstPassed = 3;
constexpr int kMostPassed = 1024;

// The environment is read, and cleaned, before there are any threads.
// NOLINTBEGIN(concurrency-mt-unsafe)

int number_in(const char* variable) {
  const char* text = ::getenv(variable);
  return text == nullptr ? -1 : std::atoi(text);
}

std::vector<std::string> names_in(const char* variable) {
  const char* text = ::getenv(variable);
  std::vector<std::string> names;
  std::string_view rest = text == nullptr ? "" : text;
  while (!rest.empty()) {
    const std::size_t colon = std::min(rest.find(':'), rest.size());
    names.emplace_back(rest.substr(0, colon));
    rest.remove_prefix(std::min(colon + 1, rest.size()));
  }
  return names;
}

// NOLINTEND(concurrency-mt-unsafe)

}  // namespace

std::vector<KeptFd> take_kept_fds() {
  std::vector<KeptFd> kept;
  const int count = number_in("LISTEN_FDS");
  if (number_in("LISTEN_PID") == ::getpid() && count > 0 && count <= kMostPassed) {
    const auto names = names_in("LISTEN_FDNAMES");
    for (int i = 0; i < count; ++i) {
      const auto index = static_cast<std::size_t>(i);
      base::OwnedFd fd(kFirstPassed + i);
      ::fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
      kept.push_back(KeptFd{index < names.size() ? names[index] : "", std::move(fd)});
    }
  }
  for (const char* variable : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) {
    ::unsetenv(variable);  // NOLINT(concurrency-mt-unsafe): as above.
  }
  return kept;
}

FdStore::FdStore() {
  const char* path = ::getenv("NOTIFY_SOCKET");  // NOLINT(concurrency-mt-unsafe): as above.
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path == nullptr || std::strlen(path) < 2 || std::strlen(path) >= sizeof address.sun_path) {
    return;
  }
  std::memcpy(static_cast<char*>(address.sun_path), path, std::strlen(path));
  if (path[0] == '@') {  // The abstract name space.
    address.sun_path[0] = '\0';
  }
  base::OwnedFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + std::strlen(path));
  if (fd.valid() && ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0) {
    socket_ = std::move(fd);
  }
}

base::Outcome FdStore::keep(const std::string& name, int fd) const {
  return send(fmt::format("FDSTORE=1\nFDNAME={}", name), fd);
}

base::Outcome FdStore::drop(const std::string& name) const {
  return send(fmt::format("FDSTOREREMOVE=1\nFDNAME={}", name), -1);
}

base::Outcome FdStore::tell(const std::string& status) const {
  return send(fmt::format("READY=1\nSTATUS={}", status), -1);
}

base::Outcome FdStore::send(const std::string& text, int fd) const {
  if (!present()) {
    return base::Done{};
  }
  std::string copy = text;
  iovec part{.iov_base = copy.data(), .iov_len = copy.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof fd)> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(head), &fd, sizeof fd);
  }
  if (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) < 0) {
    return base::fail_errno(ErrorKind::kFailed, "sendmsg", "the service manager does not listen");
  }
  return base::Done{};
}

}  // namespace towline::tools
