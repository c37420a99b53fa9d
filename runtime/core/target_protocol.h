#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/units.h"
#include "runtime/core/target_input.h"
#include "runtime/core/target_session.h"
#include "runtime/migration.h"
#include "runtime/options.h"
#include "runtime/wire/format.h"

namespace towline::runtime {

/// What becomes of a connection that has greeted.
struct TargetAdmission {
  /// What it must prove that it knows.
  enum class Proof : std::uint8_t { kNone, kUsersSecret, kSessionsSecret };

  std::string refusal;  ///< Not empty: it is told this, and not let in.
  Proof proof = Proof::kNone;
  wire::TargetPhase phase = wire::TargetPhase::kNone;
  bool speaks_first = false;
};

/// Everything that a target decides: who is let in, whether a frame is due, what a broken lane or a
/// silent link means, when the guest runs, when all is here, when the source is given up. A value:
/// no lock, thread, socket, clock or log. Whoever feeds it the same inputs gets the same effects
/// and tasks; the driver and the simulator do.
///
/// After each on(): perform take_effects() in order, at once; then carry take_tasks() out, in
/// order. tl-load takes its own tasks by take_load_task().
///
/// Threads: one at a time (the driver's mutex).
class TargetProtocol {
 public:
  /// `pages`: of the guest. `rules`: the session's table; another one is for tests that plant a
  /// mistake.
  TargetProtocol(const MigrationOptions& options, base::PageCount pages,
                 std::span<const TargetRule> rules = kTargetRules);

  /// Errors: the input is refused and nothing has changed. kCorrupt: a frame that is not due, and
  /// its lane is of no use any more. kRefused: not just now.
  base::Outcome on(const TargetInput& input);

  /// Each is taken once.
  [[nodiscard]] std::vector<TargetEffect> take_effects();
  [[nodiscard]] std::vector<TargetTask> take_tasks();
  [[nodiscard]] std::optional<TargetTask> take_load_task();

  // ---- questions ----

  /// On tl-listen. `room`: for guest memory, just now.
  [[nodiscard]] TargetAdmission admit(const wire::Hello& hello, const base::Outcome& room) const;

  /// Of the migration that is in progress here.
  [[nodiscard]] bool knows(const wire::Hello& hello) const {
    return source_ == Source::kKnown && hello.id == hello_.id;
  }

  [[nodiscard]] TargetState state() const { return state_; }

  [[nodiscard]] MigrationStatus shown() const { return shown_; }

  [[nodiscard]] LinkState link() const;

  /// The user is to see another status now, only because time has passed: kTime is wanted.
  [[nodiscard]] bool owes_status(base::Instant now) const;

  /// The newest that was proven.
  [[nodiscard]] std::uint64_t epoch() const { return hello_.epoch; }

  [[nodiscard]] bool never() const { return tombstone_ != Tombstone::kNone; }

  [[nodiscard]] bool order_read() const { return order_read_; }

  /// A vCPU is in since then, ns of this end's clock.
  [[nodiscard]] std::optional<std::uint64_t> entered_at() const { return entered_at_ns_; }

  [[nodiscard]] bool ending() const { return ending_; }

  /// Lanes and session go on just now.
  [[nodiscard]] bool tied() const { return link_ == Link::kTied; }

  /// A lane that is lost alone may be replaced just now.
  [[nodiscard]] bool replaces_lanes() const;

  /// A lane without room may wait for it.
  [[nodiscard]] bool takes_a_pass() const;

  /// tl-load has a task.
  [[nodiscard]] bool has_load_task() const { return !load_tasks_.empty(); }

  /// tl-load has one, or may get one.
  [[nodiscard]] bool may_load() const;

  /// Both ends give signs of life, and are judged by them.
  [[nodiscard]] bool is_watched() const;

  /// tl-watch has nothing to do any more.
  [[nodiscard]] bool watch_is_over() const { return ending_ || is_final(shown_); }

  /// The time that the guest spends without its source counts: kTime must know whether there is
  /// room.
  [[nodiscard]] bool counts_time_alone() const {
    return state_ == TargetState::kRunningAlone && alone_since_.has_value();
  }

  /// tl-linger waits until then, or until may_show().
  [[nodiscard]] std::optional<base::Instant> lingers_until() const { return lingers_until_; }

  [[nodiscard]] bool may_show() const { return ending_ || tombstone_ == Tombstone::kTold; }

  /// Errors: kRefused: the user has no further address to name just now.
  [[nodiscard]] base::Outcome may_let_in() const;

  [[nodiscard]] SourceLoss source_loss() const { return source_loss_; }

  [[nodiscard]] std::chrono::seconds source_loss_deadline() const { return source_loss_deadline_; }

  /// Fills in what is known here.
  void report_to(MigrationReport& report, base::Instant now) const;

  /// All of it, in one line.
  [[nodiscard]] std::string dump() const;

 private:
  // Guess: a source whose link flaps asks within milliseconds; one that is dead never does.
  static constexpr std::chrono::seconds kLinger{5};

  enum class Source : std::uint8_t { kNone, kGreeted, kKnown };
  enum class Tombstone : std::uint8_t { kNone, kWritten, kTold };
  /// What the lanes are to each other just now.
  enum class Link : std::uint8_t { kTied, kLost, kComparing };

  /// A data lane of the epoch whose control lane is in use.
  struct DataLane {
    LaneName name{};
    bool there = false;
    std::uint32_t attempt = 0;                    // The latest that was let in.
    std::optional<base::Instant> broken_since{};  // It waits for its replacement.
  };

  base::Outcome take(const TargetInput& input);
  base::Outcome on_done(const TargetInput& input);

