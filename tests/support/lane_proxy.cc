#include "tests/support/lane_proxy.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "base/ensure.h"
#include "runtime/link/sockets.h"
#include "runtime/wire/codec.h"

namespace towline::tests {
namespace {

namespace wire = runtime::wire;

constexpr std::size_t kGreeting = wire::kHeaderBytes + wire::kHelloBytes;

/// Sends a reset at once, also while a thread is inside recv() or send() of this socket.
void reset(int fd) {
  sockaddr nowhere{};
  nowhere.sa_family = AF_UNSPEC;
  // Not by the library's call, which a sanitizer takes for a new use of the descriptor.
  [[maybe_unused]] const long result = ::syscall(SYS_connect, fd, &nowhere, sizeof nowhere);
}

bool send_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (put <= 0) {
      return false;
    }
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
  return true;
}

void set_no_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

}  // namespace

LaneProxy::LaneProxy(runtime::Uri target, const std::string& at) : target_(std::move(target)) {
  auto where = runtime::Uri::parse(at);
  auto listening = runtime::listen_at(where.value());
  ENSURE(listening.ok(), "there is room for one more socket");
  at_ = listening.value().at;
  listening_ = std::move(listening).value().fd;
  thread_ = base::NamedThread("proxy", [this] { accept_all(); });
}

LaneProxy::~LaneProxy() {
  ending_ = true;
  stall_control(false);
  ::shutdown(listening_.get(), SHUT_RDWR);  // Wakes poll().
  thread_.join();
  std::list<std::unique_ptr<Link>> links;
  {
    const base::Lock lock(mutex_);
    links.swap(links_);
  }
  for (const auto& link : links) {
    ::shutdown(link->near.get(), SHUT_RDWR);
    ::shutdown(link->far.get(), SHUT_RDWR);
  }
}

void LaneProxy::accept_all() {
  while (!ending_) {
    pollfd waiting{.fd = listening_.get(), .events = POLLIN, .revents = 0};
    ::poll(&waiting, 1, -1);
    base::OwnedFd near(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!near.valid()) {
      continue;
    }
    auto far = runtime::connect_to(target_, std::chrono::seconds(5));
    if (!far.ok()) {
      continue;
    }
    set_no_delay(near.get());
    set_no_delay(far.value().get());
    auto link = std::make_unique<Link>();
    link->near = std::move(near);
    link->far = std::move(far).value();
    Link& made = *link;
    const base::Lock lock(mutex_);
    links_.push_back(std::move(link));
    made.to_target = base::NamedThread("proxy-out", [this, &made] { carry_to_target(made); });
    made.to_source = base::NamedThread("proxy-in", [&made] {
      std::vector<std::byte> buffer(256U << 10U);
      while (true) {
        const ssize_t got = ::recv(made.far.get(), buffer.data(), buffer.size(), 0);
        if (got > 0 && made.swallow.exchange(false)) {
          continue;
        }
        if (got <= 0 ||
            !send_all(made.near.get(), std::span(buffer).first(static_cast<std::size_t>(got)))) {
          break;
        }
      }
      if (!made.keeps_near) {
        ::shutdown(made.near.get(), SHUT_WR);
      }
    });
  }
}

void LaneProxy::carry_to_target(Link& link) {
  std::vector<std::byte> buffer(256U << 10U);
  std::size_t held = 0;
  bool known = false;
  while (true) {
    await_turn(link);
    const ssize_t got = ::recv(link.near.get(), buffer.data() + held, buffer.size() - held, 0);
    if (got <= 0) {
      break;
    }
    held += static_cast<std::size_t>(got);
    if (!known && held < kGreeting) {
      continue;
    }
    if (!known && !learn_lane(link, std::span(buffer).first(held))) {
      ::shutdown(link.near.get(), SHUT_RDWR);
      break;
    }
    known = true;
    if (link.flip.exchange(false)) {
      buffer[held / 2] ^= std::byte{1};
    }
    if (!send_all(link.far.get(), std::span(buffer).first(held))) {
      break;
    }
    held = 0;
  }
  if (!link.keeps_far) {
    ::shutdown(link.far.get(), SHUT_WR);
  }
}

bool LaneProxy::learn_lane(Link& link, std::span<const std::byte> start) {
  const auto hello = wire::decode_hello(start.subspan(wire::kHeaderBytes, wire::kHelloBytes));
  ENSURE(hello.ok(), "a source greets first");
  if (hello.value().role == wire::LaneRole::kControl) {
    const base::Lock lock(mutex_);
    link.control = true;
    return true;
  }
  if (refusing_ > 0) {
    --refusing_;
    return false;
  }
  const base::Lock lock(mutex_);
  link.lane = runtime::LaneName{hello.value().role, hello.value().lane};
  return true;
}

// Until there is something to take, and it may be taken.
void LaneProxy::await_turn(const Link& link) {
  pollfd waiting{.fd = link.near.get(), .events = POLLIN, .revents = 0};
  ::poll(&waiting, 1, -1);
  const base::Lock lock(mutex_);
  changed_.wait(mutex_, [&]() UNDER_LOCK { return !stalled_ || !link.control; });
}

void LaneProxy::stall_control(bool stalled) {
  const base::Lock lock(mutex_);
  stalled_ = stalled;
  changed_.notify_all();
}

bool LaneProxy::harm(runtime::LaneName lane, Harm how) {
  const base::Lock lock(mutex_);
  for (auto at = links_.rbegin(); at != links_.rend(); ++at) {
    Link& link = **at;
    if (link.lane != lane) {
      continue;
    }
    if (std::exchange(link.harmed, true)) {
      return false;
    }
    link.keeps_far = how == Harm::kResetAtSource;
    link.keeps_near = how == Harm::kResetAtTarget;
    switch (how) {
      case Harm::kReset:
        reset(link.near.get());
        reset(link.far.get());
        break;
      case Harm::kClose:
        ::shutdown(link.near.get(), SHUT_RDWR);
        ::shutdown(link.far.get(), SHUT_RDWR);
        break;
      case Harm::kResetAtSource:
        reset(link.near.get());
        break;
      case Harm::kResetAtTarget:
        reset(link.far.get());
        break;
      case Harm::kFlip:
        link.flip = true;
        break;
      case Harm::kSwallow:
        link.swallow = true;
        break;
    }
    return true;
  }
  return false;
}

void LaneProxy::cut() {
  const base::Lock lock(mutex_);
  for (const auto& link : links_) {
    reset(link->near.get());
    reset(link->far.get());
  }
}

}  // namespace towline::tests
