#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "runtime/options.h"
#include "runtime/ports.h"

/// The public face of the migration: start one, steer it, look at it.
namespace towline::runtime {

/// QEMU's MigrationStatus; to_string() gives QEMU's names.
enum class MigrationStatus : std::uint8_t {
  kNone,
  kSetup,
  kActive,
  kPreSwitchover,
  kDevice,
  kPostcopyDevice,
  kPostcopyActive,
  kPostcopyPaused,
  kPostcopyRecoverSetup,
  kPostcopyRecover,
  kCompleted,
  kFailed,
  kCancelling,
  kCancelled,
};

std::string_view to_string(MigrationStatus status);

/// No further change will come.
[[nodiscard]] bool is_final(MigrationStatus status);

/// The loss of the link shows in it.
[[nodiscard]] bool shows_a_loss(MigrationStatus status);

/// What connects both ends just now. Unlike the status, it is told at once.
enum class LinkState : std::uint8_t {
  kUp,
  kLost,        ///< Nobody is connected: the source tries again, or waits to be told to.
  kRecovering,  ///< The source has come back, and both ends compare what is missing.
};

std::string_view to_string(LinkState state);

/// Stalls as the target's fault service sees them, from the kernel's event to the wake.
struct FaultReport {
  std::uint64_t served = 0;       ///< Faults that needed the network.
  std::uint64_t local = 0;        ///< Faults answered without it (already here, zero).
  std::uint64_t outstanding = 0;  ///< Waiting now.
  double p50_us = 0;
  double p90_us = 0;
  double p99_us = 0;
  double max_us = 0;
  std::array<std::uint64_t, 24> log2_us{};  ///< Bucket n: [2^n, 2^(n+1)) µs; last one open.
};

/// What a target that lost its source does about it. Target only.
struct SourceLossReport {
  SourceLoss policy = SourceLoss::kWait;
  std::chrono::seconds deadline{0};
  std::optional<std::chrono::seconds> paused_for;  ///< Counts towards the deadline.
  std::uint64_t poisoned_pages = 0;
  bool guest_ended = false;  ///< Given up with its source.
};

/// The process that holds the guest's memory besides the source.
struct PageServerReport {
  bool stands_by = false;    ///< It has everything: from here on the source may die.
  std::int64_t pid = 0;      ///< Of the present one, or of the last.
  std::uint64_t starts = 0;  ///< Handed over to so often; more than 1: it was replaced.
  std::string error;         ///< Why there is none now.
};

/// A snapshot of one migration. Fields that a side does not know are zero or absent.
struct MigrationReport {
  MigrationStatus status = MigrationStatus::kNone;
  LinkState link = LinkState::kUp;
  std::string error;      ///< Why it failed or paused; from the side that knew the cause.
  std::string overdue;    ///< What was lost on a link that lived, and which answer it left out.
  std::string waits_for;  ///< Before the switch: what the target has no room for, and the remedy.

  std::chrono::milliseconds total_time{0};
  std::chrono::milliseconds setup_time{0};
  std::optional<double> downtime_ms;  ///< Last guest instruction there to first one here.
  double downtime_error_ms = 0;       ///< Of the clock offset between both hosts.
  double expected_downtime_ms = 0;

  std::uint64_t total_bytes = 0;  ///< Guest memory.
  std::uint64_t transferred = 0;  ///< On all lanes, framing included. Bytes.
  std::uint64_t precopy_bytes = 0;
  std::uint64_t downtime_bytes = 0;
  std::uint64_t postcopy_bytes = 0;
  std::uint64_t remaining_bytes = 0;  ///< Source: not yet sent. Target: not yet here.
  std::uint64_t normal_pages = 0;     ///< Sent with their bytes.
  std::uint64_t zero_pages = 0;       ///< Sent as ranges.
  std::uint64_t dirty_sync_count = 0;
  std::uint64_t dirty_pages_rate = 0;  ///< Pages/s at the last sync.
  std::uint64_t pages_per_second = 0;
  double mbps = 0;  ///< Megabits/s, over the last window.
  std::uint64_t postcopy_requests = 0;
  std::uint64_t page_size = 4096;

  std::uint64_t pages_after_switch = 0;    ///< Pages that crossed after the switch.
  std::uint64_t duplicate_frames = 0;      ///< Arrived for a page that was here.
  std::uint64_t strangers_refused = 0;     ///< Connections that did not prove themselves.
  std::uint64_t epoch = 1;                 ///< Source: of the connections in use, or tried last.
  std::uint64_t recoveries = 0;            ///< Times that a lost link was re-tied.
  std::uint64_t lanes_replaced = 0;        ///< Lanes that were lost alone, without a pause.
  std::optional<double> last_recovery_ms;  ///< Source: from the loss to postcopy-active again.
  FaultReport faults;                      ///< Target only.
  SourceLossReport source_loss;            ///< Target only.
  std::optional<PageServerReport> page_server;  ///< Source with a page server only.
  std::optional<Uri> listening;                 ///< Target: the address with its real port.
};

/// Errors: kUnsupported: this kernel cannot do what the policy says.
base::Outcome check_source_loss(SourceLoss policy);

/// What a target does not hold.
struct MissingMemory {
  std::uint64_t pages = 0;
  std::uint64_t bytes = 0;
};

/// Told of what happens to a migration. The only interface for that: the product implements it once
/// (vmm/monitor/monitor.cc), where what is told becomes QMP events.
///
/// Threads: the migration's. Some calls are made with a lock of the migration held. So an
/// implementation must return soon and must not call the migration; it queues what it is told for a
/// thread of its own.
///
/// Order: on_status() is called once for each change, in the order of the changes. Calls from one
/// thread come in the order of what happened. Before a status is told, the page server's ledger has
/// whatever of it must outlive the process.
///
/// Lifetime: longer than the migration's.
class MigrationObserver {
 public:
  MigrationObserver() = default;
  MigrationObserver(const MigrationObserver&) = delete;
  MigrationObserver& operator=(const MigrationObserver&) = delete;
  virtual ~MigrationObserver() = default;

