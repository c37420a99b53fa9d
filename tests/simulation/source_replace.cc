// A data lane that is lost alone: runtime/source/lane_replacement.cc as tasks.
#include <algorithm>

#include "tests/simulation/source_end.h"

namespace towline::simulation {

using runtime::LaneName;
using runtime::SourceState;
using runtime::wire::LaneRole;

namespace {

constexpr int kMostTries = 3;

}  // namespace

/// From any thread of `lanes`.
void SourceEnd::lose_lane(const SourceLanes& lanes, LaneName lane, std::uint32_t attempt) {
  if (state_ != SourceState::kServing || &lanes != &epochs_.back()) {
    return lose();
  }
  if (inbox_.lost || inbox_.complete || attempt < epochs_.back().fate(lane).attempt) {
    return;
  }
  for (BrokenLane& known : inbox_.broken) {
    if (known.lane == lane) {
      known.attempt = std::max(known.attempt, attempt);
      return;
    }
  }
  inbox_.broken.push_back({lane, attempt});
  if (inbox_.broken.size() > 1) {
    world_.saw("two lanes that broke together");
    lose();
  }
}

/// Not replaced: the link counts as lost.
Task SourceEnd::replace_lane(bool& replaced) {
  const BrokenLane broken = inbox_.broken.front();
  SourceLanes& now = lanes();
  // Whatever was sent on it was sent before the target is greeted.
  now.fate(broken.lane).ended = true;
  Connection& old = *now.place_of(broken.lane);
  world_.random.once_in(3) ? old.to_target.cut(world_.random) : old.to_target.close();
  old.to_source.shut(world_.random);
  for (int tries = 0; tries < kMostTries && !inbox_.complete && !interrupted(); ++tries) {
    const std::uint32_t attempt = ++lane_attempts_;
    Connection* made = nullptr;
    co_await open_lane(broken.lane.role, broken.lane.number, made, attempt);
    if (made == nullptr) {
      continue;
    }
    bool told = broken.lane.role == LaneRole::kUrgent;
    if (!told) {
      co_await missing_of(*made, attempt, told);
    }
    if (told) {
      put_in_place(broken.lane, attempt, *made);
      replaced = true;
      co_return;
    }
    made->to_target.close();
    made->to_source.shut(world_.random);
  }
  if (!inbox_.complete) {
    world_.saw("a lane that could not be replaced");
    lose();
  }
}

Task SourceEnd::missing_of(const Connection& made, std::uint32_t attempt, bool& told) {
  co_await until([this, &made, attempt] {
    return inbox_.missing_attempt == attempt || interrupted() || inbox_.complete ||
           inbox_.broken.front().attempt >= attempt || made.held_up();
  });
  told = inbox_.missing_attempt == attempt;
}

void SourceEnd::put_in_place(LaneName lane, std::uint32_t attempt, Connection& made) {
  world_.saw("a lane that was replaced");
  if (inbox_.broken.front().attempt < attempt) {
    inbox_.broken.erase(inbox_.broken.begin());
  }
  SourceLanes& now = lanes();
  now.place_of(lane) = &made;
  now.fate(lane) = {attempt, false};
  holes_taken_ = false;
  if (lane.role == LaneRole::kUrgent) {
    start_thread(now, "server", server(now, made, attempt));
  }
}

void SourceEnd::give_up() {
  SourceLanes& now = lanes();
  const bool alive = now.control != nullptr && !now.control->held_up() && greeting_ == nullptr &&
                     !world_.frozen(Process::kTarget) && !world_.dead(Process::kTarget);
  if (state_ != SourceState::kServing || !alive) {
    return lose();
  }
  for (std::size_t i = 0; i <= now.bulk.size(); ++i) {
    const LaneName lane = i == 0 ? LaneName{LaneRole::kUrgent, 0}
                                 : LaneName{LaneRole::kBulk, static_cast<std::uint8_t>(i - 1)};
    if (!now.fate(lane).ended && now.place_of(lane)->held_up()) {
      return lose_lane(now, lane, now.fate(lane).attempt);
    }
  }
  lose();
}

}  // namespace towline::simulation
