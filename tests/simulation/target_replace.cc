// A data lane that is lost alone: runtime/target/lane_replacement.cc and target_lanes.cc as tasks.
#include <string>

#include "tests/simulation/target_end.h"

namespace towline::simulation {

using base::PageIndex;
using runtime::LaneName;
using runtime::TargetState;
using runtime::wire::Hello;
using runtime::wire::LaneRole;

bool TargetEnd::replaces_lanes() const {
  return state_ == TargetState::kRunning && link_ == LinkState::kTied;
}

/// What was true at the greeting may not be true any more.
void TargetEnd::replace(Connection& connection, const Hello& hello) {
  Receivers& lanes = *now_;
  const LaneName name{hello.role, hello.lane};
  const bool due = hello.epoch == lanes.epoch && hello.epoch == newest_ && !lanes.lost &&
                   lanes.place_of(name) != nullptr;
  const bool later = due && hello.attempt > lanes.fate(name).attempt;
  if (due && !later) {
    world_.saw("an attempt that was overtaken");
  }
  if (!due || (!later && !world_.planted(Plant::kOldAttemptAccepted))) {
    connection.to_source.close();
    return connection.to_target.shut(world_.random);
  }
  lanes.fate(name).attempt = hello.attempt;
  if (world_.planted(Plant::kLaneMissingEarly) && name.role == LaneRole::kBulk) {
    tell_missing(lanes, hello.attempt);
  }
  if (!world_.planted(Plant::kLaneNotJoined)) {
    lanes.place_of(name)->to_source.close();
    lanes.place_of(name)->to_target.shut(world_.random);
  }
  start_thread(lanes, runtime::to_string(name) + " again",
               run_in_place(lanes, name, connection, hello.attempt));
}

/// The fence of one lane: its receiver has ended, and what it held is settled.
Task TargetEnd::run_in_place(Receivers& lanes, LaneName name, Connection& lane,
                             std::uint32_t attempt) {
  const bool joins = !world_.planted(Plant::kLaneNotJoined);
  co_await until(
      [&lanes, name, joins] { return lanes.lost || lanes.fate(name).readers == 0 || !joins; });
  if (lanes.lost || lanes.fate(name).attempt != attempt) {
    lane.to_source.close();
    lane.to_target.shut(world_.random);
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
    if (!world_.planted(Plant::kLaneMissingEarly)) {
      world_.being_installed.clear();
      for (PageIndex page{0}; page.value < map_.pages().value; ++page.value) {
        if (is_claimed(map_.state(page))) {
          world_.being_installed.insert(page.value);
        }
      }
      tell_missing(lanes, attempt);
    }
    return;
  }
  asked_.clear();
  if (!world_.planted(Plant::kLaneNotAsked)) {
    requests_.want_all();
    ask_due();
  }
  lanes.sweep_at = PageIndex{0};
  lanes.sweep_outstanding = 0;
  if (lanes.all_pushed()) {
    sweep_more(lanes);
  }
}

void TargetEnd::give_up() {
  const bool alive = !now_->control->held_up() && !world_.frozen(Process::kSource) &&
                     !world_.dead(Process::kSource);
  if (alive && replaces_lanes() && now_->urgent->held_up()) {
    now_->urgent->to_source.close();
    return now_->urgent->to_target.shut(world_.random);
  }
  lose();
}

}  // namespace towline::simulation
