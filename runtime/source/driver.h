#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/sync.h"
#include "base/thread.h"
#include "runtime/core/dirty_rounds.h"
#include "runtime/core/link_watch.h"
#include "runtime/core/owed_pages.h"
#include "runtime/core/push_order.h"
#include "runtime/core/source_session.h"
#include "runtime/link/backoff.h"
#include "runtime/link/handshake.h"
#include "runtime/migration.h"
#include "runtime/source/bulk_sender.h"
#include "runtime/source/counters.h"
#include "runtime/source/inbox.h"
#include "runtime/source/memory.h"
#include "runtime/source/request_server.h"
#include "runtime/standby/ledger.h"
#include "runtime/standby/link.h"
#include "runtime/standby/record.h"
#include "runtime/wire/lane_name.h"

namespace towline::runtime {

/// A guest on its way out: the session's thread, the lanes and the machine around the source
/// session.
///
/// Threads: tl-source (this class's run(): one phase after the other, in the order of design),
/// tl-control (reads the control lane into the inbox), tl-serve (RequestServer), tl-bulk-N
/// (BulkSender), tl-watch (signs of life, from the order on). tl-source steps the session; so do
/// tl-control, with the one word that must never be lost (*running*), and the user's take-back.
///
/// A link that is lost after the order ends an epoch: its lanes are shut and their threads joined,
/// and the next epoch begins with what the target says it misses (recovery.cc).
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
  base::Outcome cancel() override;
  void set_bandwidth(std::uint64_t max_bandwidth, std::uint64_t max_postcopy) override;
  [[nodiscard]] MigrationReport report() const override;
  [[nodiscard]] bool holds_the_guest() const override;
  [[nodiscard]] bool may_be_left() const override;
  base::Outcome pause() override;
  base::Outcome resume(const std::optional<Uri>& target) override;
  base::Outcome take_back() override;

 private:
  // Guess: a link that flaps is back in milliseconds; one that does not is asked for gently.
  static constexpr std::chrono::milliseconds kFirstPause{10};
  static constexpr std::chrono::milliseconds kLongestPause{2000};

  /// One try to reach the target again.
  struct Attempt {
    Uri at;
    bool by_hand = false;
  };

  // Phases, on tl-source. An error ends the migration as end() says.
  void run();
  void move();
  base::Outcome migrate();
  base::Outcome open_control();
  base::Outcome send_description();
  base::Outcome measure_clock();
  base::Outcome open_lanes();
  base::Outcome run_passes();
  base::Outcome sync_until_switch();
  base::Outcome send_round(const DirtyRounds::Round& round, std::uint32_t pass);
  base::Outcome switch_over();
  base::Outcome park();
  base::Outcome send_flight();
  base::Outcome await_running();
  base::Outcome push_until_complete();
  void end(const base::Error& reason);

  // Recovery, on tl-source.
  std::optional<Attempt> next_attempt();
  base::Outcome recover(const Attempt& attempt);
  base::Outcome reconnect(const Attempt& attempt);
  base::Outcome await_comparison();
  base::Outcome go_on(const Attempt& attempt);
  base::Outcome open_lanes_again(const Uri& at);
  [[nodiscard]] MigrationOptions patient() const;
  bool attempt_failed(const base::Error& reason) EXCLUDES(mutex_);
  void drop_epoch() EXCLUDES(mutex_);
  [[nodiscard]] SourceState state_now() const EXCLUDES(mutex_);
  base::Outcome on_missing(const wire::FrameHeader& header, std::span<const std::byte> payload)
      REQUIRES(mutex_);

  // A data lane that is lost alone, on tl-source.
  base::Outcome replace_lanes_until(const std::function<bool()>& done);
  base::Outcome replace_lane(const SourceInbox::BrokenLane& broken);
  base::Expected<std::unique_ptr<Lane>> open_in_place(const SourceInbox::BrokenLane& broken,
                                                      std::uint32_t attempt,
                                                      std::chrono::milliseconds patience);
  base::Outcome put_in_place(LaneName lane, std::uint32_t attempt, std::unique_ptr<Lane> opened);
  void end_lane(LaneName lane);
  void note_waiting_on(int fd, bool waits) EXCLUDES(mutex_);
  void end_waiting() REQUIRES(mutex_);
  std::unique_ptr<RequestServer> serve(std::unique_ptr<Lane> urgent, std::uint32_t attempt);
  [[nodiscard]] std::uint32_t& attempt_of(LaneName lane) REQUIRES(mutex_);
  // The page server: standby_notes.cc.
  base::Outcome find_page_server();
  [[nodiscard]] StandbyRecord record_of(std::vector<StandbyRecord::MemoryRegion> regions) const;
  base::Outcome leave_state(std::span<const std::byte> encoded);
  base::Outcome note_phase(StandbyPhase phase) const;
  base::Outcome note_epoch() const;
  base::Outcome note_address() const;
  void note_release() const;
  void note_over() const;
  void note_end() EXCLUDES(mutex_);

