#include "vmm/monitor/monitor_server.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "vmm/monitor/human_session.h"
#include "vmm/monitor/qmp_session.h"

namespace towline::monitor {
namespace {

/// Small, so that a flood of tiny messages is answered in turns with other clients, and its
/// answers are written out in between.
constexpr std::size_t kReadBytes = 4096;

/// How long a listener rests after accept() failed for want of descriptors. (Guess.)
constexpr std::chrono::milliseconds kAcceptPause{100};

base::Expected<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return base::fail(base::ErrorKind::kRefused, "control socket",
                      fmt::format("control socket '{}': a path has 1 to {} bytes", path,
                                  sizeof address.sun_path - 1));
  }
  std::copy(path.begin(), path.end(), std::begin(address.sun_path));
  return address;
}

const sockaddr* generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

bool somebody_answers(const sockaddr_un& address) {
  const base::OwnedFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // EAGAIN: its backlog is full, so there is somebody.
  return ::connect(probe.get(), generic(address), sizeof address) == 0 || errno == EAGAIN;
}

base::Outcome bind_path(int fd, const sockaddr_un& address, const std::string& path) {
  struct stat there {};

  if (::lstat(path.c_str(), &there) == 0 && S_ISSOCK(there.st_mode)) {
    if (somebody_answers(address)) {
      return base::fail(
          base::ErrorKind::kRefused, "bind",
          fmt::format("control socket '{}' is in use by another process; choose another "
                      "path",
                      path));
    }
    ::unlink(path.c_str());  // Left behind by a process that was killed.
  }
  // Whoever can open it controls the guest. Set before bind(), which makes the file with it.
  ::fchmod(fd, S_IRUSR | S_IWUSR);
  if (::bind(fd, generic(address), sizeof address) != 0 || ::listen(fd, SOMAXCONN) != 0) {
    return base::fail_errno(base::ErrorKind::kFailed, "bind",
                            fmt::format("cannot listen for clients at '{}'", path));
  }
  return base::Done{};
}

std::unique_ptr<Session> make_session(CommandContext& context, Speaks speaks, Session::Send send) {
  switch (speaks) {
    case Speaks::kQmp:
    case Speaks::kQmpWithoutEvents:
      return std::make_unique<QmpSession>(context, speaks == Speaks::kQmp, std::move(send));
    case Speaks::kHuman:
      return std::make_unique<HumanSession>(context, std::move(send));
  }
  __builtin_unreachable();
}

}  // namespace

struct MonitorServer::Listener {
  Listener() = default;
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  ~Listener() {
    watch.reset();
    ::unlink(path.c_str());
  }

  std::string path;
  Speaks speaks = Speaks::kQmp;
  base::OwnedFd fd;
  std::size_t clients = 0;
  std::unique_ptr<base::EventLoop::Handle> watch;
  std::unique_ptr<base::EventLoop::Handle> pause;
};

/// A connection: its session, what it has not read yet, and its watches.
class MonitorServer::Client {
 public:
  Client(MonitorServer& server, Listener& listener, base::OwnedFd fd)
      : server_(server),
        listener_(listener),
        fd_(std::move(fd)),
        session_(make_session(server.context_, listener.speaks,
                              [this](const std::string& lines) { send(lines); })),
        readable_(server.loop_.on_readable(fd_.get(), [this] { on_readable(); })) {
    ++listener_.clients;
  }

  ~Client() { --listener_.clients; }

  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void greet() { session_->greet(); }

  void send_event(const std::string& line) { session_->send_event(line); }

  void migration_changed() { session_->migration_changed(); }

  [[nodiscard]] bool dead() const { return dead_ || (at_end_ && queue_.empty()); }

 private:
  // The two callbacks end with remove_dead(), which may destroy this.
  void on_readable() {
    std::array<char, kReadBytes> bytes{};
    const ssize_t got = ::recv(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got > 0) {
      session_->receive({bytes.data(), static_cast<std::size_t>(got)});
    } else if (got == 0) {
      at_end_ = true;  // It may still read: what was answered is sent before the end.
      readable_.reset();
    } else if (errno != EAGAIN && errno != EINTR) {
      dead_ = true;
    }
    server_.remove_dead();
  }

  void on_writable() {
    flush();
    server_.remove_dead();
  }

