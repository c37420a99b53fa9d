#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "runtime/core/page_map.h"
#include "runtime/core/page_receiver.h"
#include "runtime/core/request_table.h"
#include "runtime/core/target_session.h"
#include "runtime/run_gate.h"
#include "tests/simulation/lanes.h"
#include "tests/simulation/memory.h"
#include "tests/simulation/network.h"
#include "tests/simulation/world.h"

namespace towline::simulation {

/// The target: the shipped session, gate, page map, request table, receiver and codec, and in
/// between what runtime/target/driver.cc, target_recovery.cc and target_lanes.cc do with them, one
/// thread a task.
class TargetEnd {
 public:
  /// With the lanes of the first epoch, which the source has tied. All references outlive this.
  TargetEnd(World& world, Network& network, const Identity& identity, const SourceLanes& tied);

  void start();

  [[nodiscard]] runtime::TargetState state() const { return state_; }

  [[nodiscard]] runtime::Ownership ownership() const { return gate_.ownership(); }

  [[nodiscard]] const runtime::PageMap& map() const { return map_; }

  [[nodiscard]] const runtime::RequestTable& requests() const { return requests_; }

  [[nodiscard]] TargetGuest& guest() { return guest_; }

  /// Its tombstone.
  [[nodiscard]] bool never() const { return never_; }

  [[nodiscard]] bool order_read() const { return order_read_; }

  [[nodiscard]] const runtime::PageReceiver& receiver() const { return receiver_; }

  /// The newest epoch that was proven to it.
  [[nodiscard]] std::uint64_t epoch() const { return newest_; }

  /// One of its lanes is not of the epoch that it believes to be in.
  [[nodiscard]] bool has_old_lane() const;

  /// The lanes are there, and every fault that waits for a missing page was asked for on them.
  [[nodiscard]] bool tied() const { return link_ == LinkState::kTied && !now_->lost; }

  [[nodiscard]] bool asked(base::PageIndex page) const { return asked_.contains(page.value); }

  // ---- its watch, the world ---------------------------------------------------------------------

  /// It is told to end before it has the guest.
  void leave();

  /// Something is wrong with a lane that it uses, and no end or error says so.
  [[nodiscard]] bool uneasy() const;

  /// Its user, or a deadline: what is missing will not come.
  void give_up_source(bool poison);

  /// Its watch (or its user) gives the link up.
  void lose() { shut(*now_); }

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
  /// What the lanes are to the session just now.
  enum class LinkState : std::uint8_t { kTied, kLost, kComparing };

  Task control(Receivers& lanes);
  Task control_again(Receivers& lanes, Receivers& before);
  Task read_control(Receivers& lanes);
  Task load();
  Task bulk(Receivers& lanes, std::size_t number, Connection& lane, std::uint32_t attempt);
  Task urgent(Receivers& lanes, Connection& lane, std::uint32_t attempt);
  Task run_in_place(Receivers& lanes, runtime::LaneName name, Connection& lane,
                    std::uint32_t attempt);
  Task faults();
  Task vcpu(std::size_t thread);
  Task early_toucher();

  bool on_frame(Receivers& lanes, const Frame& frame);
  void on_describe();
  bool on_stale(const Frame& frame);
  bool apply_round(Receivers& lanes, const Frame& frame);
  bool on_first_pages(const Frame& frame);
  bool on_order();
  Task start_guest();
  void settle_link();
  void end_of_control(Receivers& lanes, bool corrupt);

  // Recovery.
  [[nodiscard]] bool admits(const runtime::wire::Hello& hello) const;
  void deliver(Connection& connection, const runtime::wire::Hello& hello);
  void attach(Connection& connection, const runtime::wire::Hello& hello);
  void replace(Connection& connection, const runtime::wire::Hello& hello);
  void replaced(Receivers& lanes, runtime::LaneName name, std::uint32_t attempt);
  [[nodiscard]] bool replaces_lanes() const;
  void answer_again(Receivers& lanes);
  void tell_missing(Receivers& lanes, std::uint32_t attempt);
  bool on_resume(Receivers& lanes);
  void shut(Receivers& lanes);
  Task abandon(bool poison);
  void reset_claims();

  bool on_bulk_frame(Receivers& lanes, std::uint8_t number, std::uint32_t attempt,
                     const Frame& frame);
  Task wait_for_room(Receivers& lanes, runtime::LaneName name, std::uint32_t attempt,
                     const Frame& frame);
  bool on_marker(Receivers& lanes, Receivers::Bulk& lane, const Frame& frame);
  bool on_urgent_frame(Receivers& lanes, std::uint32_t attempt, const Frame& frame);
  bool settled(const base::Outcome& outcome);
  void lane_lost(Receivers& lanes, runtime::LaneName name, std::uint32_t attempt, bool corrupt);
  void keep_a_claim();
  void check_epoch(Receivers& lanes, runtime::LaneName name, std::uint32_t attempt);
  static void finish_sending(Receivers& lanes);

  void start_thread(Receivers& lanes, const std::string& name, Task work);
  Task counted(Receivers& lanes, Task work);
  void tell(runtime::wire::FrameType type, std::span<const std::byte> payload = {});
  void ask_due();
  void ask(std::span<const base::PageIndex> pages);
  void ask_again(base::PageRange range);
  void sweep_more(Receivers& lanes);
  void progress();
  void check_delta();
  bool step(runtime::TargetEvent event);

  World& world_;
  Network& network_;
  const Identity& identity_;
  runtime::PageMap map_;
  runtime::RequestTable requests_;
  TargetGuest guest_;
  runtime::PageReceiver receiver_;
  runtime::RunGate gate_{runtime::Ownership::kIncoming};
  runtime::TargetState state_ = runtime::TargetState::kListening;

  std::deque<Receivers> epochs_;
  Receivers* now_ = nullptr;  // The epoch whose lanes are used.
  std::uint64_t newest_ = 1;
  LinkState link_ = LinkState::kTied;
  std::map<std::uint64_t, std::uint32_t> attached_;  // Attempts in use, by lane_code().
  std::set<std::uint64_t> asked_;                    // Pages, in this epoch. For checks.

  std::vector<base::PageRange> stale_;
  std::uint64_t stale_pages_ = 0;
  bool final_applied_ = false;
  bool postcopy_ = false;
  bool never_ = false;
  bool told_no_room_ = false;  // The source knows.
  bool order_read_ = false;
  bool may_repeat_order_ = false;
  bool entered_ = false;  // A vCPU has, and the source was told on the lanes that there were.
};

}  // namespace towline::simulation
