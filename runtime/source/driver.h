#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/sync.h"
#include "base/thread.h"
#include "runtime/core/dirty_rounds.h"
#include "runtime/core/owed_pages.h"
#include "runtime/core/push_order.h"
#include "runtime/core/source_protocol.h"
#include "runtime/link/handshake.h"
#include "runtime/migration.h"
#include "runtime/source/counters.h"
#include "runtime/source/epoch.h"
#include "runtime/source/memory.h"
#include "runtime/source/standby_notes.h"
#include "runtime/source/statistics.h"
#include "runtime/source/switch_flight.h"
#include "runtime/standby/ledger.h"
#include "runtime/standby/record.h"

namespace towline::runtime {

/// A guest on its way out. The brain (SourceProtocol) decides; this class tells it what happens,
/// and does what it says: effects at once, tasks on tl-source.
///
/// Threads: tl-source (carries out tasks, one after the other), tl-control (reads the control lane
/// into the brain), tl-serve (RequestServer), tl-bulk-N (BulkSender), tl-watch (signs of life). All
/// of them feed the brain, under one mutex.
class SourceDriver final : public Outgoing {
 public:
  SourceDriver(Machine& machine, Uri target, const MigrationOptions& options,
               MigrationObserver& observer);
  SourceDriver(const SourceDriver&) = delete;
  SourceDriver& operator=(const SourceDriver&) = delete;
  ~SourceDriver() override;

  void begin();

  /// Errors: kRefused: the guest is not this process's; kUnsupported: its memory is in no file.
  static base::Outcome check(Machine& machine);

  /// What a process that died left behind: the session goes on from its ledger.
  struct Legacy {
    std::shared_ptr<StandbyLedger> ledger;
    StandbyLedger::Words words;  ///< As that process left them; kOrdered or kServing.
    LaneIdentity identity;       ///< The epoch is the ledger's.
    std::vector<std::byte> session_secret;
    std::uint64_t target_incarnation = 0;
    std::string reason;  ///< What happened to the process.
    /// Somebody else holds ledger and memory too, and starts a process that goes on.
    bool kept_elsewhere = false;
  };

  /// Instead of begin(): the order was given, and the link to the target is lost.
  void begin_as_heir(Legacy legacy);

  /// What a page server keeps of a guest whose target never had it, and never will.
  struct Kept {
    std::shared_ptr<StandbyLedger> ledger;  ///< In the phase kParked.
    std::vector<StandbyRecord::MemoryRegion> regions;
    bool kept_elsewhere = false;  ///< As Legacy's.
  };

  /// Instead of begin(): to another target. The ledger goes on with this migration: *parked* until
  /// the order, and then this one's heir can be begun from it.
  void begin_from(Kept kept);

  void start_postcopy() override;
  base::Outcome continue_switch() override;
  base::Outcome cancel() override;
  void set_bandwidth(std::uint64_t max_bandwidth, std::uint64_t max_postcopy) override;
  [[nodiscard]] MigrationReport report() const override;
  [[nodiscard]] bool holds_the_guest() const override;
  [[nodiscard]] bool may_be_left() const override;
  base::Outcome pause() override;
  base::Outcome resume(const std::optional<Uri>& target) override;
  base::Outcome take_back() override;

 private:
  // The brain (driver.cc). feed() is the one way to it.
  base::Outcome feed(SourceInput input) EXCLUDES(mutex_);
  base::Outcome feed_locked(SourceInput input) REQUIRES(mutex_);
  void perform(const SourceEffect& effect) REQUIRES(mutex_);
  void tell(const SourceEffect& effect) REQUIRES(mutex_);
  void give_back(const SourceRule& rule) REQUIRES(mutex_);
  void note_running() REQUIRES(mutex_);
  void end_waiting() REQUIRES(mutex_);
  void start();

  // tl-source (tasks.cc).
  void run();

  // Only tl-source changes which epoch there is.
  [[nodiscard]] SourceEpoch& own_epoch() const UNCHECKED { return *epoch_; }

