#include "tests/contract/tcp.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <string>

#include <doctest/doctest.h>

namespace towline::contract {

TcpPair TcpPair::connect() {
  const base::OwnedFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  REQUIRE(::bind(listener.get(), generic, length) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  REQUIRE(::getsockname(listener.get(), generic, &length) == 0);
  TcpPair pair;
  pair.near.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(pair.near.get(), generic, length) == 0);
  pair.far.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  REQUIRE(pair.far.valid());
  const int on = 1;
  REQUIRE(::setsockopt(pair.near.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
  return pair;
}

std::vector<std::byte> numbered_bytes(std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) {
    bytes[i] = static_cast<std::byte>(i % 251);
  }
  return bytes;
}

void wait_until_readable(int fd, std::size_t bytes) {
  const int low_water = static_cast<int>(bytes);
  REQUIRE(::setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water) == 0);
  pollfd wait{.fd = fd, .events = POLLIN, .revents = 0};
  REQUIRE(::poll(&wait, 1, -1) == 1);
}

Child::Child(const std::function<void()>& body) : pid_(::fork()) {
  REQUIRE(pid_ >= 0);
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    body();
    ::_exit(0);
  }
}

void Child::kill_and_reap() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
}

int Child::wait_until_ended() {
  int status = 0;
  REQUIRE(::waitpid(pid_, &status, 0) == pid_);
  pid_ = -1;
  return status;
}

void Child::wait_until_stopped() const {
  int status = 0;
  REQUIRE(::waitpid(pid_, &status, WUNTRACED) == pid_);
  REQUIRE(WIFSTOPPED(status));
}

bool Child::is_stopped() const {
  std::ifstream stat("/proc/" + std::to_string(pid_) + "/stat");
  std::string text;
  std::getline(stat, text);
  const std::size_t behind_name = text.rfind(") ");
  return behind_name != std::string::npos && text.substr(behind_name + 2, 1) == "T";
}

}  // namespace towline::contract
