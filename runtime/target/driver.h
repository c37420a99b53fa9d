#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/sync.h"
#include "base/thread.h"
#include "runtime/core/description.h"
#include "runtime/core/link_watch.h"
#include "runtime/core/page_map.h"
#include "runtime/core/page_receiver.h"
#include "runtime/core/request_table.h"
#include "runtime/core/target_protocol.h"
#include "runtime/link/listener.h"
#include "runtime/migration.h"
#include "runtime/target/fault_service.h"
#include "runtime/target/memory.h"
#include "runtime/target/memory_headroom.h"
#include "runtime/target/receivers.h"
#include "runtime/target/request_sender.h"

namespace towline::runtime {

/// A guest on its way in: the listener, the lanes, the fault service and the threads around the
/// target's brain. What happens is fed to that; what it answers is performed here, and nothing is
/// decided.
///
/// Threads: tl-listen (handshakes), tl-control (run_control(): reads the control lane), tl-load
/// (loads the machine and starts it: both may wait for pages), tl-urgent and tl-bulk-N
/// (Receivers), tl-fault (FaultService), tl-ask (RequestSender), tl-watch (looks for signs of
/// life), tl-linger.
///
/// A source that comes back in a greater epoch gets a tl-control of its own, which joins the one
/// before it and every lane of the old epoch before it says so (recovery.cc).
class TargetDriver final : public Incoming, private Receivers::Owner {
 public:
  static base::Expected<std::unique_ptr<TargetDriver>> listen(Machine& machine, const Uri& at,
                                                              const MigrationOptions& options,
                                                              MigrationObserver& observer);
  TargetDriver(const TargetDriver&) = delete;
  TargetDriver& operator=(const TargetDriver&) = delete;

  /// The machine's vCPUs have ended, or nothing is missing: they would wait for ever otherwise.
  ~TargetDriver() override;

  [[nodiscard]] MigrationReport report() const override;
  [[nodiscard]] bool misses_pages() const override;
  base::Outcome pause() override;
  base::Outcome recover_at(const Uri& at) override;
  base::Outcome set_source_loss(SourceLoss policy, std::chrono::seconds deadline) override;
  base::Outcome give_up_source(SourceLoss how) override;

 private:
  /// All that exists from an accepted description on. Made once.
  struct Transfer {
    Transfer(const MemoryLayout& layout, std::size_t bulk_lanes, Receivers::Owner& owner)
        : map(layout.pages()), lanes(layout, map, bulk_lanes, owner) {}

    PageMap map;
    RequestTable requests{1U << 16U};  // Guess: far more than vCPUs and kernel workers can wait.
    std::unique_ptr<RequestSender> sender;
    std::unique_ptr<TargetMemory> memory;
    std::unique_ptr<PageReceiver> receiver;
    Receivers lanes;
    std::unique_ptr<FaultService> faults;
  };

  /// What tl-control has in hand.
  struct Reading {
    std::shared_ptr<Lane> lane;
    wire::FrameHeader header;  // Read last; its payload may still be on the lane.
    std::vector<base::PageRange> stale;
    std::vector<std::byte> encoded_state;  // Left to tl-load by the brain's task.
  };

  TargetDriver(Machine& machine, const MigrationOptions& options, MigrationObserver& observer);

  // The brain (driver.cc). Errors of feed(): it was refused, or a task failed.
  base::Outcome feed(TargetInput input) EXCLUDES(mutex_);
  void perform(const TargetEffect& effect) REQUIRES(mutex_);
  base::Outcome carry_out(const TargetTask& task) EXCLUDES(mutex_);
  void log_step(const TargetRule& rule);
  void open_gate();
  void shut_control() REQUIRES(mutex_);

  // On tl-listen (admission.cc).
  Admission admit(const wire::Hello& hello);
  void deliver_lane(const wire::Hello& hello);
  void deliver(std::unique_ptr<Lane> lane, const wire::Hello& hello);
  void take_source();

