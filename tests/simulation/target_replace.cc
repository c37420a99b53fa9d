// A data lane that is replaced, and what the target's watch says: tasks of runtime/target.
#include <algorithm>
#include <string>

#include "tests/simulation/target_end.h"

namespace towline::simulation {

using runtime::LaneName;
using runtime::wire::LaneRole;

/// All of them may have been shut since the brain let it in.
void TargetEnd::attach(LaneName name, Connection& lane) {
  Receivers& lanes = *now_;
  if (lanes.lost && !world_.planted(Plant::kOldLaneAccepted)) {
    world_.saw("a lane that came when all were shut");
    return refuse(lane);
  }
  lanes.place_of(name) = &lane;
  ++lanes.fate(name).readers;
  if (name.role == LaneRole::kUrgent) {
    start_thread(lanes, "urgent", urgent(lanes, lane, 0));
  } else {
    start_thread(lanes, runtime::to_string(name), bulk(lanes, name.number, lane, 0));
  }
}

void TargetEnd::replace(LaneName name, Connection& lane, std::uint32_t attempt) {
  Receivers& lanes = *now_;
  if (lanes.lost) {
    return refuse(lane);
  }
  lanes.fate(name).attempt = attempt;
  if (world_.planted(Plant::kLaneMissingEarly) && name.role == LaneRole::kBulk) {
    tell_missing(attempt);
  }
  if (!world_.planted(Plant::kLaneNotJoined)) {
    refuse(*lanes.place_of(name));
  }
  start_thread(lanes, runtime::to_string(name) + " again",
               run_in_place(lanes, name, lane, attempt));
}

/// The fence of one lane: its receiver has ended, and what it held is settled.
Task TargetEnd::run_in_place(Receivers& lanes, LaneName name, Connection& lane,
                             std::uint32_t attempt) {
  const bool joins = !world_.planted(Plant::kLaneNotJoined);
  co_await until(
      [&lanes, name, joins] { return lanes.lost || lanes.fate(name).readers == 0 || !joins; });
  if (lanes.lost || lanes.fate(name).attempt != attempt) {
    refuse(lane);
    co_return;
  }
  lanes.place_of(name) = &lane;
  attached_[runtime::lane_code(name)] = attempt;
  replaced(lanes, name, attempt);
  ++lanes.fate(name).readers;
  if (name.role == LaneRole::kUrgent) {
    co_await urgent(lanes, lane, attempt);
  } else {
    co_await bulk(lanes, name.number, lane, attempt);
  }
}

void TargetEnd::replaced(Receivers& lanes, LaneName name, std::uint32_t attempt) {
  if (name.role == LaneRole::kBulk) {
    lanes.bulk[name.number].pushed_all = false;
  } else {
    asked_.clear();
  }
  (void)feed({.kind = Input::Kind::kLaneReplaced, .lane = name, .number = attempt});
}

// ---- signs of life ------------------------------------------------------------------------------

bool TargetEnd::misses_a_marker() const {
  return awaited_pass_ != 0 && !gave_up_markers_ &&
         std::any_of(now_->bulk.begin(), now_->bulk.end(), [this](const Receivers::Bulk& bulk) {
           return bulk.markers < awaited_pass_ && bulk.lane->to_target.swallowed();
         });
}

/// Where the brain judges nobody, what is wrong with the link is found out by TCP.
void TargetEnd::give_up() {
  if (misses_a_marker()) {
    world_.saw("a marker that was swallowed");
    (void)feed({.kind = Input::Kind::kMarkerSilent,
                .lane = {LaneRole::kBulk, 0},
                .number = awaited_pass_,
                .silent = runtime::MigrationOptions().frozen_patience});
    return;
  }
  const bool control_lives = !now_->control->held_up() && !world_.frozen(Process::kSource) &&
                             !world_.dead(Process::kSource);
  if (!control_lives || now_->urgent == nullptr || !now_->urgent->held_up() ||
      !brain_.replaces_lanes()) {
    return lose();
  }
  (void)feed({.kind = Input::Kind::kSigns,
              .signs = {.verdict = runtime::LinkVerdict::kDead, .urgent_dead = true},
              .epoch = brain_.epoch()});
}

void TargetEnd::lose() {
  if (!brain_.is_watched()) {
    return shut(*now_);
  }
  (void)feed({.kind = Input::Kind::kSigns,
              .signs = {.verdict = runtime::LinkVerdict::kFrozen, .words = "frozen"},
              .epoch = brain_.epoch()});
}

}  // namespace towline::simulation
