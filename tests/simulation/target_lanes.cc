// The target's bulk and urgent lanes: runtime/target/receivers.cc as tasks.
#include <algorithm>
#include <utility>

#include "tests/simulation/target_end.h"

namespace towline::simulation {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using runtime::LaneName;
using runtime::wire::FrameHeader;
using runtime::wire::FrameType;
using runtime::wire::kPostcopyRound;
using runtime::wire::LaneRole;

namespace {

constexpr std::uint64_t kSweepWindow = 2;

}  // namespace

/// The lanes of the first epoch are there already, and nobody would have taken them before.
Pause TargetEnd::until_described() {
  return until([this] { return state() != runtime::TargetState::kListening; });
}

Task TargetEnd::bulk(Receivers& lanes, std::size_t number, Connection& lane,
                     std::uint32_t attempt) {
  const LaneName name{LaneRole::kBulk, static_cast<std::uint8_t>(number)};
  Pipe& pipe = lane.to_target;
  co_await until_described();
  while (true) {
    co_await until([&pipe] { return pipe.readable(); });
    auto taken = pipe.take(!world_.planted(Plant::kSumNotChecked));
    if (!taken.ok() || !taken.value().has_value()) {
      if (!taken.ok()) {
        keep_a_claim();
      }
      co_return lane_ended(lanes, name, attempt,
                           !taken.ok() && taken.error().kind == base::ErrorKind::kCorrupt);
    }
    const Frame& frame = *taken.value();
    if (world_.planted(Plant::kClaimKept) && frame.header.type == FrameType::kPages &&
        world_.random.once_in(8)) {
      (void)map_.claim_run(frame.pages());
      continue;
    }
    if (!on_bulk_frame(lanes, name.number, attempt, frame)) {
      co_return lane_ended(lanes, name, attempt, true);
    }
    if (lanes.bulk[number].no_room) {
      co_await wait_for_room(lanes, name, attempt, frame);
      if (lanes.lost || !brain_.takes_a_pass()) {
        co_return lane_ended(lanes, name, attempt, false);
      }
    }
    progress();
  }
}

/// Again and again, until the frame was stored or there is nothing left to store it for.
Task TargetEnd::wait_for_room(Receivers& lanes, LaneName name, std::uint32_t attempt,
                              const Frame& frame) {
  world_.saw("a lane that waited for room");
  ++world_.wait_for_room;
  bool stored = false;
  while (!stored && !lanes.lost &&
         feed({.kind = Input::Kind::kNoRoom,
               .error = base::Error{base::ErrorKind::kOverloaded, 0, "receive", "no room"}})
             .ok()) {
    co_await simulation::step();
    stored = brain_.takes_a_pass() && !lanes.lost &&
             on_bulk_frame(lanes, name.number, attempt, frame) && !lanes.bulk[name.number].no_room;
  }
  --world_.wait_for_room;
  if (stored) {
    (void)feed({.kind = Input::Kind::kRoomFound});
  }
}

/// As a lane would that claims before its frame is complete.
void TargetEnd::keep_a_claim() {
  const auto missing = map_.next_missing(PageIndex{0}, PageCount{1});
  if (world_.planted(Plant::kClaimKeptAtFence) && postcopy_ && missing.has_value()) {
    (void)map_.claim_run(*missing);
  }
}

void TargetEnd::check_epoch(Receivers& lanes, LaneName name, std::uint32_t attempt) {
  if (lanes.epoch != now_->epoch) {
    world_.fail("a frame of an old epoch was installed");
  }
  if (attempt < attached_[runtime::lane_code(name)]) {
    world_.fail("a frame of a lane that was replaced was installed");
  }
}

bool TargetEnd::on_bulk_frame(Receivers& lanes, std::uint8_t number, std::uint32_t attempt,
                              const Frame& frame) {
  check_epoch(lanes, LaneName{LaneRole::kBulk, number}, attempt);
  Receivers::Bulk& lane = lanes.bulk[number];
  lane.no_room = false;
  const FrameHeader& header = frame.header;
  const bool after = header.round == kPostcopyRound;
  if (after != postcopy_ || (!after && header.round != lane.markers + 1)) {
    if (!lane.lane->to_target.swallowed()) {
      world_.fail("a frame of a round that is not due on its lane");
    }
    return false;
  }
  if (header.type == FrameType::kMarker) {
    return on_marker(lanes, lane, frame);
  }
  if (!world_.layout.valid(frame.pages())) {
    world_.fail("a frame names no pages of the machine");
    return false;
  }
  if (header.type == FrameType::kZeros) {
    return settled(receiver_.on_zeros(frame.pages()));
  }
  if (world_.planted(Plant::kInstalledOverwritten) && after) {
    const auto written = guest_.write(frame.pages(), frame.payload);
    return written.ok();
  }
  const auto taken = receiver_.on_pages(frame.pages(), frame.payload);
  lane.no_room = world_.setup.trouble == Trouble::kNoRoom && !after && !taken.ok();
  return settled(taken);
}

/// No memory for a page is no fault of the lane: the page stays missing and is swept.
bool TargetEnd::settled(const base::Outcome& outcome) {
  if (!outcome.ok() && outcome.error().kind != base::ErrorKind::kOverloaded) {
    world_.fail("a good frame was refused: " + base::to_string(outcome.error()));
    return false;
  }
  return true;
}

bool TargetEnd::on_marker(Receivers& lanes, Receivers::Bulk& lane, const Frame& frame) {
  if (frame.header.round != kPostcopyRound) {
    lane.markers = frame.header.round;
    return true;
  }
  lane.pushed_all = true;
  if (lanes.all_pushed() && !world_.planted(Plant::kSweepForgotten)) {
    sweep_more(lanes);
  }
  return true;
}

void TargetEnd::sweep_more(Receivers& lanes) {
  if (lanes.urgent == nullptr) {
    return;  // Everything was pushed before there was a lane to ask on: on_resume() sweeps.
  }
  while (lanes.sweep_outstanding < kSweepWindow) {
    auto run = map_.next_missing(lanes.sweep_at, PageCount{runtime::wire::kMaxPagesPerRequest});
    if (!run.has_value() && lanes.sweep_at.value != 0 && lanes.sweep_outstanding == 0) {
      // What could not be installed when its turn came is asked for once more.
      lanes.sweep_at = PageIndex{0};
      run = map_.next_missing(lanes.sweep_at, PageCount{runtime::wire::kMaxPagesPerRequest});
    }
    if (!run.has_value()) {
      return;
    }
    world_.saw("a sweep");
    const PageRange part = world_.layout.clip(*run);
    lanes.sweep_at = part.end();
    ++lanes.sweep_outstanding;
    lanes.urgent->to_source.send({.type = FrameType::kRequest,
                                  .flags = runtime::wire::kFlagSweep,
                                  .first = part.first.value,
                                  .count = part.count.value});
  }
}

Task TargetEnd::urgent(Receivers& lanes, Connection& lane, std::uint32_t attempt) {
  const LaneName name{LaneRole::kUrgent, 0};
  Pipe& pipe = lane.to_target;
  co_await until_described();
  while (true) {
    co_await until([&pipe] { return pipe.readable(); });
    auto taken = pipe.take(!world_.planted(Plant::kSumNotChecked));
    if (!taken.ok() || !taken.value().has_value()) {
      co_return lane_ended(lanes, name, attempt,
                           !taken.ok() && taken.error().kind == base::ErrorKind::kCorrupt);
    }
    if (!on_urgent_frame(lanes, attempt, *taken.value())) {
      co_return lane_ended(lanes, name, attempt, true);
    }
    progress();
  }
}

bool TargetEnd::on_urgent_frame(Receivers& lanes, std::uint32_t attempt, const Frame& frame) {
  check_epoch(lanes, LaneName{LaneRole::kUrgent, 0}, attempt);
  if (!postcopy_ || !world_.layout.valid(frame.pages())) {
    world_.fail("an answer to what was not asked");
    return false;
  }
  const bool claimed = is_claimed(map_.state(frame.pages().first));
  const bool pages = frame.header.type == FrameType::kPages;
  if (claimed && pages) {
    world_.saw("an answer met a claim");
  }
  const auto outcome = pages ? receiver_.on_demanded(frame.pages(), frame.payload)
                             : receiver_.on_zeros(frame.pages());
  if ((frame.header.flags & runtime::wire::kFlagSweep) != 0) {
    --lanes.sweep_outstanding;
  }
  if (!outcome.ok()) {
    ask_again(frame.pages());
  }
  if (lanes.all_pushed() && !world_.planted(Plant::kSweepForgotten)) {
    sweep_more(lanes);
  }
  return settled(outcome);
}

/// The answer could not be kept. Whoever waits would wait for ever.
void TargetEnd::ask_again(PageRange range) {
  for (PageIndex page = range.first; page < range.end(); ++page.value) {
    if (map_.state(page) == runtime::PageState::kMissing) {
      const std::vector<PageIndex> pages{page};
      ask(pages);
    }
  }
}

// ---- the end of a lane --------------------------------------------------------------------------

void TargetEnd::lane_ended(Receivers& lanes, LaneName name, std::uint32_t attempt, bool corrupt) {
  --lanes.fate(name).readers;
  if (&lanes != now_) {
    return;  // Only where a mistake is planted.
  }
  const base::Error reason{corrupt ? base::ErrorKind::kCorrupt : base::ErrorKind::kDisconnected, 0,
                           "receive", "it ended"};
  (void)feed({.kind = Input::Kind::kLaneEnded, .error = reason, .lane = name, .number = attempt});
}

void TargetEnd::finish_sending(Receivers& lanes) {
  for (Connection* lane : lanes.all()) {
    if (lane != lanes.control) {
      lane->to_source.close();
    }
  }
}

}  // namespace towline::simulation
