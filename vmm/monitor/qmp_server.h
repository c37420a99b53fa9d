#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/event_loop.h"
#include "base/fd.h"
#include "vmm/monitor/commands.h"
#include "vmm/monitor/qmp_session.h"

namespace towline::monitor {

/// What a client may leave unread before it is dropped: far beyond any answer, far below what
/// would hurt. Bytes. (Guess.)
inline constexpr std::size_t kMaxQueuedBytes = 1U << 20U;

/// Clients of one socket at a time. (Guess.)
inline constexpr std::size_t kMaxClients = 64;

/// Serves QMP on unix sockets, each with any number of clients. No client waits for another: what
/// one does not read is queued for it, and beyond kMaxQueuedBytes it is dropped.
///
/// Threads: the loop's.
class QmpServer {
 public:
  /// Both outlive this.
  QmpServer(base::EventLoop& loop, CommandContext& context);
  ~QmpServer();
  QmpServer(const QmpServer&) = delete;
  QmpServer& operator=(const QmpServer&) = delete;

  /// Binds `path` (mode 0600; a socket that nobody answers at is replaced) and accepts clients.
  /// `events`: whether they are sent any.
  ///
  /// Errors: kRefused for a path that is too long or in use, kFailed with errno otherwise.
  base::Outcome listen(const std::string& path, bool events);

  /// Drops every client and takes the sockets away.
  void close();

  /// Sends an event to every client that negotiated and wants events. `data` may be null.
  void broadcast(std::string_view name, const Json& data);

 private:
  struct Listener;
  class Client;

  void accept(Listener& listener);
  void admit(Listener& listener, base::OwnedFd fd);
  void remove_dead();

  base::EventLoop& loop_;
  CommandContext& context_;
  std::list<std::unique_ptr<Listener>> listeners_;
  std::list<std::unique_ptr<Client>> clients_;
};

}  // namespace towline::monitor