  void send(const std::string& line) {
    if (dead_ || deaf_) {
      return;
    }
    queue_ += line;
    flush();
    if (queue_.size() > kMaxQueuedBytes) {
      base::log(base::LogLevel::kWarning, "qmp.client_dropped socket={} unread_bytes={} reason={}",
                listener_.path, queue_.size(), "it does not read its answers");
      dead_ = true;
    }
  }

  void flush() {
    std::size_t sent = 0;
    while (sent < queue_.size() && !deaf_) {
      const ssize_t put = ::send(fd_.get(), queue_.data() + sent, queue_.size() - sent,
                                 MSG_DONTWAIT | MSG_NOSIGNAL);
      if (put >= 0) {
        sent += static_cast<std::size_t>(put);
      } else if (errno == EAGAIN) {
        break;
      } else if (errno != EINTR) {
        deaf_ = true;
        sent = queue_.size();
      }
    }
    queue_.erase(0, sent);
    if (queue_.empty()) {
      writable_.reset();
    } else if (writable_ == nullptr) {
      writable_ = server_.loop_.on_writable(fd_.get(), [this] { on_writable(); });
    }
  }

  MonitorServer& server_;
  Listener& listener_;
  const base::OwnedFd fd_;
  const std::unique_ptr<Session> session_;
  std::string queue_;
  bool at_end_ = false;
  // It reads no more, and may have gone. What it sent before is still obeyed: a cancel is sent by
  // somebody who does not wait for the answer.
  bool deaf_ = false;
  bool dead_ = false;
  std::unique_ptr<base::EventLoop::Handle> readable_;
  std::unique_ptr<base::EventLoop::Handle> writable_;
};

MonitorServer::MonitorServer(base::EventLoop& loop, CommandContext& context)
    : loop_(loop), context_(context) {
}

MonitorServer::~MonitorServer() {
  close();
}

void MonitorServer::close() {
  clients_.clear();  // Before the listeners that they count themselves at.
  listeners_.clear();
}

base::Outcome MonitorServer::listen(const std::string& path, Speaks speaks) {
  const sockaddr_un address = TRY(address_of(path));
  base::OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) {
    return base::fail_errno(base::ErrorKind::kFailed, "socket", "cannot make a control socket");
  }
  TRY(bind_path(fd.get(), address, path));
  auto listener = std::make_unique<Listener>();
  listener->path = path;
  listener->speaks = speaks;
  listener->fd = std::move(fd);
  Listener& added = *listener;
  added.watch = loop_.on_readable(added.fd.get(), [this, &added] { accept(added); });
  listeners_.push_back(std::move(listener));
  return base::Done{};
}

void MonitorServer::accept(Listener& listener) {
  base::OwnedFd fd(::accept4(listener.fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.valid()) {
    admit(listener, std::move(fd));
  } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
    // It would stay readable, and the loop would do nothing else.
    base::log(base::LogLevel::kWarning, "qmp.accept_failed socket={} errno={}", listener.path,
              errno);
    listener.watch.reset();
    listener.pause = loop_.after(kAcceptPause, [this, &listener] {
      listener.watch =
          loop_.on_readable(listener.fd.get(), [this, &listener] { accept(listener); });
      listener.pause.reset();
    });
  }
}

void MonitorServer::admit(Listener& listener, base::OwnedFd fd) {
  if (listener.clients >= kMaxClients) {
    base::log(base::LogLevel::kWarning, "qmp.client_refused socket={} clients={}", listener.path,
              listener.clients);
    return;
  }
  clients_.push_back(std::make_unique<Client>(*this, listener, std::move(fd)));
  clients_.back()->greet();
}

void MonitorServer::broadcast(std::string_view name, const Json& data) {
  const std::string line = event_line(name, data);
  for (const auto& client : clients_) {
    client->send_event(line);
  }
  // Not remove_dead(): a command that raises an event is a call from inside one of them. The
  // dead are removed with the next callback of any client; they hold no more than their queue.
}

void MonitorServer::migration_changed() {
  for (const auto& client : clients_) {
    client->migration_changed();
  }
}

void MonitorServer::remove_dead() {
  clients_.remove_if([](const std::unique_ptr<Client>& client) { return client->dead(); });
}

}  // namespace towline::monitor
