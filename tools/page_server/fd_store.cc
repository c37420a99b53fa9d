#include "tools/page_server/fd_store.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/standby/process.h"

namespace towline::tools {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail;
using base::fail_errno;
using base::Instant;
using base::Outcome;
using std::chrono::milliseconds;

// sd_listen_fds(3).
constexpr int kFirstPassed = 3;
constexpr int kMostPassed = 1024;

// Guesses: a manager that is busy answers within, and a source that has just handed its memory over
// is not kept from its own work meanwhile.
constexpr milliseconds kConfirmsWithin{3000};
constexpr milliseconds kReadsWithin{1000};
// A path on the bus, or a number.
constexpr std::size_t kLongestAnswer = 4096;

// The environment is read, and cleaned, before there are any threads.
// NOLINTBEGIN(concurrency-mt-unsafe)

int number_in(const char* variable) {
  const char* text = ::getenv(variable);
  return text == nullptr ? -1 : std::atoi(text);
}

std::optional<std::int64_t> whole_number_in(const char* variable) {
  const char* text = ::getenv(variable);
  std::int64_t number = 0;
  if (text == nullptr) {
    return std::nullopt;
  }
  const char* const last = text + std::strlen(text);
  const auto [end, error] = std::from_chars(text, last, number);
  return error == std::errc{} && end == last ? std::optional(number) : std::nullopt;
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

milliseconds left_until(Instant deadline) {
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - base::system_clock().now());
  return std::max(left, milliseconds{0});
}

/// False: it did not come in time.
bool await(int fd, short events, Instant deadline) {
  while (true) {
    pollfd waiting{.fd = fd, .events = events, .revents = 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(left_until(deadline).count()));
    if (ready >= 0 || errno != EINTR) {
      return ready == 1;
    }
  }
}

/// What a program that is found in the path writes to its standard output.
Expected<std::string> output_of(std::vector<std::string> command, Instant deadline) {
  auto started = TRY(runtime::start_reading(command));
  std::string text;
  std::array<char, 4096> bytes{};
  while (await(started.output.get(), POLLIN, deadline)) {
    const ssize_t got = ::read(started.output.get(), bytes.data(), bytes.size());
    if (got <= 0) {
      break;
    }
    text.append(bytes.data(), static_cast<std::size_t>(got));
    if (text.size() > kLongestAnswer) {
      break;
    }
  }
  if (!runtime::end_reading(std::move(started))) {
    return fail(ErrorKind::kFailed, "run",
                fmt::format("'{}' failed, or did not answer in time", fmt::join(command, " ")));
  }
  return text;
}

/// The rest of `text` behind `start`, up to the end of its line.
Expected<std::string> answer_in(const std::string& text, std::string_view start) {
  if (!text.starts_with(start)) {
    return fail(ErrorKind::kFailed, "busctl", fmt::format("'{}' is no answer of its", text));
  }
  return text.substr(start.size(), text.find_first_of("\"\n", start.size()) - start.size());
}

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

FdStore::FdStore(bool daemon) {
  // NOLINTBEGIN(concurrency-mt-unsafe): as above.
  const char* variable = ::getenv("NOTIFY_SOCKET");
  const std::string path = variable == nullptr ? "" : variable;
  owner_ = whole_number_in("SYSTEMD_EXEC_PID");
  if (const auto room = whole_number_in("FDSTORE"); room.has_value() && *room >= 0) {
    room_ = static_cast<std::uint64_t>(*room);
  }
  for (const char* one : {"NOTIFY_SOCKET", "FDSTORE", "SYSTEMD_EXEC_PID"}) {
    ::unsetenv(one);
  }
  // NOLINTEND(concurrency-mt-unsafe)
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (!daemon || path.size() < 2 || path.size() >= sizeof address.sun_path) {
    return;
  }
  std::memcpy(static_cast<char*>(address.sun_path), path.data(), path.size());
  if (path[0] == '@') {  // The abstract name space.
    address.sun_path[0] = '\0';
  }
  of_user_ = path.starts_with("/run/user/");
  base::OwnedFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  if (fd.valid() && ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0) {
    socket_ = std::move(fd);
  }
}

Outcome FdStore::keep(const std::vector<NamedFd>& all) {
  if (!present()) {
    return fail(ErrorKind::kUnsupported, "fd store", "no service manager is there");
  }
  if (owner_.has_value() && *owner_ != ::getpid()) {
    return fail(ErrorKind::kUnsupported, "fd store",
                fmt::format("the manager started process {}, which started this one; only its own "
                            "process is heard",
                            *owner_));
  }
  const Instant deadline = base::system_clock().now() + kConfirmsWithin;
  const bool says_its_room = room_.has_value() && owner_.has_value();
  if (says_its_room && *room_ < all.size()) {
    return fail(ErrorKind::kFailed, "fd store",
                fmt::format("the manager has room for {} descriptors, and there are {}: raise "
                            "FileDescriptorStoreMax",
                            *room_, all.size()));
  }
  for (const NamedFd& one : all) {  // A name may stand for several.
    TRY(send(fmt::format("FDSTOREREMOVE=1\nFDNAME={}", one.name), -1, deadline));
  }
  std::uint64_t before = 0;
  if (!says_its_room) {
    TRY(await_barrier(deadline));
    before = TRY(count_kept(deadline));
  }
  for (const NamedFd& one : all) {
    TRY(send(fmt::format("FDSTORE=1\nFDNAME={}", one.name), one.fd, deadline));
  }
  TRY(await_barrier(deadline));
  if (says_its_room) {
    return base::Done{};
  }
  const std::uint64_t after = TRY(count_kept(deadline));
  if (after < before + all.size()) {
    return fail(ErrorKind::kFailed, "fd store",
                fmt::format("the manager keeps {} of {} descriptors: raise FileDescriptorStoreMax, "
                            "and let NotifyAccess be 'main'",
                            after - std::min(after, before), all.size()));
  }
  return base::Done{};
}

void FdStore::drop(const std::vector<std::string>& names) {
  const Instant deadline = base::system_clock().now() + kReadsWithin;
  for (const std::string& name : names) {
    if (present() && !send(fmt::format("FDSTOREREMOVE=1\nFDNAME={}", name), -1, deadline).ok()) {
      return;
    }
  }
}

Outcome FdStore::tell(const std::string& status) {
  return present() ? send(fmt::format("READY=1\nSTATUS={}", status), -1,
                          base::system_clock().now() + kReadsWithin)
                   : Outcome(base::Done{});
}

/// Everything that was sent before has been read.
Outcome FdStore::await_barrier(Instant deadline) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return fail_errno(ErrorKind::kFailed, "pipe2");
  }
  const base::OwnedFd ours(ends[0]);
  {
    const base::OwnedFd theirs(ends[1]);
    TRY(send("BARRIER=1", theirs.get(), deadline));
  }
  return await(ours.get(), POLLIN, deadline)
             ? Outcome(base::Done{})
             : fail(
                   ErrorKind::kFailed, "fd store",
                   fmt::format("the manager did not confirm it in {} ms", kConfirmsWithin.count()));
}