  virtual void on_status(MigrationStatus status) = 0;

  /// The link was lost, is being tied again, or is tied. At once, whatever the status says.
  virtual void on_link(LinkState state) { static_cast<void>(state); }

  /// Source: a pass begins, the first is 1; the flight of the switch is the last.
  virtual void on_pass(std::uint64_t pass) = 0;

  /// Source: the guest is parked for the switch.
  virtual void on_guest_stopped() = 0;

  /// Target: the guest runs here. Source: a guest that was parked belongs to this process again.
  virtual void on_guest_started() = 0;

  /// Target: the guest runs here, its source is away, and so much is only there.
  virtual void on_source_lost(const MissingMemory& missing) { static_cast<void>(missing); }
};

/// A guest on its way out of this process. All calls return at once. Threads: any.
class Outgoing {
 public:
  Outgoing() = default;
  Outgoing(const Outgoing&) = delete;
  Outgoing& operator=(const Outgoing&) = delete;
  virtual ~Outgoing() = default;  ///< Joins its threads; only after a final or paused status.

  /// Errors: kRefused when the machine cannot be moved now. A target that is not there shows up
  /// as kFailed in the report.
  static base::Expected<std::unique_ptr<Outgoing>> start(Machine& machine, const Uri& target,
                                                         const MigrationOptions& options,
                                                         MigrationObserver& observer);

  /// Switch as soon as the pass in progress is done.
  virtual void start_postcopy() = 0;

  /// The guest, which is parked for the switch, goes over. Errors: kRefused: it does not wait for
  /// that word.
  virtual base::Outcome continue_switch() = 0;

  /// Errors: kRefused after the point of no return.
  virtual base::Outcome cancel() = 0;

  virtual void set_bandwidth(std::uint64_t max_bandwidth, std::uint64_t max_postcopy) = 0;

  [[nodiscard]] virtual MigrationReport report() const = 0;

  /// Ends the link in post-copy; the migration goes on by resume() only.
  /// Errors: kRefused when it is not in post-copy.
  virtual base::Outcome pause() = 0;

  /// Reconnects now, to `target` or, without one, to the addresses it knows, whatever automatic
  /// recovery does. Errors: kRefused when nothing is paused.
  virtual base::Outcome resume(const std::optional<Uri>& target) = 0;

  /// The last resort: the guest runs here again. The caller vouches that nobody runs it, or ever
  /// will, at the target. Errors: kRefused except while the order's fate is unknown.
  virtual base::Outcome take_back() = 0;

  /// After the run order: the guest's last copy may be here. Not set: nothing is lost by ending.
  [[nodiscard]] virtual bool holds_the_guest() const = 0;

  /// After the run order: a page server has the guest too and goes on when this process ends.
  [[nodiscard]] virtual bool may_be_left() const { return false; }
};

/// A guest on its way into this process. Threads: any.
class Incoming {
 public:
  Incoming() = default;
  Incoming(const Incoming&) = delete;
  Incoming& operator=(const Incoming&) = delete;
  virtual ~Incoming() = default;

  /// Binds and listens. Errors: kRefused (bad address, not local and unprotected), kFailed with
  /// the errno of bind() or of userfaultfd's set-up.
  static base::Expected<std::unique_ptr<Incoming>> listen(Machine& machine, const Uri& at,
                                                          const MigrationOptions& options,
                                                          MigrationObserver& observer);

  [[nodiscard]] virtual MigrationReport report() const = 0;

  /// Ends the link in post-copy; connections are refused until recover_at().
  /// Errors: kRefused when it is not in post-copy.
  virtual base::Outcome pause() = 0;

  /// While paused: waits for the source at a further address too (the first one stays bound).
  /// Repeatable. Errors: kRefused when nothing is paused; as listen() for the address.
  virtual base::Outcome recover_at(const Uri& at) = 0;

  /// What becomes of the guest if the source stays away; also while it is away. Threads: any.
  /// Errors: kUnsupported: this kernel cannot poison pages.
  virtual base::Outcome set_source_loss(SourceLoss policy, std::chrono::seconds deadline) = 0;

  /// Does it now (kPoison or kGiveUp), and for good: the source is not let in any more.
  /// Errors: kRefused except while the guest runs here and the source is away.
  virtual base::Outcome give_up_source(SourceLoss how) = 0;

  /// Pages are missing: the guest here, if it runs, depends on the source.
  [[nodiscard]] virtual bool misses_pages() const = 0;
};

}  // namespace towline::runtime
