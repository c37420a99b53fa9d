#include "vmm/device/console.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"

namespace towline::vmm {
namespace {

using base::ErrorKind;
using base::fail;
using base::fail_errno;
using base::Lock;

constexpr std::size_t kMostBuffered = 1U << 20U;  // Guess: an hour of a guest's one line a second.
constexpr std::size_t kChunk = 4096;  // PIPE_BUF: after POLLOUT, a write of it never blocks.
constexpr int kLastWordsMs = 500;     // Guess: how long a stuck reader may delay the end.

base::Expected<base::OwnedFd> listen_at(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(ErrorKind::kRefused, "serial",
                fmt::format("serial socket path '{}' has {} bytes; 1 to {} are allowed", path,
                            path.size(), sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const auto* where = reinterpret_cast<const sockaddr*>(&address);
  base::OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kFailed, "socket");
  }

  struct stat about {};

  if (::stat(path.c_str(), &about) == 0 && S_ISSOCK(about.st_mode)) {
    // Left behind by a process that is gone, unless somebody answers.
    const base::OwnedFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (::connect(probe.get(), where, sizeof address) != 0 && errno == ECONNREFUSED) {
      ::unlink(path.c_str());
    }
  }
  if (::bind(fd.get(), where, sizeof address) != 0 || ::listen(fd.get(), 1) != 0) {
    return fail_errno(ErrorKind::kRefused, "bind",
                      fmt::format("cannot listen at serial socket '{}': is it in use, or its "
                                  "directory missing?",
                                  path));
  }
  return fd;
}

/// Standard output of a terminal or a pipe, opened again: non-blocking, which is a property of the
/// open file, and the one that was inherited is shared with others. Of these, too: a terminal takes
/// a part of what is written and waits for the rest to be read, and others fill a pipe between
/// poll() and write(). Not valid where it cannot be had: then what is inherited is used as it is.
base::OwnedFd own_output() {
  struct stat about {};

  const bool may_block =
      ::fstat(STDOUT_FILENO, &about) == 0 && (S_ISFIFO(about.st_mode) || S_ISCHR(about.st_mode));
  return base::OwnedFd(
      may_block ? ::open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC) : -1);
}

}  // namespace

base::Expected<std::unique_ptr<Console>> Console::open(const std::string& where) {
  const std::string_view text = where;
  const auto after = [&](std::string_view scheme) { return where.substr(scheme.size()); };
  std::unique_ptr<Console> console;
  if (text == "none") {
    console.reset(new Console(Kind::kNone));
  } else if (text == "stdio") {
    console.reset(new Console(Kind::kStdio));
    console->output_ = own_output();
  } else if (text.starts_with("file:")) {
    console.reset(new Console(Kind::kFile));
    const std::string path = after("file:");
    console->file_.reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!console->file_.valid()) {
      return fail_errno(ErrorKind::kRefused, "open",
                        fmt::format("cannot write serial output to '{}'", path));
    }
  } else if (text.starts_with("unix:")) {
    console.reset(new Console(Kind::kUnix));
    const std::string path = after("unix:");
    console->listener_ = TRY(listen_at(path));
    console->socket_path_ = path;
    const Lock lock(console->mutex_);
    console->keep_newest_ = true;
  } else {
    return fail(
        ErrorKind::kRefused, "serial",
        fmt::format("serial '{}' is not known: use stdio, file:PATH, unix:PATH or none", where));
  }
  console->wake_ = TRY(base::make_eventfd());
  return console;
}

Console::~Console() {
  {
    const Lock lock(mutex_);
    ending_ = true;
  }
  poke();
  thread_.join();
  if (!socket_path_.empty()) {
    ::unlink(socket_path_.c_str());
  }
}

void Console::start(Input input) {
  input_ = std::move(input);
  if (kind_ != Kind::kNone) {
    thread_ = base::NamedThread("tl-serial", [this] { run(); });
  }
}

void Console::put(std::byte byte) {
  if (kind_ == Kind::kNone) {
    return;
  }
  bool first = false;
  {
    const Lock lock(mutex_);
    first = buffer_.empty();
    if (buffer_.size() >= kMostBuffered) {
      ++dropped_;
      ++dropped_untold_;
      if (!keep_newest_) {
        return;
      }
      buffer_.pop_front();
    }
    buffer_.push_back(byte);
  }
  if (first) {
    poke();
  }
}

std::uint64_t Console::dropped() {
  const Lock lock(mutex_);
  return dropped_;
}

