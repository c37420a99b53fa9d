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
#include "runtime/core/source_protocol.h"
#include "runtime/run_gate.h"
#include "tests/simulation/lanes.h"
#include "tests/simulation/memory.h"
#include "tests/simulation/network.h"
#include "tests/simulation/world.h"

namespace towline::simulation {

/// The source: the shipped brain, gate, rounds, owed set, push order and codec. What its driver
/// does with threads and sockets is done here with tasks and pipes: inputs are brought, effects
/// performed, tasks carried out. Nothing is decided here.
class SourceEnd {
 public:
  /// With the lanes of the first epoch. All references outlive this.
  SourceEnd(World& world, SourceGuest& guest, Network& network, const Identity& identity);

  void start();

  /// The guest may execute here.
  [[nodiscard]] bool guest_runs() const { return gate_.may_run() && !parked_; }

  [[nodiscard]] runtime::SourceState state() const { return brain_.state(); }

  [[nodiscard]] std::string dump() const { return brain_.dump(); }

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
  void refuse_connection() { refused_ = true; }

  // ---- its user, its watch, the world -----------------------------------------------------------

  void cancel();
  void ask_for_switch();

  /// Again and again, until it is obeyed.
  void take_back();

  /// Something is wrong with a lane that it uses, and no end or error says so.
  [[nodiscard]] bool waits_in_vain(const Connection& lane) const;
  [[nodiscard]] bool uneasy();

  /// Its watch (or its user) gives the link up.
  void lose();

  /// Its watch acts on what uneasy() is about: the link, or one lane beside a control lane that is
  /// alive.
  void give_up();

  /// What was told behind the fence of a lane, and by which attempt. For checks.
  [[nodiscard]] const std::set<std::uint64_t>& told() const { return told_; }

  /// Its process or its host ends.
  void die(bool host);

 private:
  // The brain (source_end.cc).
  bool feed(runtime::SourceInput input);
  void perform(const runtime::SourceEffect& effect);
  void on_stepped(const runtime::SourceRule& rule);
  void give_back(const runtime::SourceRule& rule);
  void stop_pass();
  Task session();
  Task next_task();
  Task hear_the_target_out();
  Task wait_before_the_switch();
  [[nodiscard]] bool time_is_over() const;
  void pass_time();
  void try_again();

  // Tasks (source_tasks.cc). An error is what the driver would report.
  Task carry_out(const runtime::SourceTask& task, runtime::SourceInput& done);
  Task open_control(const runtime::SourceTask& task, runtime::SourceInput& done);
  Task run_pass(std::uint32_t pass, runtime::SourceInput& done);
  Task park();
  Task prepare_flight(runtime::SourceInput& done);
  Task drop_epoch(runtime::SourceInput& done);
  Task read_to_the_end();
  Task open_lanes(runtime::SourceInput& done);
  Task open_in_place(const runtime::SourceTask& task, runtime::SourceInput& done);
  void send_round(const runtime::SourceTask& task, runtime::SourceInput& done);
  void send_flight(runtime::SourceInput& done);
  void end_lane(runtime::LaneName lane);
  void put_in_place(const runtime::SourceTask& task);
  void resume_target();

  // Handshakes (source_handshake.cc).
  Task open_lane(runtime::wire::LaneRole role, std::uint8_t number, Connection*& opened,
                 std::uint32_t attempt = 0);
  Task answered(Connection& made, bool impatient);
  std::optional<Frame> answer_of(Connection& made, runtime::wire::FrameType wanted);
  bool prove(Connection& made, const runtime::wire::Hello& hello,
             std::span<const std::byte> payload);

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

  static Pause until_room(const SourceLanes& lanes, Pipe& lane);
  Pause until_wanted(const SourceLanes& lanes, Pipe& lane);
  void note_dirty(const runtime::DirtyRounds::Round& round);
  void add_stale(std::vector<std::byte>& bytes, const runtime::DirtyRounds::Round& round,
                 std::uint32_t pass, bool final_round);
  void add_first_pages(std::vector<std::byte>& bytes);

  std::optional<base::PageRange> next_chunk();
  [[nodiscard]] std::vector<bool> wanted_of(base::PageRange chunk) const;
  void answer(Connection& lane, const Frame& request);
  void send_split(Pipe& lane, base::PageIndex first, const std::vector<Content>& pages,
                  std::uint32_t round);
  std::vector<Content> contents(base::PageRange range);
  base::PageRange data_run(base::PageIndex first, const std::vector<bool>& wanted,
                           base::PageRange chunk) const;

  bool on_control(const Frame& frame);
  bool on_running(runtime::SourceInput input);
  bool name(const Frame& frame);
  void note_running_at_last();
  void lose_lane(const SourceLanes& lanes, runtime::LaneName lane, std::uint32_t attempt);
  void gate(runtime::OwnershipEvent event);
  void close_lanes(SourceLanes& lanes);

  World& world_;
  SourceGuest& guest_;
  Network& network_;
  const Identity& identity_;
  runtime::OwedPages owed_;
  std::unique_ptr<runtime::PushOrder> order_;
  runtime::RunGate gate_{runtime::Ownership::kHere};
  std::unique_ptr<runtime::DirtyRounds> rounds_;
  std::vector<runtime::SourceRule> rules_;  // Those that ship, unless one is planted.
  runtime::SourceProtocol brain_;
  std::deque<SourceLanes> epochs_;
  Connection* greeting_ = nullptr;  // On its way to become a lane.
  bool waiting_ended_ = false;      // Nobody wants it any more.
  std::uint64_t incarnation_ = 0;   // Of who answered it.
  Connection* in_place_ = nullptr;  // Opened for a lane that was lost.
  bool parked_ = false;

  bool refused_ = false;
  bool take_back_ = false;
  bool given_up_ = false;
  bool told_running_ = false;     // In any epoch, after the order.
  bool running_unnoted_ = false;  // Planted: its brain was not told yet.
  bool open_ = false;             // The server may answer.
  bool patient_ = false;          // What is waited for is waited for as long as somebody lives.
  std::uint64_t attempts_ = 0;    // To reconnect, since the last success.
  std::vector<std::byte> flight_;
  std::vector<base::PageRange> last_round_;
  std::vector<base::PageRange> named_;  // By the frame that is being read.
  std::set<std::uint64_t> told_;        // Pages, behind the last fence. For checks.

  // The bulk lanes' work.
  std::uint32_t pass_ = 0;
  bool pass_stopped_ = false;
  std::size_t lanes_done_ = 0;  // In this pass.
  base::PageIndex cursor_;
  bool cut_ = false;
  bool no_room_ = false;  // The target waits, and nothing more of the pass is sent.
  bool holes_taken_ = false;
};

}  // namespace towline::simulation