/// Asked over the bus, by the program that comes with the manager: there is no other way that needs
/// neither a library nor the unit's name.
Expected<std::uint64_t> FdStore::count_kept(Instant deadline) const {
  std::vector<std::string> bus{"busctl"};
  if (of_user_) {
    bus.emplace_back("--user");
  }
  const auto asked = [&](std::vector<std::string> words) {
    words.insert(words.begin(), bus.begin(), bus.end());
    return output_of(std::move(words), deadline);
  };
  const std::string manager = "org.freedesktop.systemd1";
  const std::string unit_said =
      TRY(asked({"call", manager, "/org/freedesktop/systemd1", manager + ".Manager", "GetUnitByPID",
                 "u", std::to_string(::getpid())}));
  const std::string unit = TRY(answer_in(unit_said, "o \""));
  const std::string said =
      TRY(asked({"get-property", manager, unit, manager + ".Service", "NFileDescriptorStore"}));
  const std::string digits = TRY(answer_in(said, "u "));
  std::uint64_t count = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
  if (error != std::errc{} || end != digits.data() + digits.size()) {
    return fail(ErrorKind::kFailed, "busctl", fmt::format("'{}' is no number", digits));
  }
  return count;
}

// A manager that does not read holds nobody up: it is not spoken to any more.
Outcome FdStore::send(const std::string& text, int fd, Instant deadline) {
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
  while (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) < 0) {
    const bool full = errno == EAGAIN || errno == EINTR;
    if (!full || !await(socket_.get(), POLLOUT, deadline)) {
      socket_.reset();
      return full
                 ? Outcome(fail(ErrorKind::kFailed, "sendmsg", "the service manager does not read"))
                 : Outcome(fail_errno(ErrorKind::kFailed, "sendmsg",
                                      "the service manager does not listen"));
    }
  }
  return base::Done{};
}

}  // namespace towline::tools