int Console::in_fd() const {
  return kind_ == Kind::kStdio ? STDIN_FILENO : kind_ == Kind::kUnix ? client_.get() : -1;
}

int Console::out_fd() const {
  switch (kind_) {
    case Kind::kNone:
      return -1;
    case Kind::kStdio:
      return output_.valid() ? output_.get() : STDOUT_FILENO;
    case Kind::kFile:
      return file_.get();
    case Kind::kUnix:
      return client_.get();
  }
  __builtin_unreachable();
}

bool Console::wants_input() const {
  return !input_ended_ && input_.room && input_.room() > 0;
}

void Console::run() {
  while (poll_once()) {
  }
}

bool Console::poll_once() {
  bool ending = false;
  bool has_output = false;
  {
    const Lock lock(mutex_);
    ending = ending_;
    has_output = !buffer_.empty();
  }
  if (ending && (!has_output || out_fd() < 0)) {
    return false;
  }
  // A negative descriptor is passed over by poll().
  std::array<pollfd, 4> watched{{
      {wake_.get(), POLLIN, 0},
      // Without room it is still watched for a client that hangs up.
      {wants_input() || kind_ == Kind::kUnix ? in_fd() : -1,
       static_cast<short>(wants_input() ? POLLIN : 0), 0},
      {has_output ? out_fd() : -1, POLLOUT, 0},
      {client_.valid() ? -1 : listener_.get(), POLLIN, 0},
  }};
  const int ready = ::poll(watched.data(), watched.size(), ending ? kLastWordsMs : -1);
  if (ready <= 0) {
    return !ending || (ready < 0 && errno == EINTR);
  }
  if (watched[0].revents != 0) {
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &count, sizeof count);
  }
  if (watched[3].revents != 0) {
    accept_client();
  }
  if (watched[2].revents != 0) {
    write_output();
  }
  if ((watched[1].revents & POLLIN) != 0) {
    read_input();
  } else if (watched[1].revents != 0) {
    end_input();
  }
  return true;
}

void Console::read_input() {
  std::array<std::byte, 64> bytes;
  const std::size_t wanted = std::min(bytes.size(), input_.room());
  if (wanted == 0 || in_fd() < 0) {
    return;
  }
  const ssize_t got = ::read(in_fd(), bytes.data(), wanted);
  if (got > 0) {
    input_.take(std::span(bytes).first(static_cast<std::size_t>(got)));
  } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
    end_input();
  }
}

void Console::end_input() {
  if (kind_ == Kind::kUnix) {
    drop_client();
  } else {
    input_ended_ = true;
  }
}

void Console::accept_client() {
  client_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  const Lock lock(mutex_);
  keep_newest_ = !client_.valid();
}

void Console::drop_client() {
  client_.reset();
  const Lock lock(mutex_);
  keep_newest_ = true;
}

void Console::take_note() {
  if (dropped_untold_ == 0 || buffer_.size() > kMostBuffered / 2) {
    return;
  }
  const std::string note = fmt::format("\r\n[{} bytes of serial output were dropped]\r\n",
                                       std::exchange(dropped_untold_, 0));
  const auto bytes = std::as_bytes(std::span(note));
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
}

void Console::write_output() {
  std::array<std::byte, kChunk> chunk;
  std::size_t size = 0;
  {
    const Lock lock(mutex_);
    take_note();
    size = std::min(chunk.size(), buffer_.size());
    std::copy_n(buffer_.begin(), size, chunk.begin());
  }
  if (size == 0 || out_fd() < 0) {
    return;
  }
  ssize_t put = kind_ == Kind::kUnix ? ::send(out_fd(), chunk.data(), size, MSG_NOSIGNAL)
                                     : ::write(out_fd(), chunk.data(), size);
  if (put < 0 && (errno == EAGAIN || errno == EINTR)) {
    return;
  }
  const int cause = put < 0 ? errno : 0;
  if (put < 0 && kind_ == Kind::kUnix) {
    drop_client();
    return;
  }
  const Lock lock(mutex_);
  if (put < 0) {
    // A full disk or a reader that is gone: the guest runs on without these.
    dropped_ += size;
    put = static_cast<ssize_t>(size);
    if (!std::exchange(told_failure_, true)) {
      base::log(base::LogLevel::kWarning, "serial.output-dropped bytes={} errno={}", size, cause);
    }
  }
  const auto gone = std::min(static_cast<std::size_t>(put), buffer_.size());
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<long>(gone));
}

}  // namespace towline::vmm