  // tl-watch.
  struct Watches;
  void watch();
  void judge(Watches& watches, Lane& control, const RequestServer* server, const BulkSender* bulk);
  void judge_lanes(Watches& watches, const BulkSender& bulk, bool control_lives);
  [[nodiscard]] std::optional<base::Duration> idle_together(Watches& watches, const Lane& control,
                                                            const RequestServer* server,
                                                            const BulkSender* bulk);
  void ping(Lane& control) const;
  void note_overdue(const std::string& what) EXCLUDES(mutex_);
  [[nodiscard]] std::string_view awaited() const REQUIRES(mutex_);

  void hear_the_target_out() EXCLUDES(mutex_);
  void read_to_the_end() EXCLUDES(mutex_);
  void close_lanes();
  [[nodiscard]] SourceRule rule_of_end(const base::Error& reason) const REQUIRES(mutex_);
  [[nodiscard]] std::string words_of_end(const base::Error& reason) const REQUIRES(mutex_);
  void resume_guest();

  // tl-control.
  void read_control(const std::shared_ptr<Lane>& lane);
  base::Outcome read_frames(Lane& lane);
  base::Outcome on_frame(Lane& lane, const wire::FrameHeader& header);
  void note_running() REQUIRES(mutex_);

  // Waits until `ready` holds; an error when the user, the target or a lane ended it before.
  // `ready` is called with the lock held.
  base::Outcome await(const std::function<bool()>& ready) EXCLUDES(mutex_);
  // As await(), for what a living target answers at once.
  base::Outcome await_answer(const std::function<bool()>& ready) EXCLUDES(mutex_);
  base::Outcome interrupted() const REQUIRES(mutex_);
  base::Outcome step(SourceEvent event) EXCLUDES(mutex_);
  base::Outcome step_locked(SourceEvent event) REQUIRES(mutex_);
  void show(MigrationStatus status) REQUIRES(mutex_);
  void lose(const base::Error& reason) EXCLUDES(mutex_);
  void lose_locked(const base::Error& reason) REQUIRES(mutex_);
  // From any thread: attempt `attempt` at a data lane broke.
  void lose_lane(LaneName lane, std::uint32_t attempt, const base::Error& reason) EXCLUDES(mutex_);
  void lose_lane_locked(LaneName lane, std::uint32_t attempt, const base::Error& reason)
      REQUIRES(mutex_);
  base::Outcome on_lane_lost(const wire::FrameHeader& header, std::span<const std::byte> payload)
      REQUIRES(mutex_);
  base::Outcome on_room(const wire::FrameHeader& header, std::span<const std::byte> payload)
      REQUIRES(mutex_);
  void note_dirty(const DirtyRounds::Round& round);
  void fill_rates(MigrationReport& report) const REQUIRES(mutex_);
  [[nodiscard]] std::uint64_t bytes_sent() const REQUIRES(mutex_);

  Machine& machine_;
  Uri target_;                // tl-source's own after the start: where the target was reached last.
  MigrationOptions options_;  // Bandwidths under mutex_; the rest constant.
  MigrationObserver& observer_;
  const base::Clock& clock_;
  const MemoryLayout layout_;
  SourceMemory memory_;
  OwedPages owed_;
  SourceCounters counters_;
  std::unique_ptr<PushOrder> order_;
  LaneIdentity identity_;  // Epoch: written by tl-source under mutex_.
  std::vector<std::byte> session_secret_;