  std::optional<SourceTask> next_task() EXCLUDES(mutex_);
  base::Outcome carry_out(const SourceTask& task, SourceInput& done);
  base::Outcome open_control(const SourceTask& task, SourceInput& done);
  base::Outcome send_description();
  base::Outcome open_lanes(const SourceTask& task);
  base::Outcome measure_clock();
  base::Outcome begin_log();
  base::Outcome run_pass(std::uint32_t pass, SourceInput& done);
  base::Outcome send_round(const SourceTask& task, SourceInput& done);
  base::Outcome park();
  base::Outcome prepare_flight();
  base::Outcome send_flight();
  base::Outcome start_push();
  base::Outcome open_in_place(const SourceTask& task);
  base::Outcome put_in_place(const SourceTask& task);
  base::Outcome finish();
  base::Outcome read_to_the_end();
  base::Outcome resume_target(const SourceTask& task);
  base::Outcome send_on_control(wire::FrameType type, std::span<const std::byte> payload = {});
  void drop_epoch(SourceInput& done);
  void note_dirty(const DirtyRounds::Round& round);
  [[nodiscard]] LaneIdentity identity_of(const SourceTask& task) const;
  [[nodiscard]] MigrationOptions patient(const SourceTask& task) const EXCLUDES(mutex_);
  [[nodiscard]] WaitingOn waiting_on();
  std::unique_ptr<RequestServer> serve(std::unique_ptr<Lane> urgent, const SourceTask& task);
  [[nodiscard]] StandbyRecord record() const;

  // tl-control (control.cc).
  void read_control(const std::shared_ptr<Lane>& lane, std::uint64_t epoch);
  base::Outcome read_frames(Lane& lane);
  base::Outcome on_frame(Lane& lane, const wire::FrameHeader& header);
  base::Outcome on_missing(const wire::FrameHeader& header, std::span<const std::byte> payload,
                           SourceInput input);
  base::Outcome on_pong(std::span<const std::byte> payload, base::Instant received);

  // tl-watch (watch.cc).
  struct Watches;
  void watch();
  void judge(Watches& watches, const SourceEpoch::Glance& seen);
  void judge_lanes(Watches& watches, const SourceEpoch::Glance& seen, bool control_lives);
  [[nodiscard]] std::optional<base::Duration> idle_together(Watches& watches,
                                                            const SourceEpoch::Glance& seen) const;
  void lose(std::uint64_t epoch, bool silent, const base::Error& reason) EXCLUDES(mutex_);
  void lose_lane(LaneName lane, std::uint32_t attempt, std::uint64_t epoch,
                 const base::Error& reason) EXCLUDES(mutex_);
  void ping(Lane& control) const;
  void note_overdue(const std::string& what) EXCLUDES(mutex_);

  // report.cc.
  void fill_rates(MigrationReport& report) const REQUIRES(mutex_);
  [[nodiscard]] std::uint64_t bytes_sent() const REQUIRES(mutex_);

  Machine& machine_;
  MigrationOptions options_;  // Bandwidths under mutex_; the rest constant.
  MigrationObserver& observer_;
  const base::Clock& clock_;
  const MemoryLayout layout_;
  SourceMemory memory_;
  OwedPages owed_;
  SourceCounters counters_;
  std::unique_ptr<PushOrder> order_;
  LaneIdentity identity_;  // Constant after the start; epoch and attempt come with the task.
  std::vector<std::byte> session_secret_;
  StandbyNotes standby_;

  mutable base::Mutex mutex_;
  base::Condition changed_;
  SourceProtocol brain_ GUARDED_BY(mutex_);
  std::unique_ptr<SourceEpoch> epoch_ GUARDED_BY(mutex_);      // Changed by tl-source alone.
  std::set<int> waits_on_ GUARDED_BY(mutex_);                  // Connections that are being opened.
  std::span<const base::PageRange> named_ GUARDED_BY(mutex_);  // By the frame that is being read.
  mutable SourceStatistics statistics_ GUARDED_BY(mutex_);

  // tl-source's own.
  std::unique_ptr<DirtyRounds> rounds_;
  std::optional<SwitchFlight> flight_;
  DirtyRounds::Round last_round_;   // What the flight says was written last.
  std::unique_ptr<Lane> in_place_;  // Opened for a lane that was lost.

  base::NamedThread watch_thread_;
  base::NamedThread thread_;
};

}  // namespace towline::runtime