  // On tl-control (control.cc).
  void run_control();
  base::Outcome receive_description();
  base::Outcome accept(const Description& description);
  base::Outcome read_to_the_end();
  void end_of_control(const base::Outcome& read);
  base::Outcome answer_ping();
  base::Outcome keep_stale();
  base::Outcome apply_stale();
  base::Outcome store_pages();
  base::Outcome await_lanes(const TargetTask& task);
  base::Outcome send(wire::FrameType type, std::span<const std::byte> payload = {});
  [[nodiscard]] std::shared_ptr<Lane> control() const EXCLUDES(mutex_);
  void tell_never(const std::string& reason);
  void tell_room(wire::FrameType type, std::span<const std::byte> words);
  void finish_sending(bool control_too);
  void close_lanes(bool data_too);

  // A new epoch, and lanes that are replaced (recovery.cc).
  void begin_epoch(std::uint64_t epoch);
  void run_recovery(const std::shared_ptr<Lane>& lane, std::uint64_t epoch);
  base::Outcome answer_never(const TargetTask& task);
  base::Outcome answer_complete();
  base::Outcome tell_missing(std::uint32_t attempt);
  void tell_lane_lost(const TargetTask& task);
  void ask_again(bool sweep);
  void linger();  // tl-linger.

  // The source stays away (loss.cc).
  [[nodiscard]] MissingMemory missing_memory() const;
  void tell_source_away() REQUIRES(mutex_);
  void give_up(SourceLoss how) REQUIRES(mutex_);
  void shut_out();
  base::Outcome poison(const TargetTask& task);
  base::Outcome end_guest(const TargetTask& task);

  // tl-load (load.cc).
  void load_and_run();
  std::optional<TargetTask> next_load_task();
  base::Outcome load(const TargetTask& task);
  base::Outcome start_guest();
  base::Outcome tell_running(const TargetTask& task);
  void finish();

  // tl-watch (watch.cc).
  void watch();
  void judge(LinkWatch& link, LaneWatch& urgent, Lane& control, std::uint64_t epoch);
  void judge_markers();

  // Of a data lane, on its thread (lanes.cc).
  void on_progress() override;
  void on_lane_ended(LaneName lane, std::uint32_t attempt, const base::Error& reason) override;
  void on_lane_replaced(LaneName lane, std::uint32_t attempt) override;
  [[nodiscard]] base::Outcome room() const override;
  base::Outcome wait_for_room(const base::Error& reason) override;
  void found_room() override;

  Machine& machine_;
  const MigrationOptions options_;
  MigrationObserver& observer_;
  const MemoryLayout layout_;
  const std::uint64_t incarnation_;
  const base::Clock& clock_;
  const MemoryHeadroom headroom_;

  mutable base::Mutex mutex_;
  base::Condition changed_;
  base::Mutex room_mutex_;     // Held by who says that there is no room, or room again: in turns.
  base::Mutex telling_mutex_;  // Held by who says what is missing, so that sets do not mix.
  TargetProtocol brain_ GUARDED_BY(mutex_);
  std::shared_ptr<Lane> control_ GUARDED_BY(mutex_);
  std::shared_ptr<Lane> next_control_ GUARDED_BY(mutex_);  // Of the epoch that begins.
  std::vector<std::byte> secret_ GUARDED_BY(mutex_);       // The session's.

  std::unique_ptr<Lane> arrived_;  // Used by tl-listen alone.
  Reading reading_;                // Used by tl-control alone.

  // Set by tl-control before the threads that use it start.
  std::unique_ptr<Transfer> transfer_;
  std::atomic<Transfer*> published_{nullptr};  // transfer_, for report() and the listener.
  std::atomic<bool> running_here_{false};      // The gate is open.

  base::NamedThread linger_thread_;
  base::NamedThread load_thread_;
  base::NamedThread watch_thread_;
  base::NamedThread control_thread_;    // Changed by tl-listen alone.
  std::unique_ptr<Listener> listener_;  // Last: its thread calls into everything above.
};

}  // namespace towline::runtime
