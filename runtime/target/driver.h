#pragma once

#include <array>
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
#include "runtime/core/target_session.h"
#include "runtime/link/listener.h"
#include "runtime/migration.h"
#include "runtime/target/fault_service.h"
#include "runtime/target/memory.h"
#include "runtime/target/memory_headroom.h"
#include "runtime/target/receivers.h"
#include "runtime/target/request_sender.h"

namespace towline::runtime {

/// A guest on its way in: the listener, the lanes and the fault service around the target session.
///
/// Threads: tl-listen (handshakes), tl-control (this class's run_control(): the session), tl-load
/// (loads the machine and starts it: both may wait for pages), tl-urgent and tl-bulk-N
/// (Receivers), tl-fault (FaultService), tl-ask (RequestSender), tl-watch (signs of life). Only
/// tl-control decides that the link is lost, after it has read its lane to the end: the run order
/// may be in there still.
///
/// A source that comes back in a greater epoch gets a tl-control of its own, which joins the one
/// before it and every lane of the old epoch, and then tells what is missing here
/// (recovery.cc).
class TargetDriver final : public Incoming {
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
    Transfer(const MemoryLayout& layout, std::size_t bulk_lanes, std::uint64_t epoch,
             Receivers::Hooks hooks)
        : map(layout.pages()), lanes(layout, map, bulk_lanes, epoch, std::move(hooks)) {}

    PageMap map;
    RequestTable requests{1U << 16U};  // Guess: far more than vCPUs and kernel workers can wait.
    std::unique_ptr<RequestSender> sender;
    std::unique_ptr<TargetMemory> memory;
    std::unique_ptr<PageReceiver> receiver;
    Receivers lanes;
    std::unique_ptr<FaultService> faults;
  };

  TargetDriver(Machine& machine, const MigrationOptions& options, MigrationObserver& observer);

  // On tl-listen.
  Admission admit(const wire::Hello& hello);
  Admission admit_control(const wire::Hello& hello) REQUIRES(mutex_);
  Admission admit_again(const wire::Hello& hello) const REQUIRES(mutex_);
  void deliver_lane(std::unique_ptr<Lane> lane, const wire::Hello& hello);
  void deliver_again(std::shared_ptr<Lane> lane, const wire::Hello& hello);
  void deliver(std::unique_ptr<Lane> lane, const wire::Hello& hello);

  // On tl-control.
  void run_control();
  base::Outcome receive_description();
  base::Outcome accept(const Description& description);
  base::Outcome receive_until_end();
  base::Outcome on_frame(Lane& lane, const wire::FrameHeader& header);
  base::Outcome on_stale(Lane& lane, const wire::FrameHeader& header);
  base::Outcome on_round_end(Lane& lane, const wire::FrameHeader& header);
  base::Outcome on_first_pages(Lane& lane, const wire::FrameHeader& header);
  base::Outcome on_state(Lane& lane, const wire::FrameHeader& header);
  base::Outcome on_run();
  base::Outcome on_cancel(Lane& lane, const wire::FrameHeader& header);
  base::Outcome on_ping(Lane& lane, const wire::FrameHeader& header);
  void refuse(const std::string& reasons);
  base::Outcome send(wire::FrameType type, std::span<const std::byte> payload = {});
  [[nodiscard]] std::shared_ptr<Lane> control() const EXCLUDES(mutex_);
  void end_of_control(const base::Error& reason);
  void back_to_listening();

  // A new epoch, on its own tl-control.
  void run_recovery(const std::shared_ptr<Lane>& lane, std::uint64_t epoch);
  base::Outcome answer_again();
  base::Outcome tell_end();
  base::Outcome on_resume();
  void ask_again();

  // A data lane that is lost alone: on its threads, and tl-listen.
  bool on_lane_broken(LaneName lane, std::uint32_t attempt, const base::Error& reason);
  void on_lane_replaced(LaneName lane, std::uint32_t attempt);
  [[nodiscard]] bool replaces_lanes() const REQUIRES(mutex_);
  base::Outcome tell_missing(Lane& lane, std::uint32_t attempt);

  // The source stays away (loss.cc).
  void begin_abandoning(SourceLoss how) REQUIRES(mutex_);
  void check_source_deadline() REQUIRES(mutex_);
  void tell_source_lost() REQUIRES(mutex_);
  [[nodiscard]] MissingMemory missing_memory() const;
  void shut_out(SourceLoss how);
  void settle_loss(SourceLoss how);
  [[nodiscard]] std::string shut_out_reason() const REQUIRES(mutex_);
  [[nodiscard]] SourceLossReport source_loss_report() const REQUIRES(mutex_);

