#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "runtime/core/dirty_rounds.h"
#include "runtime/core/owed_pages.h"
#include "runtime/core/push_order.h"
#include "runtime/core/source_session.h"
#include "runtime/run_gate.h"
#include "tests/simulation/lanes.h"
#include "tests/simulation/memory.h"
#include "tests/simulation/network.h"
#include "tests/simulation/world.h"

namespace towline::simulation {

/// The source: the shipped session, gate, rounds, owed set, push order and codec, and in between
/// what runtime/source/driver.cc and source_recovery.cc do with them, one thread a task.
class SourceEnd {
 public:
  /// With the lanes of the first epoch. All references outlive this.
  SourceEnd(World& world, SourceGuest& guest, Network& network, const Identity& identity);

  void start();

  /// The guest may execute here.
  [[nodiscard]] bool guest_runs() const { return gate_.may_run() && !parked_; }

  [[nodiscard]] runtime::SourceState state() const { return state_; }

  [[nodiscard]] runtime::Ownership ownership() const { return gate_.ownership(); }

  [[nodiscard]] const runtime::OwedPages& owed() const { return owed_; }

  [[nodiscard]] SourceLanes& lanes() { return epochs_.back(); }

  [[nodiscard]] bool paused() const;

  /// The connection that is on its way to become a lane; nullptr: none.
  [[nodiscard]] Connection* greeting() const { return greeting_; }

  /// It has read that the target runs the guest. For checks.
  [[nodiscard]] bool heard_running() const { return told_running_; }

  /// Somebody is needed to go on: it has given up trying by itself.
  [[nodiscard]] bool given_up() const { return given_up_; }

  /// The hello is answered by a refusal. Before the first step.
  void refuse_connection() { inbox_.refused = true; }

  // ---- its user, its watch, the world -----------------------------------------------------------

  void cancel();
  void ask_for_switch();

  /// Obeyed in *ordered-paused* only.
  void take_back() { take_back_ = true; }

  /// Something is wrong with a lane that it uses, and no end or error says so.
  [[nodiscard]] bool uneasy();

  /// Its watch (or its user) gives the link up.
  void lose();

  /// Its watch acts on what uneasy() is about: the link, or one lane beside a control lane that is
  /// alive.
  void give_up();

  /// What was told behind the fence of a lane, and by which attempt. For checks.
  [[nodiscard]] const std::set<std::uint64_t>& told() const { return inbox_.told; }

  /// Its process or its host ends.
  void die(bool host);

 private:
  struct BrokenLane {
    runtime::LaneName lane;
    std::uint32_t attempt = 0;
  };

  /// What was heard in this epoch.
  struct Inbox {
    bool accepted = false;
    bool refused = false;
    bool never = false;
    bool running = false;
    bool complete = false;
    bool lost = false;
    bool control_ended = false;
    std::uint64_t missing_pages = 0;
    bool missing_told = false;
    std::vector<BrokenLane> broken;  ///< To be replaced.
    std::uint32_t missing_attempt = 0;
    std::set<std::uint64_t> told;  ///< Pages, behind the last fence. For checks.
  };

  // The session, until the order.
  Task session();
  Task run_passes();
  Task sync_until_switch();
  Task switch_over();

  // From the order on.
  Task see_it_through();
  Task hear_the_target_out();
  Task try_again();
  Task compare(bool& settled);
  Task open_lane(runtime::wire::LaneRole role, std::uint8_t number, Connection*& opened,
                 std::uint32_t attempt = 0);
  Task answered(Connection& made, bool impatient);
  Task open_lanes(bool& opened);
  std::optional<Frame> answer_of(Connection& made, runtime::wire::FrameType wanted);
  bool prove(Connection& made, const runtime::wire::Hello& hello,
             std::span<const std::byte> payload);
  void go_on();
  void target_runs();
  void note_at_last();
  void give_back();
  bool come_to_an_end();

