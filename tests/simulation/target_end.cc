#include "tests/simulation/target_end.h"

#include <string>
#include <vector>

namespace towline::simulation {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using runtime::PageState;
using runtime::TargetAction;
using runtime::TargetEvent;
using runtime::TargetState;
using runtime::wire::FrameType;

// Threads of the guest: the vCPUs, and behind them the loader.
TargetEnd::TargetEnd(World& world, Network& network, const Identity& identity,
                     const SourceLanes& tied)
    : world_(world),
      network_(network),
      identity_(identity),
      map_(world.layout.pages()),
      requests_(world.setup.request_bound),
      guest_(world, map_, world.setup.vcpus + 1),
      receiver_(world.layout, guest_, map_, requests_, world.clock, [this] { ask_due(); }) {
  now_ = &epochs_.emplace_back(1, tied.bulk.size());
  now_->control = tied.control;
  now_->urgent = tied.urgent;
  for (std::size_t i = 0; i < tied.bulk.size(); ++i) {
    now_->bulk[i].lane = tied.bulk[i];
  }
}

void TargetEnd::start() {
  world_.add_actor(Process::kTarget, "target control", control(*now_));
  world_.add_actor(Process::kTarget, "target faults", faults());
  ++now_->fate({runtime::wire::LaneRole::kUrgent, 0}).readers;
  start_thread(*now_, "urgent", urgent(*now_, *now_->urgent, 0));
  for (std::size_t i = 0; i < now_->bulk.size(); ++i) {
    ++now_->fate({runtime::wire::LaneRole::kBulk, static_cast<std::uint8_t>(i)}).readers;
    start_thread(*now_, "bulk " + std::to_string(i), bulk(*now_, i, *now_->bulk[i].lane, 0));
  }
  for (std::size_t i = 0; i < world_.setup.vcpus; ++i) {
    world_.add_actor(Process::kTarget, "vcpu " + std::to_string(i), vcpu(i));
  }
  if (world_.planted(Plant::kServeEarly)) {
    world_.add_actor(Process::kTarget, "early toucher", early_toucher());
  }
}

void TargetEnd::start_thread(Receivers& lanes, const std::string& name, Task work) {
  ++lanes.threads;
  world_.add_actor(Process::kTarget, "target " + name, counted(lanes, std::move(work)));
}

Task TargetEnd::counted(Receivers& lanes, Task work) {
  co_await work;
  --lanes.threads;
}

// ---- the guest's threads ------------------------------------------------------------------------

Task TargetEnd::vcpu(std::size_t thread) {
  co_await until([this] { return world_.runs_there; });
  const std::uint64_t pages = world_.layout.pages().value;
  const bool sequential = world_.random.once_in(3);
  std::uint64_t at = world_.random.below(pages);
  for (std::uint64_t i = 0; i < world_.setup.target_accesses; ++i) {
    at = sequential ? (at + 1) % pages : world_.random.below(pages);
    const PageIndex page{at};
    const bool writes = world_.random.once_in(2);
    while (!guest_.access(thread, page, writes)) {
      co_await until([this, thread] { return !guest_.blocked(thread); });
    }
    if (world_.random.once_in(10)) {
      guest_.reclaim(PageIndex{world_.random.below(pages)});
    }
    co_await simulation::step();
  }
}

Task TargetEnd::early_toucher() {
  co_await until([this] { return state_ == TargetState::kReceiving; });
  (void)guest_.access(world_.setup.vcpus, PageIndex{0}, false);
}

Task TargetEnd::faults() {
  while (true) {
    // A full table sends a fault back to be tried again: without a link that would have no end.
    co_await until([this] {
      return guest_.has_faults() && (tied() || requests_.size() < world_.setup.request_bound);
    });
    bool due = false;
    for (const PageIndex page : guest_.read_faults(world_.random.between(1, 4))) {
      if (world_.planted(Plant::kFaultDropped) && is_claimed(map_.state(page))) {
        continue;
      }
      world_.preempt();
      if (is_claimed(map_.state(page))) {
        world_.saw("a fault on a claimed page");
      }
      due = receiver_.on_fault(page) || due;
    }
    world_.preempt();
    if (due) {
      ask_due();
    }
  }
}

/// They stay due where there is no lane to ask on: the next epoch asks for everything again.
void TargetEnd::ask_due() {
  std::array<PageIndex, 8> pages;
  while (const std::size_t count = now_->urgent != nullptr ? requests_.next_due(pages) : 0) {
    ask(std::span(pages).first(count));
    requests_.sent(std::span(pages).first(count));
  }
}

/// Lost where there is no lane to ask on.
void TargetEnd::ask(std::span<const PageIndex> pages) {
  if (now_->urgent == nullptr) {
    return;
  }
  for (const PageIndex page : pages) {
    asked_.insert(page.value);
    now_->urgent->to_source.send({.type = FrameType::kRequest, .first = page.value, .count = 1});
  }
}

void TargetEnd::tell(FrameType type, std::span<const std::byte> payload) {
  now_->control->to_source.send({.type = type}, payload);
}

// ---- the control lane ---------------------------------------------------------------------------

Task TargetEnd::control(Receivers& lanes) {
  co_await read_control(lanes);
}

Task TargetEnd::read_control(Receivers& lanes) {
  Pipe& pipe = lanes.control->to_target;
  while (true) {
    co_await until([&pipe] { return pipe.readable(); });
    const auto taken = pipe.take();
    if (!taken.ok() || !taken.value().has_value()) {
      co_return end_of_control(lanes,
                               !taken.ok() && taken.error().kind == base::ErrorKind::kCorrupt);
    }
    const Frame& frame = *taken.value();
    if (frame.header.type == FrameType::kRoundEnd && !world_.planted(Plant::kStaleBeforeMarkers)) {
      const std::uint32_t pass = frame.header.round;
      co_await until([&lanes, pass] { return lanes.lost || lanes.all_markers(pass); });
    }
    if (state_ == TargetState::kFailed) {
      continue;  // Of no use any more; the source closes when it has heard why.
    }
    if (frame.header.type == FrameType::kResume) {
      co_await until([&lanes] { return lanes.all_attached() || lanes.lost; });
    }
    if (!on_frame(lanes, frame)) {
      break;
    }
  }
  end_of_control(lanes, false);
}

/// False: the lane is of no use any more.
bool TargetEnd::on_frame(Receivers& lanes, const Frame& frame) {
  const FrameType type = frame.header.type;
  if (type == FrameType::kStale) {
    return on_stale(frame);
  }
  if (type == FrameType::kRoundEnd) {
    return apply_round(lanes, frame);
  }
  if (type == FrameType::kPages) {
    return on_first_pages(frame);
  }
  if (type == FrameType::kRun) {
    return on_order();
  }
  if (type == FrameType::kResume) {
    return on_resume(lanes);
  }
  if (type == FrameType::kDescribe) {
    on_describe();
  } else if (type == FrameType::kCancel) {
    never_ = true;
    step(TargetEvent::kCancelled);
    return false;
  } else if (type == FrameType::kState) {
    if (!final_applied_ || !step(TargetEvent::kStateReceived)) {
      world_.fail("the state came before the last delta");
    }
    world_.add_actor(Process::kTarget, "target load", load());
  }
  return true;
}

void TargetEnd::on_describe() {
  if (world_.setup.trouble == Trouble::kRefusal) {
    world_.link_harmed = true;
    tell(FrameType::kRefuse);
    now_->control->to_source.close();
    return;
  }
  step(TargetEvent::kDescriptionAccepted);
  tell(FrameType::kAccept);
}

bool TargetEnd::on_stale(const Frame& frame) {
  const auto runs = runtime::wire::decode_runs(frame.header, frame.payload, world_.layout.pages());
  if (!runs.ok() || final_applied_) {
    world_.fail("a stale set that cannot be right");
    return false;
  }
  stale_pages_ += frame.header.count;
  stale_.insert(stale_.end(), runs.value().begin(), runs.value().end());
  return true;
}

/// A lane that broke after its marker has delivered all of the pass: the order behind it counts.
bool TargetEnd::apply_round(Receivers& lanes, const Frame& frame) {
  if (!lanes.all_markers(frame.header.round) && !world_.planted(Plant::kStaleBeforeMarkers)) {
    return false;
  }
  if (frame.header.count != stale_pages_ || final_applied_) {
    world_.fail("a round ends with another count than it named");
    return false;
  }
  for (const PageRange& run : stale_) {
    receiver_.on_stale(run);
  }
  stale_.clear();
  stale_pages_ = 0;
  if ((frame.header.flags & runtime::wire::kFlagFinal) == 0) {
    lanes.control->to_source.send({.type = FrameType::kStaleApplied,
                                   .count = frame.header.count,
                                   .round = frame.header.round});
    return true;
  }
  if (map_.claimed().value != 0) {
    world_.fail("a claim of the pre-pass outlives the final delta");
  }
  final_applied_ = postcopy_ = world_.switched = true;
  check_delta();
  return true;
}

// Whatever is here now is what the guest wrote last at the source: nobody looks at it again.
void TargetEnd::check_delta() {
  for (std::uint64_t i = 0; i < world_.layout.pages().value; ++i) {
    const PageIndex page{i};
    const std::uint64_t expected = world_.latest[i];
    const bool here = map_.state(page) != PageState::kMissing;
    if (here && guest_.in_file(page) != Content{expected, expected}) {
      world_.fail("a stale page survived the final delta: page " + std::to_string(i));
    }
  }
}

bool TargetEnd::on_first_pages(const Frame& frame) {
  if (!final_applied_ || !world_.layout.valid(frame.pages())) {
    world_.fail("pages on the control lane outside the flight");
    return false;
  }
  return settled(receiver_.on_pages(frame.pages(), frame.payload));
}

/// Obeyed once, however often it is given, and not before the state is loaded.
bool TargetEnd::on_order() {
  if (order_read_) {
    world_.saw("an order that was obeyed already");
    if (world_.planted(Plant::kRunTwice)) {
      world_.fail("the order was obeyed twice");
    }
    return std::exchange(may_repeat_order_, false);
  }
  if (state_ == TargetState::kLoaded) {
    step(TargetEvent::kRunOrdered);
  } else if (state_ != TargetState::kLoading) {
    return false;
  }
  order_read_ = true;
  return true;
}

/// Everything that the source sent was read. Only now it is known whether the order was among it.
void TargetEnd::end_of_control(Receivers& lanes, bool corrupt) {
  const bool over = state_ == TargetState::kCompleted || state_ == TargetState::kFailed ||
                    runtime::shuts_out(state_);
  if (state_ == TargetState::kReceiving) {
    never_ = !world_.planted(Plant::kTombstoneForgotten);  // Before anything is dropped.
  }
  if (!over && state_ != TargetState::kListening && state_ != TargetState::kLoading) {
    step(TargetEvent::kLinkLost);
  }
  link_ = LinkState::kLost;
  lanes.lost = true;
  finish_sending(lanes);
  if (corrupt || lanes.corrupt || state_ == TargetState::kFailed) {
    shut(lanes);
  }
  lanes.control->to_source.close();
  lanes.control->to_target.shut(world_.random);
  lanes.control_ended = true;
}

bool TargetEnd::step(TargetEvent event) {
  const auto rule = runtime::step(state_, event);
  if (!rule.ok()) {
    world_.fail("the target cannot step: " + rule.error().detail);
    return false;
  }
  world_.coverage.target.emplace(state_, event);
  state_ = rule.value().to;
  return true;
}

void TargetEnd::leave() {
  if (state_ != TargetState::kReceiving) {
    return;
  }
  world_.link_harmed = true;
  never_ = true;
  tell(FrameType::kNever);
  step(TargetEvent::kLinkLost);
  shut(*now_);
}

// ---- completion ---------------------------------------------------------------------------------

void TargetEnd::progress() {
  const bool full = map_.missing().value <= (world_.planted(Plant::kCompleteEarly) ? 1U : 0U);
  const bool runs = state_ == TargetState::kRunning || state_ == TargetState::kRunningAlone ||
                    state_ == TargetState::kRunningRecovering || state_ == TargetState::kAbandoning;
  // The source hears that its guest runs before it hears that it needs nothing more.
  const bool told = entered_ || (world_.runs_there && world_.planted(Plant::kCompleteUnannounced));
  if (!full || !runs || !told) {
    return;
  }
  step(TargetEvent::kNothingMissing);
  now_->control->to_source.send(
      {.type = FrameType::kComplete, .count = world_.layout.pages().value});
  guest_.release();
}

}  // namespace towline::simulation