  mutable base::Mutex mutex_;
  base::Condition changed_;
  SourceState state_ GUARDED_BY(mutex_) = SourceState::kConnecting;
  MigrationStatus shown_ GUARDED_BY(mutex_) = MigrationStatus::kNone;
  SourceInbox inbox_ GUARDED_BY(mutex_);
  std::string error_ GUARDED_BY(mutex_);
  std::string attempt_error_ GUARDED_BY(mutex_);  // Why the last attempt to reconnect failed.
  std::string overdue_ GUARDED_BY(mutex_);        // An answer that was lost, the last one.
  ClockOffset clock_offset_ GUARDED_BY(mutex_);
  base::Instant started_ GUARDED_BY(mutex_);
  base::Instant set_up_ GUARDED_BY(mutex_);
  base::Instant ended_ GUARDED_BY(mutex_);
  std::optional<double> downtime_ms_ GUARDED_BY(mutex_);
  std::uint64_t dirty_syncs_ GUARDED_BY(mutex_) = 0;
  std::uint64_t dirty_rate_ GUARDED_BY(mutex_) = 0;
  base::Instant last_sync_ GUARDED_BY(mutex_);
  std::uint64_t bytes_before_flight_ GUARDED_BY(mutex_) = 0;
  std::uint64_t bytes_after_flight_ GUARDED_BY(mutex_) = 0;
  std::uint64_t bytes_of_past_epochs_ GUARDED_BY(mutex_) = 0;
  std::uint64_t recoveries_ GUARDED_BY(mutex_) = 0;
  std::optional<double> last_recovery_ms_ GUARDED_BY(mutex_);
  bool replaces_lanes_ GUARDED_BY(mutex_) = false;       // Both ends of this epoch can.
  bool waits_for_room_ GUARDED_BY(mutex_) = false;       // Both ends can.
  std::uint32_t last_attempt_ GUARDED_BY(mutex_) = 0;    // At any lane of this epoch.
  std::uint32_t urgent_attempt_ GUARDED_BY(mutex_) = 0;  // At the lane in use.
  std::array<std::uint32_t, wire::kMaxBulkLanes> bulk_attempts_ GUARDED_BY(mutex_){};
  // What was owed before a recovery, until the target has said what it misses.
  std::optional<base::PageCount> left_before_ GUARDED_BY(mutex_);
  std::set<int> waits_on_ GUARDED_BY(mutex_);  // Lanes that are being opened.
  std::uint64_t lanes_replaced_ GUARDED_BY(mutex_) = 0;
  bool flight_leaves_ GUARDED_BY(mutex_) = false;  // tl-source is sending the run order.
  std::uint64_t pings_ GUARDED_BY(mutex_) = 0;     // Sent before the switch.
  bool watching_ GUARDED_BY(mutex_) = false;       // tl-watch looks at the lanes, without the lock.

  // The page server's share; both pointers are written by tl-source under mutex_. shared: the
  // ledger is its link's too.
  std::shared_ptr<StandbyLedger> ledger_;
  std::unique_ptr<StandbyLink> standby_;
  std::optional<PageServerReport> past_standby_ GUARDED_BY(mutex_);
  // Constant after the start:
  bool heir_ = false;  // It began after the order, in the place of a process that died.
  bool kept_ = false;  // The machine is what such a process left: nobody can run it here.
  bool kept_elsewhere_ = false;
  std::vector<StandbyRecord::MemoryRegion> kept_regions_;

  // Rates are taken over windows between reports.
  struct Sample {
    base::Instant at;
    std::uint64_t bytes = 0;
    std::uint64_t pages = 0;
  };

  mutable Sample window_ GUARDED_BY(mutex_);
  mutable double mbps_ GUARDED_BY(mutex_) = 0;
  mutable std::uint64_t pages_per_second_ GUARDED_BY(mutex_) = 0;

  // tl-source's own; lanes are published under mutex_, and live until the epoch is dropped.
  std::unique_ptr<DirtyRounds> rounds_;
  std::shared_ptr<Lane> control_;
  std::unique_ptr<BulkSender> bulk_;
  std::unique_ptr<RequestServer> server_;
  std::atomic<std::uint32_t> passes_done_{0};  // Written by tl-source, read by report().
  base::Instant parked_at_;
  bool logging_ = false;
  std::uint64_t target_incarnation_ = 0;
  Backoff backoff_{kFirstPause, kLongestPause};
  std::optional<base::Instant> lost_at_;  // Of the loss that is being recovered from.
  std::size_t attempts_ = 0;              // Since then.

  base::NamedThread control_thread_;
  base::NamedThread watch_thread_;
  base::NamedThread thread_;
};

}  // namespace towline::runtime
