// What comes on a page server's socket, and what comes back. Input: one byte that says how many
// descriptors come with it, then the message. Every descriptor is owned, whatever is judged.
#include <sys/mman.h>
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <cstring>

#include "base/ensure.h"
#include "base/fd.h"
#include "runtime/standby/handover.h"

namespace base = towline::base;
namespace runtime = towline::runtime;

namespace {

constexpr std::size_t kMost = 8;

/// Sends `bytes` with `count` descriptors. False: the kernel does not carry that.
bool send(int socket, std::span<const std::uint8_t> bytes, std::size_t count, int fd) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMost)> control{};
  iovec part{.iov_base = const_cast<std::uint8_t*>(bytes.data()), .iov_len = bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (count > 0) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int) * count);
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(CMSG_DATA(head) + i * sizeof fd, &fd, sizeof fd);
    }
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const base::OwnedFd some(::memfd_create("fuzz", MFD_CLOEXEC));
  if (size == 0 || size > 4096) {
    return 0;
  }
  std::array<int, 2> ends{};
  ENSURE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) == 0, "a socket");
  const base::OwnedFd near(ends[0]);
  const base::OwnedFd far(ends[1]);
  const std::size_t count = data[0] % (kMost + 1);
  const std::span<const std::uint8_t> bytes(data + 1, size - 1);
  if (send(near.get(), bytes, count, some.get())) {
    const auto handover = runtime::receive_handover(far.get());
    if (handover.ok() && handover.value().has_value()) {
      ENSURE(handover.value()->ledger.valid() && handover.value()->files.size() + 1 == count,
             "as many as came");
    }
  }
  // The same bytes as an answer; one of no bytes is the peer's end.
  if (!bytes.empty() && send(far.get(), bytes, 0, -1)) {
    const auto reply = runtime::receive_reply(near.get());
    ENSURE(reply.ok() || !reply.error().detail.empty(), "says what is wrong");
  }
  // And as a sign of life.
  if (!bytes.empty() && send(near.get(), bytes, count, some.get())) {
    const auto ping = runtime::receive_ping(far.get());
    ENSURE(!ping.ok() || bytes.size() == 16, "a ping of its size");
  }
  return 0;
}
