#include "runtime/link/sockets.h"

#include <linux/filter.h>
#include <sys/socket.h>

#include <chrono>
#include <vector>

#include <doctest/doctest.h>

using namespace towline;
using namespace towline::runtime;

namespace {

/// Every packet that comes to the socket is lost: whoever connects is never answered.
void swallow_everything(int fd) {
  sock_filter drop{.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = 0};
  const sock_fprog program{.len = 1, .filter = &drop};
  REQUIRE(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
}

}  // namespace

TEST_CASE("who waits for an address that never answers is let go by a shutdown") {
  const Listening silent = listen_at(Uri::parse("tcp:127.0.0.1:0").value()).value();
  swallow_everything(silent.fd.get());
  std::vector<bool> told;
  const auto connected = connect_to(silent.at, std::chrono::hours(1), [&](int fd, bool waits) {
    told.push_back(waits);
    if (waits) {
      ::shutdown(fd, SHUT_RDWR);
    }
  });
  REQUIRE_FALSE(connected.ok());
  CHECK(connected.error().kind == base::ErrorKind::kDisconnected);
  CHECK(told == std::vector<bool>{true, false});
}

TEST_CASE("an address that never answers is given up in time, and named") {
  const Listening silent = listen_at(Uri::parse("tcp:127.0.0.1:0").value()).value();
  swallow_everything(silent.fd.get());
  const auto connected = connect_to(silent.at, std::chrono::milliseconds(20));
  REQUIRE_FALSE(connected.ok());
  CHECK(connected.error().detail.find(silent.at.to_string()) != std::string::npos);
}
