#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/units.h"
#include "runtime/core/backoff.h"
#include "runtime/core/source_input.h"
#include "runtime/core/source_session.h"
#include "runtime/options.h"
#include "runtime/wire/format.h"
#include "runtime/wire/lane_name.h"

namespace towline::runtime {

/// Everything that a source decides: what follows from a frame, a lane that broke, a user's word,
/// the time. A value: no lock, thread, socket, clock or log. Whoever feeds it the same inputs gets
/// the same effects and tasks; the driver, the simulator and the model tests do.
///
/// After each on(): perform take_effects() in order, at once; then, if there is a task() that was
/// not there before, carry it out and feed kDone. While there is none and no over(), wait for the
/// next input, at most until deadline().
///
/// Threads: one at a time (the driver's mutex).
class SourceProtocol {
 public:
  /// `target`: where it is to be reached. `pages`: of the guest. `rules`: the session's table;
  /// another one is for tests that plant a mistake.
  SourceProtocol(Uri target, const MigrationOptions& options, base::PageCount pages,
                 std::span<const SourceRule> rules = kSourceRules);

  /// Errors: the input is refused and nothing has changed. kCorrupt: a frame that is not due, and
  /// its lane is of no use any more. kRefused: not a user's to ask just now.
  base::Outcome on(const SourceInput& input);

  /// Each is taken once.
  [[nodiscard]] std::vector<SourceEffect> take_effects();

  /// What is being carried out, or is to be.
  [[nodiscard]] const std::optional<SourceTask>& task() const { return task_; }

  /// When kTime is wanted.
  [[nodiscard]] std::optional<base::Instant> deadline() const;

  /// No task will follow.
  [[nodiscard]] bool over() const { return wait_ == Wait::kOver && !task_.has_value(); }

  // ---- questions ----

  [[nodiscard]] SourceState state() const { return state_; }

  [[nodiscard]] MigrationStatus shown() const { return shown_; }

  [[nodiscard]] LinkState link() const;

  /// The user is to see another status now, only because time has passed: kTime is wanted.
  [[nodiscard]] bool owes_status(base::Instant now) const;

  /// The user, the target or a lane has ended what is being done. Errors: why.
  [[nodiscard]] base::Outcome interrupted() const;

  /// As interrupted(), or this process ends, or the target has all: connections that are being
  /// opened are of no use.
  [[nodiscard]] bool wants_no_lane() const { return leave_ || complete_ || !interrupted().ok(); }

  /// For a target that did not answer within the handshake's time-out.
  [[nodiscard]] base::Error silent_error() const;

  /// Why it ended or is paused; for the user.
  [[nodiscard]] std::string reason() const;

  /// What the target has no room for. Empty: it takes what comes.
  [[nodiscard]] std::string no_room() const;

  /// The answer without which the present state does not end.
  [[nodiscard]] std::string_view awaited() const;

  /// A lane that is lost alone may be replaced just now.
  [[nodiscard]] bool may_replace() const {
    return link_.replaces_lanes && state_ == SourceState::kServing;
  }

  /// Both ends give signs of life, and are judged by them.
  [[nodiscard]] bool is_watched() const;

  /// Memory is sent, or its rounds, and the guest runs here.
  [[nodiscard]] bool in_pass() const {
    return state_ == SourceState::kPassing || state_ == SourceState::kSyncing;
  }

  [[nodiscard]] bool wants_to_leave() const { return leave_; }

  [[nodiscard]] bool link_lost() const { return link_.lost.has_value(); }

  /// The target's last beat said that each of its receivers waits.
  [[nodiscard]] bool target_idle() const { return link_.target_idle; }

  [[nodiscard]] std::uint64_t epoch() const { return epoch_; }

  [[nodiscard]] std::uint64_t target_incarnation() const { return target_incarnation_; }

  [[nodiscard]] const Uri& target() const { return target_; }

