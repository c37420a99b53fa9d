#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

/// How a source gives its guest's memory to a page server: one message each way on a unix socket
/// (SOCK_SEQPACKET), and then, if the server says that it can, pings. The end of the connection
/// says that one of both is gone.
///
///   source → server   magic, version, number of files; with them the ledger and the files
///   server → source   magic, accepted or not, the server's process; a reason why not, or what it
///                     can (an older one says nothing there, an older source does not look)
///   source → server   magic, a number; and the same back. Only to a server that can
namespace towline::runtime {

/// Descriptors that a source gives away, and a server holds.
struct Handover {
  base::OwnedFd ledger;
  std::vector<base::OwnedFd> files;  ///< Of guest memory, as the record numbers them.
};

struct HandoverReply {
  bool accepted = false;
  std::int64_t pid = 0;
  std::string reason;          ///< Why not.
  bool answers_pings = false;  ///< It can; as received.
};

/// The process at the other end of a unix socket, as the kernel tells it.
struct PeerProcess {
  std::int64_t pid = 0;
  std::uint32_t uid = 0;
};

base::Outcome send_handover(int socket, int ledger, const std::vector<int>& files);

/// None: the peer is gone. Errors: kCorrupt: not a handover; the peer is to be dropped.
base::Expected<std::optional<Handover>> receive_handover(int socket);

base::Outcome send_reply(int socket, const HandoverReply& reply);

/// Waits as long as the socket's receive timeout says. Errors: kDisconnected, kCorrupt.
base::Expected<HandoverReply> receive_reply(int socket);

/// Never waits: what does not fit is not sent. Errors: kDisconnected.
base::Outcome send_ping(int socket, std::uint64_t number);

/// None: the peer is gone. Errors: kDisconnected, with EAGAIN when nothing is there; kCorrupt.
base::Expected<std::optional<std::uint64_t>> receive_ping(int socket);

/// Errors: kRefused when the peer is another user's process (root's apart).
base::Expected<PeerProcess> trusted_peer(int socket);

}  // namespace towline::runtime