  // The session (target_protocol.cc).
  [[nodiscard]] bool may(TargetEvent event) const;
  base::Outcome step(TargetEvent event);
  void act(const TargetRule& rule);
  void bury();
  void note_alone();
  void show();
  void show_link();
  [[nodiscard]] MigrationStatus status_at(base::Instant now) const;
  [[nodiscard]] bool heals_by_itself(base::Instant now) const;
  base::Outcome on_described(std::uint64_t bulk_lanes);
  base::Outcome on_loaded(const std::optional<base::Error>& error);
  void settle_link();
  base::Outcome on_guest_entered(std::uint64_t at_ns);
  base::Outcome on_nothing_missing();
  base::Outcome on_linger_over();

  // Frames of the control lane (target_frames.cc).
  base::Outcome on_frame(const TargetInput& input);
  base::Outcome on_stale(const wire::FrameHeader& frame);
  base::Outcome on_round_end(const wire::FrameHeader& frame);
  base::Outcome on_stale_applied(std::uint64_t claimed);
  base::Outcome on_run();
  base::Outcome on_cancel(const std::string& words);
  base::Outcome on_lanes_here(wire::FrameType frame);
  base::Outcome on_resume();

  // Who is let in (target_admission.cc).
  [[nodiscard]] std::string refusal_of_control(const wire::Hello& hello) const;
  [[nodiscard]] std::string refusal_again(const wire::Hello& hello) const;
  [[nodiscard]] std::string shut_out_reason() const;
  base::Outcome on_control_proven(const TargetInput& input);
  base::Outcome on_greeting_overdue();
  base::Outcome on_misdescribed();

  // Data lanes (target_lanes.cc).
  base::Outcome on_lane_proven(const wire::Hello& hello);
  base::Outcome on_lane_ended(const TargetInput& input);
  base::Outcome on_lane_replaced(const TargetInput& input);
  void lose_lanes(const base::Error& error);
  void shut_lanes();
  void renew_lanes();
  [[nodiscard]] DataLane* lane_named(LaneName name);
  [[nodiscard]] bool waits_in_vain() const;
  [[nodiscard]] std::string dump_lanes() const;

  // The link and its epochs (target_link.cc).
  base::Outcome on_control_ended(const TargetInput& input);
  bool lose();
  base::Outcome on_fenced(std::uint64_t epoch);
  base::Outcome on_signs(const TargetInput& input);
  base::Outcome on_marker_silent(const TargetInput& input);
  void note_overdue(std::string_view awaited, const std::string& what);

  // The user, room, and a source that stays away (target_loss.cc).
  base::Outcome on_no_room(const base::Error& error);
  base::Outcome on_room_found();
  base::Outcome on_pause();
  base::Outcome on_let_in();
  base::Outcome on_give_up_source(SourceLoss how);
  base::Outcome on_source_loss(const TargetInput& input);
  base::Outcome on_time(bool has_room);
  base::Outcome on_nothing_arrives(const TargetInput& input);
  base::Outcome on_loss_settled(const TargetInput& input);
  base::Outcome on_ending();

  TargetEffect& emit(TargetEffect::Kind kind);
  TargetTask& give(TargetTask::Kind kind);

  MigrationOptions options_;
  base::PageCount pages_;
  std::span<const TargetRule> rules_;
  base::Instant now_{};
  std::vector<TargetEffect> effects_;
  std::vector<TargetTask> tasks_;
  std::deque<TargetTask> load_tasks_;

  TargetState state_ = TargetState::kListening;
  MigrationStatus shown_ = MigrationStatus::kSetup;
  LinkState link_shown_ = LinkState::kUp;
  Source source_ = Source::kNone;
  wire::Hello hello_;              // Of the first epoch; epoch and features are the newest.
  std::uint64_t lanes_epoch_ = 0;  // Whose control lane is in use.
  Link link_ = Link::kTied;
  std::vector<DataLane> lanes_;  // The urgent one first. Empty until they are described.
  bool lanes_end_ = false;       // None of this epoch is let in any more.
  Tombstone tombstone_ = Tombstone::kNone;

  // Of the switch.
  std::uint64_t stale_pages_ = 0;           // Named since the last round.
  std::optional<wire::FrameHeader> round_;  // Whose markers are waited for.
  bool final_delta_ = false;
  // The source may have given its order: a failure is shown, and the process may end, only after
  // the source has asked and was told, or does not ask.
  bool order_possible_ = false;
  bool order_read_ = false;
  bool may_repeat_order_ = false;  // Once: it was told that the order was never read.
  std::optional<std::uint64_t> entered_at_ns_;
  bool told_running_ = false;  // *Running* was sent, or could not be: never after *complete*.

  // For the user.
  std::string error_;
  std::string overdue_;                    // What was lost on a link that lives, the last time.
  std::string no_room_;                    // Why pages of a pass wait. Empty: none does.
  std::optional<base::Error> lane_error_;  // What broke first on this epoch's data lanes.
  std::optional<base::Instant> started_;
  base::Instant ended_{};
  std::uint64_t recoveries_ = 0;
  std::uint64_t lanes_replaced_ = 0;
  std::optional<base::Instant> lingers_until_;

  // The user's.
  bool held_ = false;  // Paused by hand.
  bool ending_ = false;
  SourceLoss source_loss_ = SourceLoss::kWait;
  std::chrono::seconds source_loss_deadline_{0};
  SourceLoss giving_up_ = SourceLoss::kWait;  // In *abandoning*.
  std::optional<base::Instant> lost_since_;   // The link, once the guest or its state is here.
  bool no_room_for_more_ = false;             // A lane ended for want of it.
  // Since when the guest runs without its source; an attempt that came to nothing changes nothing.
  std::optional<base::Instant> alone_since_;
};

}  // namespace towline::runtime
