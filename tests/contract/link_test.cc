// What a socket promises when the process at its other end dies or stops.
#include <linux/net_tstamp.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include "tests/contract/tcp.h"

namespace towline::contract {
namespace {

/// Sends until the kernel takes no more and reports how much it took. System calls only.
void send_until_full(int socket, int report) {
  static std::array<char, 65536> buffer{};
  std::uint64_t accepted = 0;
  for (;;) {
    const ssize_t sent = ::send(socket, buffer.data(), buffer.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      break;
    }
    accepted += static_cast<std::uint64_t>(sent);
  }
  (void)!::write(report, &accepted, sizeof accepted);
}

/// A child that filled the socket, with bytes of ours unread in its own queue, and was killed.
struct KilledSender {
  TcpPair link = TcpPair::connect();
  std::uint64_t accepted = 0;

  KilledSender() {
    // Bytes that nobody read make the dying socket reset the connection instead of closing it.
    REQUIRE(::send(link.far.get(), "unread", 6, MSG_NOSIGNAL) == 6);
    wait_until_readable(link.near.get(), 6);
    std::array<int, 2> report{};
    REQUIRE(::pipe(report.data()) == 0);
    Child sender([&] {
      send_until_full(link.near.get(), report[1]);
      ::pause();
    });
    REQUIRE(::read(report[0], &accepted, sizeof accepted) == sizeof accepted);
    link.near.reset();
    sender.kill_and_reap();
    ::close(report[0]);
    ::close(report[1]);
  }
};

TEST_CASE("a killed sender's kernel had accepted bytes that never arrive") {
  KilledSender sender;
  REQUIRE(sender.accepted > 0);
  std::uint64_t delivered = 0;
  std::vector<char> buffer(1U << 20U);
  for (;;) {
    const ssize_t got = ::recv(sender.link.far.get(), buffer.data(), buffer.size(), 0);
    if (got <= 0) {
      break;
    }
    delivered += static_cast<std::uint64_t>(got);
  }
  MESSAGE("accepted ", sender.accepted, ", delivered ", delivered);
  CHECK(delivered < sender.accepted);
}

TEST_CASE("a socket shows an error while bytes that arrived before it are still unread") {
  const KilledSender sender;
  pollfd wait{.fd = sender.link.far.get(), .events = POLLIN, .revents = 0};
  do {
    REQUIRE(::poll(&wait, 1, -1) == 1);
  } while ((wait.revents & POLLERR) == 0);
  std::array<char, 100> buffer{};
  CHECK(::recv(sender.link.far.get(), buffer.data(), buffer.size(), 0) == 100);
}

TEST_CASE("the kernel of a frozen process goes on acknowledging") {
  TcpPair link = TcpPair::connect();
  Child peer([] { ::raise(SIGSTOP); });
  link.far.reset();  // Only the child, which never reads, holds that end now.
  peer.wait_until_stopped();
  const int wanted = SOF_TIMESTAMPING_TX_ACK | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_ID |
                     SOF_TIMESTAMPING_OPT_TSONLY;
  REQUIRE(::setsockopt(link.near.get(), SOL_SOCKET, SO_TIMESTAMPING, &wanted, sizeof wanted) == 0);
  const std::vector<std::byte> bytes = numbered_bytes(10000);
  REQUIRE(::send(link.near.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == 10000);

  // The error queue tells when the last byte was acknowledged: an event, not a time.
  pollfd wait{.fd = link.near.get(), .events = 0, .revents = 0};
  REQUIRE(::poll(&wait, 1, -1) == 1);
  CHECK((wait.revents & POLLERR) != 0);
  tcp_info info{};
  socklen_t length = sizeof info;
  REQUIRE(::getsockopt(link.near.get(), IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
  CHECK(info.tcpi_unacked == 0);
  CHECK(info.tcpi_bytes_acked >= bytes.size());
  CHECK(peer.is_stopped());
}

void set_bound(int socket, int milliseconds) {
  REQUIRE(::setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof milliseconds) ==
          0);
}

/// A connection on which more was sent than its far end, which reads nothing, has room for.
struct ClosedWindow {
  TcpPair link = TcpPair::connect();
  std::uint64_t accepted = 0;

  explicit ClosedWindow(int bound_ms) {
    set_bound(link.near.get(), bound_ms);
    std::array<int, 2> report{};
    REQUIRE(::pipe(report.data()) == 0);
    send_until_full(link.near.get(), report[1]);
    REQUIRE(::read(report[0], &accepted, sizeof accepted) == sizeof accepted);
    ::close(report[0]);
    ::close(report[1]);
  }

  /// Blocks until the kernel has given it up; why.
  [[nodiscard]] int wait_until_given_up() const {
    pollfd wait{.fd = link.near.get(), .events = POLLERR, .revents = 0};
    REQUIRE(::poll(&wait, 1, -1) == 1);
    int error = 0;
    socklen_t size = sizeof error;
    REQUIRE(::getsockopt(link.near.get(), SOL_SOCKET, SO_ERROR, &error, &size) == 0);
    return error;
  }
};

TEST_CASE("a peer that reads nothing ends a connection with a bound on unacknowledged data") {
  const ClosedWindow bounded(100);
  CHECK(bounded.wait_until_given_up() == ETIMEDOUT);
}

TEST_CASE("without the bound a window may stay closed, and everything arrives when it opens") {
  const ClosedWindow lifted(100);
  set_bound(lifted.link.near.get(), 0);  // As it is done: when the window is closed already.
  const ClosedWindow bounded(100);
  CHECK(bounded.wait_until_given_up() == ETIMEDOUT);
  pollfd look{.fd = lifted.link.near.get(), .events = POLLERR, .revents = 0};
  CHECK(::poll(&look, 1, 0) == 0);
  std::vector<char> buffer(1U << 20U);
  for (std::uint64_t left = lifted.accepted; left > 0;) {
    const ssize_t got = ::recv(lifted.link.far.get(), buffer.data(), buffer.size(), 0);
    REQUIRE(got > 0);
    left -= static_cast<std::uint64_t>(got);
  }
}

}  // namespace
}  // namespace towline::contract
