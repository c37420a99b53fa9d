#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/event_loop.h"
#include "base/fd.h"
#include "runtime/standby/handover.h"
#include "runtime/standby/kept_machine.h"
#include "runtime/standby/ledger.h"
#include "runtime/standby/record.h"
#include "tools/page_server/fd_store.h"
#include "tools/page_server/kept_guest.h"
#include "tools/page_server/kept_migrations.h"
#include "vmm/monitor/monitor.h"

/// The page server's business: it holds what a source gave it, watches that source, and becomes the
/// migration's source itself when that process is gone.
///
/// 1. A source connects and hands over ledger and memory (runtime/standby/handover.h).
/// 2. Silence. What happens is in the ledger.
/// 3. The connection ends. The ledger says that all is over: forgotten.
/// 4. Else, and only once the source's process has ended: a driver goes on, as its heir.
/// 4'. The order was never given, or never will be obeyed: the guest is kept, parked, until its
///    user moves it to another target, in the same ledger. A restarted daemon is at 4 or 4' again.
/// 5. The move is complete: a daemon waits for the next source, any other server ends.
namespace towline::tools {

/// Threads: the loop's.
class PageServer {
 public:
  struct Parts {
    base::EventLoop& loop;
    monitor::Monitor& monitor;
    KeptGuest& guest;
    KeptMigrations& factory;
    FdStore& store;
  };

  /// `daemon`: waits for a next source when one is done with.
  PageServer(const Parts& parts, bool daemon);

  PageServer(const PageServer&) = delete;
  PageServer& operator=(const PageServer&) = delete;
  ~PageServer();

  /// Errors: kRefused: the path is taken.
  base::Outcome listen(const std::string& path);

  /// Takes the source at the other end of `socket`.
  void serve(base::OwnedFd socket);

  /// Goes on with what a service manager kept over this program's restart, if anything.
  base::Outcome restore(std::vector<KeptFd> kept);

  /// Removes the socket's name.
  void close();

 private:
  /// What a source gave.
  struct Session {
    std::shared_ptr<runtime::StandbyLedger> ledger;  // shared: with the driver.
    runtime::StandbyRecord record;
    std::vector<base::OwnedFd> files;
    std::int64_t source = 0;     ///< Its pid.
    base::OwnedFd source_ended;  ///< A pidfd; not valid: it had ended before.
    std::unique_ptr<base::EventLoop::Handle> watch;
    base::OwnedFd claim;
    bool kept_elsewhere = false;  ///< The service manager has confirmed that it holds all of it.
  };

  /// A connection, until it has handed something over or is dropped.
  struct Visitor {
    base::OwnedFd socket;
    std::unique_ptr<base::EventLoop::Handle> readable;
  };

  void on_readable(Visitor* visitor);
  void answer(Visitor* visitor);
  void drop(Visitor* visitor);
  base::Expected<Session> judge(int socket, runtime::Handover handover) const;
  base::Expected<Session> session_of(runtime::Handover handover) const;
  base::Outcome take(Session session);
  void on_source_ended();
  void settle();
  base::Outcome inherit(const runtime::StandbyLedger::Words& words, runtime::Ownership owner);
  base::Outcome become_source(const runtime::StandbyLedger::Words& words);
  void hold_parked();
  void on_status(runtime::MigrationStatus status);
  void finish();
  void forget(const std::string& why);
  void keep_elsewhere();

  const Parts parts_;
  const bool daemon_;
  std::string path_;
  base::OwnedFd listener_;
  std::unique_ptr<base::EventLoop::Handle> accepting_;
  std::vector<std::unique_ptr<Visitor>> visitors_;
  Visitor* source_ = nullptr;  // The one whose session this is, while it is connected.
  std::optional<Session> session_;
  std::unique_ptr<base::EventLoop::Handle> retry_;
  std::unique_ptr<runtime::KeptMachine> machine_;
};

/// To the source that started this process, at the other end of `socket`: it cannot begin, for this
/// reason. A source looks at the answer, and its user at the source.
void refuse_source(int socket, const std::string& reason);

}  // namespace towline::tools
