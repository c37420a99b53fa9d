#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "runtime/core/page_map.h"
#include "runtime/core/page_receiver.h"
#include "runtime/core/request_table.h"
#include "runtime/core/target_protocol.h"
#include "runtime/run_gate.h"
#include "tests/simulation/lanes.h"
#include "tests/simulation/memory.h"
#include "tests/simulation/network.h"
#include "tests/simulation/world.h"

namespace towline::simulation {

/// The target: the shipped brain, gate, page map, request table, receiver and codec. What
/// runtime/target does with sockets, threads and memory is here on those of this world: what
/// happens is fed to the brain, its effects are performed at once, its tasks are carried out, and
/// between them others may cut in. Only what the lanes' own threads do stands here once more.
class TargetEnd {
 public:
  /// With the lanes of the first epoch, which the source has tied. All references outlive this.
  TargetEnd(World& world, Network& network, const Identity& identity, const SourceLanes& tied);

  void start();

  [[nodiscard]] runtime::TargetState state() const { return brain_.state(); }

  [[nodiscard]] runtime::Ownership ownership() const { return gate_.ownership(); }

  [[nodiscard]] const runtime::PageMap& map() const { return map_; }

  [[nodiscard]] const runtime::RequestTable& requests() const { return requests_; }

  [[nodiscard]] TargetGuest& guest() { return guest_; }

  /// Its tombstone was written.
  [[nodiscard]] bool never() const { return tombstone_; }

  [[nodiscard]] bool order_read() const { return brain_.order_read(); }

  [[nodiscard]] const runtime::PageReceiver& receiver() const { return receiver_; }

  /// The newest epoch that was proven to it.
  [[nodiscard]] std::uint64_t epoch() const { return newest_; }

  /// One of its lanes is not of the epoch that it believes to be in.
  [[nodiscard]] bool has_old_lane() const;

  /// The lanes are there, and every fault that waits for a missing page was asked for on them.
  [[nodiscard]] bool tied() const { return brain_.tied() && !now_->lost; }

  [[nodiscard]] bool asked(base::PageIndex page) const { return asked_.contains(page.value); }

  // ---- its watch, the world ---------------------------------------------------------------------

  /// A lane has no room, and no patience either, before it has the guest.
  void leave();

  /// Something is wrong with a lane that it uses, and no end or error says so.
  [[nodiscard]] bool uneasy() const;

  /// A pass's marker was swallowed: all is sent, and both ends wait for each other.
  [[nodiscard]] bool misses_a_marker() const;

  /// Its user, or a deadline: what is missing will not come.
  void give_up_source(bool poison);

  /// Its watch gives the link up, whatever is true of it.
  void lose();

  /// As SourceEnd::give_up().
  void give_up();

  /// Of the lanes that it uses.
  [[nodiscard]] std::uint64_t epoch_of_lanes() const { return now_->epoch; }

  /// The latest attempts at them, by lane_code().
  [[nodiscard]] const std::map<std::uint64_t, Receivers::Fate>& fates() const {
    return now_->fates;
  }

  /// Its process or its host ends, and the guest with it.
  void die(bool host);

  /// A connection has arrived.
  Task greet(Connection& connection);

 private:
  using Input = runtime::TargetInput;
  using Job = runtime::TargetTask;

  // The brain (target_brain.cc).
  std::vector<Job> ask_brain(Input input, base::Outcome& outcome);
  base::Outcome feed(Input input);
  base::Outcome feed_done(const Job& task);
  Task obey(Receivers& lanes, const Input& input, base::Outcome& outcome);
  void perform(const runtime::TargetEffect& effect);
  base::Outcome carry_out(const Job& task);
  void write_tombstone();
  void open_gate();
  void tell(runtime::wire::FrameType type, std::span<const std::byte> payload = {});
  base::Outcome keep_stale();
  base::Outcome apply_stale();
  base::Outcome tell_missing(const Job& task);
  void shut_out();
  Task write_late();
  Task linger();

