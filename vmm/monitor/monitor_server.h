#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/event_loop.h"
#include "base/fd.h"
#include "vmm/monitor/commands.h"
#include "vmm/monitor/session.h"

namespace towline::monitor {

/// What a client may leave unread before it is dropped: far beyond any answer, far below what
/// would hurt. Bytes. (Guess.)
inline constexpr std::size_t kMaxQueuedBytes = 1U << 20U;

/// Clients of one socket at a time. (Guess.)
inline constexpr std::size_t kMaxClients = 64;

/// What is spoken on a socket.
enum class Speaks : std::uint8_t {
  kQmp,
  kQmpWithoutEvents,  ///< For scripts that read one reply per recv().
  kHuman,             ///< The human monitor's lines and prompt.
};

/// Serves QMP and the human monitor on unix sockets, each with any number of clients. No client
/// waits for another: what one does not read is queued for it, and beyond kMaxQueuedBytes it is
/// dropped.
///
/// Threads: the loop's.
class MonitorServer {
 public:
  /// Both outlive this.
  MonitorServer(base::EventLoop& loop, CommandContext& context);
  ~MonitorServer();
  MonitorServer(const MonitorServer&) = delete;
  MonitorServer& operator=(const MonitorServer&) = delete;

  /// Binds `path` (mode 0600; a socket that nobody answers at is replaced) and accepts clients.
  ///
  /// Errors: kRefused for a path that is too long or in use, kFailed with errno otherwise.
  base::Outcome listen(const std::string& path, Speaks speaks);

  /// Drops every client and takes the sockets away.
  void close();

  /// Sends an event to every client that negotiated and wants events. `data` may be null.
  void broadcast(std::string_view name, const Json& data);

  /// Tells every client's session that the migration out of here has another status.
  void migration_changed();

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