  [[nodiscard]] std::uint32_t attempt_in_use(LaneName lane) const;

  [[nodiscard]] std::uint32_t passes_done() const { return passes_done_; }

  [[nodiscard]] std::optional<std::uint64_t> running_at_ns() const { return running_at_ns_; }

  [[nodiscard]] std::size_t attempts() const { return attempts_; }

  [[nodiscard]] std::uint64_t missing_pages() const { return link_.missing_pages; }

  [[nodiscard]] std::uint64_t recoveries() const { return recoveries_; }

  /// From the loss to its end.
  [[nodiscard]] std::optional<double> last_recovery_ms() const;

  [[nodiscard]] std::uint64_t lanes_replaced() const { return lanes_replaced_; }

  /// All that decides what follows, in one line.
  [[nodiscard]] std::string dump() const;

 private:
  /// What comes next when no task is under way.
  enum class Wait : std::uint8_t {
    kNothing,
    kAccept,
    kRoundApplied,
    kManualPause,
    kSwitchWord,
    kSwitchover,
    kRunning,
    kPushed,
    kLaneMissing,
    kControlEnd,
    kRetry,
    kComparison,
    kOver,
  };

  struct BrokenLane {
    LaneName lane;
    std::uint32_t attempt = 0;
    base::Error reason;
  };

  // Inputs (source_protocol.cc; what the target and the lanes say: source_words.cc).
  base::Outcome take(const SourceInput& input);
  void begin();
  void inherit(const SourceInput& input);
  base::Outcome on_running(const SourceInput& input);
  base::Outcome on_complete();
  base::Outcome on_missing(const SourceInput& input);
  base::Outcome on_lane_lost(const SourceInput& input);
  base::Outcome on_room(const SourceInput& input);
  void on_loss(const SourceInput& input);

  // The user's words (source_user.cc).
  void ask_for_switch();
  base::Outcome cancel();
  base::Outcome pause();
  base::Outcome resume(const std::optional<Uri>& at);
  base::Outcome continue_switch();
  base::Outcome take_back();
  void leave();

  // What follows (source_protocol.cc).
  base::Outcome on_done(const SourceInput& input);
  void on_success(const SourceTask& task, const SourceInput& input);
  void on_failure(const SourceTask& task, const base::Error& reason);
  void consider();
  bool advance();
  void step(SourceEvent event);
  void act(const SourceRule& rule);
  void show(MigrationStatus status);
  void show_loss();
  [[nodiscard]] MigrationStatus status_at(base::Instant now) const;
  [[nodiscard]] bool heals_by_itself(base::Instant now) const;
  void give(SourceTask task);
  void wait_for(Wait wait, std::optional<base::Duration> patience = {});
  bool proceed();

  [[nodiscard]] bool late() const { return deadline_.has_value() && now_ >= *deadline_; }

  SourceEffect& emit(SourceEffect::Kind kind);

  // Until the order (source_switch.cc).
  void note_opened(const SourceInput& input);
  void on_opened(const SourceInput& input);
  void on_lanes_open();
  void begin_pass();
  void run_pass(std::uint32_t pass);
  void on_pass(std::uint32_t pass, bool cut);
  void after_pass();
  void begin_sync();
  void send_round(bool after_pause);
  void after_round();
  [[nodiscard]] bool wants_switch() const;
  void on_parked();
  void prepare_flight();
  bool advance_to_switch();

  // The push, and a lane that is lost alone (source_lanes.cc).
  bool advance_push();
  void lose(const base::Error& reason);
  void lose_lane(LaneName lane, std::uint32_t attempt, const base::Error& reason);
  void next_try();
  void on_opened_in_place(const SourceTask& task);
  void not_replaced(const std::string& reason);
  void fail_replacement();
  void on_put_in_place(const SourceTask& task);
  [[nodiscard]] std::uint32_t& attempt_of(LaneName lane);