  // tl-control (target_end.cc).
  Task control(Receivers& lanes);
  Task control_again(Receivers& lanes, Receivers& before);
  Task read_control(Receivers& lanes);
  bool on_describe(Receivers& lanes);
  void prove_lanes(const Receivers& lanes);
  void check_refusal(const Frame& frame, const base::Outcome& outcome);
  void end_of_control(Receivers& lanes, const base::Error& reason);
  void check_delta();

  // tl-load (target_load.cc).
  Task load_and_run();
  Task load();
  Task start_guest();

  // The data lanes (target_lanes.cc), and one that is replaced (target_replace.cc).
  Task bulk(Receivers& lanes, std::size_t number, Connection& lane, std::uint32_t attempt);
  Task urgent(Receivers& lanes, Connection& lane, std::uint32_t attempt);
  Task run_in_place(Receivers& lanes, runtime::LaneName name, Connection& lane,
                    std::uint32_t attempt);
  bool on_bulk_frame(Receivers& lanes, std::uint8_t number, std::uint32_t attempt,
                     const Frame& frame);
  Task wait_for_room(Receivers& lanes, runtime::LaneName name, std::uint32_t attempt,
                     const Frame& frame);
  bool on_marker(Receivers& lanes, Receivers::Bulk& lane, const Frame& frame);
  bool on_urgent_frame(Receivers& lanes, std::uint32_t attempt, const Frame& frame);
  bool settled(const base::Outcome& outcome);
  void lane_ended(Receivers& lanes, runtime::LaneName name, std::uint32_t attempt, bool corrupt);
  void keep_a_claim();
  void check_epoch(Receivers& lanes, runtime::LaneName name, std::uint32_t attempt);
  static void finish_sending(Receivers& lanes);
  void attach(runtime::LaneName name, Connection& lane);
  void replace(runtime::LaneName name, Connection& lane, std::uint32_t attempt);
  void replaced(Receivers& lanes, runtime::LaneName name, std::uint32_t attempt);
  void sweep_more(Receivers& lanes);
  void progress();

  // Recovery (target_recovery.cc).
  [[nodiscard]] bool admits(const runtime::wire::Hello& hello) const;
  void deliver(Connection& connection, const runtime::wire::Hello& hello);
  void deliver_lane(Connection& connection, const runtime::wire::Hello& hello);
  void begin_epoch(std::uint64_t epoch);
  void use_lanes(Receivers& lanes);
  void tell_missing(std::uint32_t attempt);
  void ask_again(const Job& task);
  Task abandon();
  void reset_claims();

  void shut(Receivers& lanes);
  void shut_data(Receivers& lanes);
  void shut_control(Receivers& lanes);
  void refuse(Connection& connection);

  Pause until_described();
  Task faults();
  Task vcpu(std::size_t thread);
  Task early_toucher();
  void start_thread(Receivers& lanes, const std::string& name, Task work);
  Task counted(Receivers& lanes, Task work);
  void ask_due();
  void ask(std::span<const base::PageIndex> pages);
  void ask_again(base::PageRange range);

  World& world_;
  Network& network_;
  const Identity& identity_;
  runtime::PageMap map_;
  runtime::RequestTable requests_;
  TargetGuest guest_;
  runtime::PageReceiver receiver_;
  runtime::RunGate gate_{runtime::Ownership::kIncoming};
  runtime::TargetProtocol brain_;

  std::deque<Receivers> epochs_;
  Receivers* now_ = nullptr;       // The epoch whose lanes are used.
  Receivers* next_ = nullptr;      // The one that begins.
  Connection* arrived_ = nullptr;  // On tl-listen.
  bool delivering_ = false;        // tl-listen is busy with that.
  std::uint64_t newest_ = 1;
  std::map<std::uint64_t, std::uint32_t> attached_;  // Attempts in use, by lane_code().
  std::set<std::uint64_t> asked_;                    // Pages, in this epoch. For checks.

  Frame reading_;                   // On tl-control.
  std::uint32_t awaited_pass_ = 0;  // Whose markers tl-control waits for; 0: for none.
  bool gave_up_markers_ = false;
  std::vector<base::PageRange> stale_;
  bool postcopy_ = false;
  bool tombstone_ = false;
  int starts_ = 0;            // Of the guest.
  std::uint64_t inputs_ = 0;  // Of the brain.
};

}  // namespace towline::simulation
