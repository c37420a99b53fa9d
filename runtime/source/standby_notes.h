#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/sync.h"
#include "runtime/migration.h"
#include "runtime/standby/ledger.h"
#include "runtime/standby/link.h"
#include "runtime/standby/record.h"

namespace towline::runtime {

/// What a source writes down for whoever goes on when its process is gone, and the page server that
/// holds it. Without a page server every note does nothing.
///
/// At a page server itself (the guest is *kept*: what a process left behind) the ledger is that of
/// the process before.
///
/// Threads: any; find() and end() on tl-source.
class StandbyNotes {
 public:
  /// The guest is kept here. Before any other call.
  void keep(std::shared_ptr<StandbyLedger> ledger, std::vector<StandbyRecord::MemoryRegion> regions,
            bool kept_elsewhere);

  [[nodiscard]] bool kept() const { return kept_; }

  /// Everything that is large or slow, while the guest runs: record and memory to a page server, if
  /// one is wanted. Who asked for one does not want to switch without it.
  base::Outcome find(const Machine& machine, StandbyRecord record, const PageServerChoice& choice);

  /// Waits until a page server stands by. Errors: kDisconnected, after `patience`.
  base::Outcome await(std::chrono::milliseconds patience) const;

  /// Within the blackout: some writes to memory, and nobody is waited for. An acknowledgement would
  /// say that the server lived a moment ago, which is as much as is known without it.
  base::Outcome leave_state(const StandbyLedger::Parked& parked) const;

  base::Outcome note_ordered() const { return note(StandbyPhase::kOrdered); }

  base::Outcome note_epoch(std::uint64_t epoch) const;
  base::Outcome note_address(const Uri& at) const;

  /// An heir would have to ask the target if this could not be written; the log says so.
  void note_running() const;

  /// Before the guest may run here: what was left of it is old from then on, and must never be
  /// believed.
  void note_release() const;
  void note_over() const;

  /// A guest that runs on here needs nobody; what an heir could not give away, it keeps.
  void end() EXCLUDES(mutex_);

  /// A page server has everything, or somebody else has what is kept here.
  [[nodiscard]] bool kept_elsewhere() const EXCLUDES(mutex_);

  [[nodiscard]] std::optional<PageServerReport> report() const EXCLUDES(mutex_);

 private:
  base::Outcome note(StandbyPhase phase) const;
  [[nodiscard]] std::shared_ptr<StandbyLedger> ledger() const EXCLUDES(mutex_);

  mutable base::Mutex mutex_;
  // Shared: the ledger is its link's too.
  std::shared_ptr<StandbyLedger> ledger_ GUARDED_BY(mutex_);
  std::shared_ptr<StandbyLink> link_ GUARDED_BY(mutex_);
  std::optional<PageServerReport> past_ GUARDED_BY(mutex_);
  // Constant after keep():
  bool kept_ = false;
  bool kept_elsewhere_ = false;
  std::vector<StandbyRecord::MemoryRegion> regions_;
};

}  // namespace towline::runtime