  // A data lane that is lost alone.
  Task replace_lane(bool& replaced);
  Task missing_of(const Connection& made, std::uint32_t attempt, bool& told);
  void put_in_place(runtime::LaneName lane, std::uint32_t attempt, Connection& made);
  void lose_lane(const SourceLanes& lanes, runtime::LaneName lane, std::uint32_t attempt);

  // Threads of the lanes.
  Task control_reader(SourceLanes& lanes);
  Task bulk_worker(SourceLanes& lanes, std::size_t number);
  Task send_pass(SourceLanes& lanes, Pipe& lane, std::uint32_t pass);
  Task send_chunk(SourceLanes& lanes, Pipe& lane, std::uint32_t pass, base::PageRange chunk);
  Task send_run(SourceLanes& lanes, Pipe& lane, std::uint32_t pass, base::PageRange run,
                std::optional<std::vector<Content>> early);
  Task push_lanes(SourceLanes& lanes, std::uint8_t number);
  Task push(SourceLanes& lanes, Connection& lane, runtime::LaneName name, std::uint32_t attempt);
  Task server(SourceLanes& lanes, Connection& lane, std::uint32_t attempt);
  Task counted(SourceLanes& lanes, Task work);
  void start_thread(SourceLanes& lanes, const std::string& name, Task work);
  void start_bulk(SourceLanes& lanes);

  Pause until_told(std::function<bool()> ready);
  static Pause until_room(const SourceLanes& lanes, Pipe& lane);
  Pause until_wanted(const SourceLanes& lanes, Pipe& lane);
  void begin_rounds();
  void note_dirty(const runtime::DirtyRounds::Round& round);
  std::uint64_t send_round();
  void send_flight();
  void add_stale(std::vector<std::byte>& bytes, const runtime::DirtyRounds::Round& round,
                 bool final_round);
  void add_first_pages(std::vector<std::byte>& bytes);
  void finish();

  std::optional<base::PageRange> next_chunk();
  [[nodiscard]] std::vector<bool> wanted_of(base::PageRange chunk) const;
  void answer(Connection& lane, const Frame& request);
  void send_split(Pipe& lane, base::PageIndex first, const std::vector<Content>& pages,
                  std::uint32_t round);
  std::vector<Content> contents(base::PageRange range);
  base::PageRange data_run(base::PageIndex first, const std::vector<bool>& wanted,
                           base::PageRange chunk) const;

  bool on_control(const Frame& frame);
  bool on_missing(const Frame& frame);
  bool step(runtime::SourceEvent event);
  void gate(runtime::OwnershipEvent event);
  [[nodiscard]] bool interrupted() const;
  [[nodiscard]] bool recovering() const;
  void end();
  void close_lanes(SourceLanes& lanes);

  World& world_;
  SourceGuest& guest_;
  Network& network_;
  const Identity& identity_;
  runtime::OwedPages owed_;
  std::unique_ptr<runtime::PushOrder> order_;
  runtime::RunGate gate_{runtime::Ownership::kHere};
  std::unique_ptr<runtime::DirtyRounds> rounds_;
  runtime::SourceState state_ = runtime::SourceState::kConnecting;
  std::deque<SourceLanes> epochs_;
  Connection* greeting_ = nullptr;  // On its way to become a lane.
  bool parked_ = false;
  Inbox inbox_;

  bool cancel_ = false;
  bool switch_asked_ = false;
  bool take_back_ = false;
  bool save_failed_ = false;
  bool given_up_ = false;
  bool told_running_ = false;  // In any epoch, after the order.
  bool open_ = false;          // The server may answer.
  std::uint64_t attempts_ = 0;
  std::uint32_t lane_attempts_ = 0;  // At any lane of this epoch.
  std::uint64_t rounds_sent_ = 0;
  std::uint64_t rounds_applied_ = 0;

  // The bulk lanes' work.
  std::uint32_t pass_ = 0;
  std::uint32_t passes_done_ = 0;
  std::size_t lanes_done_ = 0;  // In this pass.
  base::PageIndex cursor_;
  bool cut_ = false;
  bool no_room_ = false;  // The target waits, and nothing more of the pass is sent.
  bool holes_taken_ = false;
};

}  // namespace towline::simulation
