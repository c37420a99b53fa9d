#include "runtime/standby/handover.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "runtime/link/handshake.h"
#include "runtime/standby/record.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail;
using base::fail_errno;
using base::Outcome;
using base::OwnedFd;

constexpr std::uint64_t kHandoverMagic = 0x3156484c57544c54;  // "TLTWLHV1"
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kMaxReasonBytes = 1024;
constexpr std::size_t kMaxFds = kMaxStandbyFiles + 1;

struct Offer {
  std::uint64_t magic = kHandoverMagic;
  std::uint32_t version = kVersion;
  std::uint32_t files = 0;
};

struct Answer {
  std::uint64_t magic = kHandoverMagic;
  std::uint64_t accepted = 0;
  std::int64_t pid = 0;
};

// What a server can, behind the answer of one that accepts.
constexpr std::uint64_t kAnswersPings = 1;

constexpr std::uint64_t kPingMagic = 0x314e50574c544c54;  // "TLTLWPN1"

struct Ping {
  std::uint64_t magic = kPingMagic;
  std::uint64_t number = 0;
};

constexpr std::size_t kControlBytes = CMSG_SPACE(sizeof(int) * kMaxFds);

struct alignas(cmsghdr) Control {
  std::array<char, kControlBytes> bytes{};
};

// Every descriptor that came is owned before anything is judged: none is leaked.
std::vector<OwnedFd> descriptors_of(msghdr& message) {
  std::vector<OwnedFd> found;
  for (cmsghdr* head = CMSG_FIRSTHDR(&message); head != nullptr;
       head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const std::size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(head) + i * sizeof fd, sizeof fd);
      found.emplace_back(fd);
    }
  }
  return found;
}

}  // namespace

Outcome send_handover(int socket, int ledger, const std::vector<int>& files) {
  if (files.empty() || files.size() > kMaxStandbyFiles) {
    return fail(ErrorKind::kFailed, "handover",
                fmt::format("guest memory in {} files; 1 to {} can be given to a page server",
                            files.size(), kMaxStandbyFiles));
  }
  std::vector<int> all{ledger};
  all.insert(all.end(), files.begin(), files.end());
  Offer offer;
  offer.files = static_cast<std::uint32_t>(files.size());
  Control control;
  iovec part{.iov_base = &offer, .iov_len = sizeof offer};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  message.msg_controllen = CMSG_SPACE(sizeof(int) * all.size());
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int) * all.size());
  std::memcpy(CMSG_DATA(head), all.data(), sizeof(int) * all.size());
  if (::sendmsg(socket, &message, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof offer)) {
    return fail_errno(ErrorKind::kDisconnected, "sendmsg",
                      "the page server does not take the guest's memory");
  }
  return base::Done{};
}

Expected<std::optional<Handover>> receive_handover(int socket) {
  Offer offer;
  Control control;
  iovec part{.iov_base = &offer, .iov_len = sizeof offer};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  message.msg_controllen = control.bytes.size();
  const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) {
    return fail_errno(ErrorKind::kDisconnected, "recvmsg");
  }
  std::vector<OwnedFd> fds = descriptors_of(message);
  if (got == 0) {
    return std::optional<Handover>();
  }
  const bool whole = got == static_cast<ssize_t>(sizeof offer) &&
                     (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
  if (!whole || offer.magic != kHandoverMagic || offer.version != kVersion) {
    return fail(ErrorKind::kCorrupt, "handover", "what came is no handover of this version");
  }
  if (offer.files == 0 || offer.files > kMaxStandbyFiles || fds.size() != offer.files + 1) {
    return fail(ErrorKind::kCorrupt, "handover",
                fmt::format("{} descriptors came with {} files", fds.size(), offer.files));
  }
  Handover handover;
  handover.ledger = std::move(fds.front());
  handover.files.assign(std::make_move_iterator(fds.begin() + 1),
                        std::make_move_iterator(fds.end()));
  return std::optional(std::move(handover));
}

Outcome send_reply(int socket, const HandoverReply& reply) {
  Answer answer;
  answer.accepted = reply.accepted ? 1 : 0;
  answer.pid = reply.pid;
  std::vector<std::byte> bytes(sizeof answer);
  std::memcpy(bytes.data(), &answer, sizeof answer);
  if (reply.accepted) {
    const auto can = std::as_bytes(std::span(&kAnswersPings, 1));
    bytes.insert(bytes.end(), can.begin(), can.end());
  } else {
    const auto reason =
        bytes_of(reply.reason).first(std::min(reply.reason.size(), kMaxReasonBytes));
    bytes.insert(bytes.end(), reason.begin(), reason.end());
  }
  if (::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    return fail_errno(ErrorKind::kDisconnected, "send");
  }
  return base::Done{};
}

Expected<HandoverReply> receive_reply(int socket) {
  std::vector<std::byte> bytes(sizeof(Answer) + kMaxReasonBytes);
  ssize_t got = 0;
  do {
    got = ::recv(socket, bytes.data(), bytes.size(), 0);
  } while (got < 0 && errno == EINTR);
  if (got <= 0) {
    return fail_errno(ErrorKind::kDisconnected, "recv",
                      got == 0 ? "the page server closed instead of answering"
                               : "the page server does not answer");
  }
  Answer answer;
  if (got < static_cast<ssize_t>(sizeof answer)) {
    return fail(ErrorKind::kCorrupt, "handover", "what answered is no page server");
  }
  std::memcpy(&answer, bytes.data(), sizeof answer);
  if (answer.magic != kHandoverMagic) {
    return fail(ErrorKind::kCorrupt, "handover", "what answered is no page server");
  }
  HandoverReply reply;
  reply.accepted = answer.accepted == 1;
  reply.pid = answer.pid;
  const auto rest =
      std::span(bytes).subspan(sizeof answer, static_cast<std::size_t>(got) - sizeof answer);
  if (!reply.accepted) {
    reply.reason = text_of(rest);
  } else if (std::uint64_t can = 0; rest.size() >= sizeof can) {
    std::memcpy(&can, rest.data(), sizeof can);
    reply.answers_pings = (can & kAnswersPings) != 0;
  }
  return reply;
}

Outcome send_ping(int socket, std::uint64_t number) {
  Ping ping;
  ping.number = number;
  const ssize_t put = ::send(socket, &ping, sizeof ping, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (put < 0 && errno != EAGAIN && errno != EINTR) {
    return fail_errno(ErrorKind::kDisconnected, "send");
  }
  return base::Done{};
}

Expected<std::optional<std::uint64_t>> receive_ping(int socket) {
  std::array<std::byte, sizeof(Ping) + 1> bytes{};
  const ssize_t got = ::recv(socket, bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got < 0) {
    return fail_errno(ErrorKind::kDisconnected, "recv");
  }
  if (got == 0) {
    return std::optional<std::uint64_t>();
  }
  Ping ping;
  std::memcpy(&ping, bytes.data(), sizeof ping);
  if (got != static_cast<ssize_t>(sizeof ping) || ping.magic != kPingMagic) {
    return fail(ErrorKind::kCorrupt, "handover", "what came is no ping");
  }
  return std::optional(ping.number);
}

Expected<PeerProcess> trusted_peer(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return fail_errno(ErrorKind::kRefused, "SO_PEERCRED");
  }
  if (peer.uid != ::geteuid() && peer.uid != 0) {
    return fail(ErrorKind::kRefused, "page server",
                fmt::format("user {} may not give memory to, or take it from, user {}'s process",
                            peer.uid, ::geteuid()));
  }
  return PeerProcess{peer.pid, peer.uid};
}

}  // namespace towline::runtime