  // tl-load.
  void load_and_run();
  base::Outcome load(const std::vector<std::byte>& encoded);
  void settle_link() REQUIRES(mutex_);
  bool lose_locked() REQUIRES(mutex_);
  void show_locked() REQUIRES(mutex_);
  void start_guest();

  void linger();  // tl-linger.

  // tl-watch.
  void watch();
  bool judge(LinkWatch& link, LaneWatch& urgent, Lane& control);
  void judge_markers();
  void note_overdue(std::string_view awaited, const std::string& what) EXCLUDES(mutex_);
  void tell_never(const base::Error& reason) EXCLUDES(mutex_);

  // On any thread of the migration.
  [[nodiscard]] base::Outcome memory_room() const;
  base::Outcome wait_for_room(const base::Error& reason);
  void found_room();
  void tell_no_room(const base::Error& reason) EXCLUDES(mutex_);
  [[nodiscard]] bool takes_a_pass() const REQUIRES(mutex_);
  void on_progress();
  void on_lane_lost(const base::Error& reason);
  base::Outcome advance(TargetEvent event) EXCLUDES(mutex_);
  base::Outcome advance_locked(TargetEvent event) REQUIRES(mutex_);
  base::Expected<TargetAction> step_locked(TargetEvent event) REQUIRES(mutex_);
  void finish();

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
  TargetState state_ GUARDED_BY(mutex_) = TargetState::kListening;
  MigrationStatus shown_ GUARDED_BY(mutex_) = MigrationStatus::kSetup;
  bool control_taken_ GUARDED_BY(mutex_) = false;
  bool never_ GUARDED_BY(mutex_) = false;
  std::string error_ GUARDED_BY(mutex_);
  std::string overdue_ GUARDED_BY(mutex_);  // What was lost on a link that lives, the last time.
  std::string no_room_ GUARDED_BY(mutex_);  // Why pages of a pass wait. Empty: none does.
  std::optional<base::Error> lane_error_ GUARDED_BY(mutex_);
  std::vector<std::byte> encoded_state_ GUARDED_BY(mutex_);  // For tl-load.
  wire::Hello control_hello_ GUARDED_BY(mutex_);  // Of the first epoch; its epoch is the newest.
  std::shared_ptr<Lane> control_ GUARDED_BY(mutex_);
  /// What the lanes are to each other just now.
  enum class Link : std::uint8_t { kTied, kLost, kComparing };
  Link link_ GUARDED_BY(mutex_) = Link::kTied;
  bool order_read_ GUARDED_BY(mutex_) = false;
  bool may_repeat_order_ GUARDED_BY(mutex_) = false;
  bool held_ GUARDED_BY(mutex_) = false;    // Paused by its user.
  bool ending_ GUARDED_BY(mutex_) = false;  // This object goes.
  // The link was lost when the order may have been on its way: the failure is shown, and the
  // process may end, only after the source has asked and was told, or does not ask.
  bool order_possible_ GUARDED_BY(mutex_) = false;
  bool lingers_ GUARDED_BY(mutex_) = false;
  bool told_never_ GUARDED_BY(mutex_) = false;
  std::optional<std::uint64_t> entered_at_ns_ GUARDED_BY(mutex_);  // First KVM_RUN.
  std::uint64_t recoveries_ GUARDED_BY(mutex_) = 0;
  std::uint64_t lanes_replaced_ GUARDED_BY(mutex_) = 0;
  SourceLoss source_loss_ GUARDED_BY(mutex_) = SourceLoss::kWait;
  std::chrono::seconds source_loss_deadline_ GUARDED_BY(mutex_){0};
  // Since when the guest runs without its source; an attempt that came to nothing changes nothing.
  std::optional<base::Instant> alone_since_ GUARDED_BY(mutex_);
  std::vector<std::byte> secret_ GUARDED_BY(mutex_);
  base::Instant started_ GUARDED_BY(mutex_);
  base::Instant ended_ GUARDED_BY(mutex_);

  // Used by tl-control alone.
  std::vector<base::PageRange> stale_;
  std::uint64_t stale_pages_ = 0;
  bool final_delta_applied_ = false;

  // Set by tl-control before the threads that use it start; published by state_ under mutex_.
  std::unique_ptr<Transfer> transfer_;
  std::atomic<Transfer*> published_{nullptr};  // transfer_, for report() and the listener.
  std::atomic<bool> running_here_{false};
  std::atomic<bool> told_running_{
      false};  // kRunning was sent, or could not be: never after kComplete.

  base::NamedThread linger_thread_;
  base::NamedThread load_thread_;
  base::NamedThread watch_thread_;
  base::NamedThread control_thread_;    // Changed by tl-listen alone.
  std::unique_ptr<Listener> listener_;  // Last: its thread calls into everything above.
};

}  // namespace towline::runtime
