#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/sync.h"
#include "base/thread.h"
#include "runtime/core/backoff.h"
#include "runtime/migration.h"
#include "runtime/options.h"
#include "runtime/standby/handover.h"
#include "runtime/standby/ledger.h"

namespace towline::runtime {

/// The source's side of its page server: starts or finds one, gives it ledger and memory, and finds
/// another when that one is gone. Thread: tl-standby.
///
/// The life of one: open() returns when the first server has everything. From there on its loss
/// disturbs nothing; report() says so. A server that does not answer (stopped, say) is as good as
/// lost. The destructor closes the connection: the server then acts as the ledger's phase says,
/// once this process is gone.
class StandbyLink {
 public:
  /// `files`: of guest memory, borrowed for the link's life, numbered as in the ledger's record.
  /// Errors: kFailed, kDisconnected, kRefused: there is no page server, and why.
  static base::Expected<std::unique_ptr<StandbyLink>> open(const PageServerChoice& choice,
                                                           std::shared_ptr<StandbyLedger> ledger,
                                                           std::vector<int> files);

  StandbyLink(const StandbyLink&) = delete;
  StandbyLink& operator=(const StandbyLink&) = delete;
  ~StandbyLink();

  /// Some page server has everything now. Threads: any.
  [[nodiscard]] bool stands_by() const EXCLUDES(mutex_);

  /// Waits until stands_by(). Errors: kDisconnected, with the reason, after `patience`.
  base::Outcome await(std::chrono::milliseconds patience) const EXCLUDES(mutex_);

  [[nodiscard]] PageServerReport report() const EXCLUDES(mutex_);

 private:
  StandbyLink(PageServerChoice choice, std::shared_ptr<StandbyLedger> ledger,
              std::vector<int> files, base::OwnedFd stop);

  base::Outcome hand_over();
  base::Expected<base::OwnedFd> reach() const;
  void run();
  enum class Loss : std::uint8_t { kNotAtAll, kGone, kSilent };
  Loss wait_until_lost();
  bool pause();

  const PageServerChoice choice_;
  const std::shared_ptr<StandbyLedger> ledger_;  // shared: with the driver, which writes it.
  const std::vector<int> files_;
  const base::OwnedFd stop_;

  mutable base::Mutex mutex_;
  mutable base::Condition changed_;
  PageServerReport report_ GUARDED_BY(mutex_);

  // tl-standby's own, after open().
  base::OwnedFd socket_;
  bool answers_pings_ = false;  // The server behind it; an older one does not.
  base::OwnedFd process_;       // Its pidfd, if it was started from here and can be seen.
  Backoff backoff_;
  base::NamedThread thread_;
};

}  // namespace towline::runtime