  // The end of it, or of an epoch, and the next one (source_recovery.cc).
  void end(const base::Error& reason);
  void read_to_the_end();
  void settle();
  [[nodiscard]] SourceRule rule_of_end() const;
  [[nodiscard]] std::string words_of_end() const;
  void on_dropped(std::uint64_t random);
  bool try_again();
  void on_reopened(const SourceTask& task, const SourceInput& input);
  void begin_comparison();
  void compare();
  void on_resumed();
  void recovered();
  bool advance_recovery();

  MigrationOptions options_;
  base::PageCount pages_;
  std::span<const SourceRule> rules_;
  base::Instant now_{};

  SourceState state_ = SourceState::kConnecting;
  MigrationStatus shown_ = MigrationStatus::kNone;
  LinkState link_shown_ = LinkState::kUp;
  Wait wait_ = Wait::kNothing;
  std::optional<base::Instant> deadline_;
  std::optional<SourceTask> task_;
  std::vector<SourceEffect> effects_;
  std::string error_;
  std::string attempt_error_;  // Why the last attempt to reconnect failed.

  // Of the target, for good.
  Uri target_;
  std::uint64_t target_incarnation_ = 0;
  bool accepted_ = false;
  std::optional<std::string> never_;
  std::optional<std::uint64_t> running_at_ns_;
  bool complete_ = false;

  // Of the passes.
  bool has_rounds_ = false;
  bool lanes_open_ = false;
  bool waits_for_room_ = false;
  std::optional<std::string> no_room_;
  std::uint32_t passes_done_ = 0;
  std::uint64_t rounds_applied_ = 0;
  std::uint64_t rounds_expected_ = 0;
  std::uint64_t last_round_ = 0;  // Pages.
  std::optional<base::Instant> wanted_since_;
  bool save_failed_ = false;

  /// What is known of one epoch's link. Nothing of it is left for the next.
  struct Link {
    bool control_open = false;
    bool replaces_lanes = false;
    bool counts_frames = false;
    std::optional<std::string> refused;  // The target's reasons.
    std::optional<base::Error> lost;     // The first lane that broke, and how.
    bool control_ended = false;          // All that arrived on it was read.
    bool silent = false;                 // No last words are waited for.
    bool runs = false;                   // *Running* was heard in this epoch.
    bool missing_told = false;
    std::uint64_t missing_so_far = 0;  // Named by frames whose end was not seen yet.
    std::uint64_t missing_pages = 0;   // Named in all, before the last end.
    std::uint32_t missing_attempt = 0;
    bool target_idle = false;
    std::vector<BrokenLane> broken;  // To be replaced: at most one.
    std::uint32_t last_attempt = 0;  // At any lane.
    std::uint32_t urgent_attempt = 0;
    std::array<std::uint32_t, wire::kMaxBulkLanes> bulk_attempts{};
  };

  std::uint64_t epoch_ = 1;
  Link link_;
  int tries_ = 0;         // At the lane that is being replaced.
  std::string last_try_;  // Why it failed.
  std::uint64_t lanes_replaced_ = 0;

  // Of the end, and of recovery.
  base::Error end_reason_;
  std::optional<base::Instant> lost_at_;
  std::size_t attempts_ = 0;  // Since then.
  Uri reopened_at_;           // Where the present epoch's control lane goes.
  bool by_hand_ = false;      // The attempt that is under way.
  bool turned_away_ = false;  // An attempt was refused: that does not heal by itself.
  Backoff backoff_;
  std::uint64_t recoveries_ = 0;
  std::optional<base::Duration> last_recovery_;

  // The user's.
  bool cancel_ = false;
  bool switch_asked_ = false;
  bool continued_ = false;  // Its guest may go over: nobody waits for that word any more.
  bool held_ = false;       // Paused by hand: goes on by hand.
  bool leave_ = false;
  std::optional<Uri> resume_at_;
};

}  // namespace towline::runtime
