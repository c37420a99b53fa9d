#include "tests/simulation/target_end.h"

#include <string>
#include <utility>
#include <vector>

#include "runtime/link/handshake.h"

namespace towline::simulation {

using base::PageIndex;
using runtime::PageState;
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
      receiver_(world.layout, guest_, map_, requests_, world.clock, [this] { ask_due(); }),
      brain_(runtime::MigrationOptions{}, world.layout.pages()) {
  now_ = &epochs_.emplace_back(1, tied.bulk.size());
  now_->control = tied.control;
  now_->urgent = tied.urgent;
  for (std::size_t i = 0; i < tied.bulk.size(); ++i) {
    now_->bulk[i].lane = tied.bulk[i];
  }
  runtime::wire::Hello hello;
  hello.id = identity.id;
  hello.epoch = 1;
  hello.features = runtime::kFeatures;
  (void)feed({.kind = Input::Kind::kControlProven, .hello = hello});
}

void TargetEnd::start() {
  world_.add_actor(Process::kTarget, "target control", control(*now_));
  world_.add_actor(Process::kTarget, "target load", load_and_run());
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
  co_await until([this] { return state() == TargetState::kReceiving; });
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

// ---- the control lane ---------------------------------------------------------------------------

Task TargetEnd::control(Receivers& lanes) {
  co_await read_control(lanes);
}

Task TargetEnd::read_control(Receivers& lanes) {
  Pipe& pipe = lanes.control->to_target;
  while (true) {
    co_await until([&pipe] { return pipe.readable(); });
    auto taken = pipe.take();
    if (!taken.ok()) {
      co_return end_of_control(lanes, taken.error());
    }
    if (!taken.value().has_value()) {
      co_return end_of_control(lanes, {base::ErrorKind::kDisconnected, 0, "receive", "closed"});
    }
    reading_ = std::move(*taken.value());
    if (reading_.header.type == FrameType::kDescribe) {
      if (!on_describe(lanes)) {
        co_return;
      }
      continue;
    }
    const bool again = reading_.header.type == FrameType::kRun && brain_.order_read();
    base::Outcome outcome = base::Done{};
    const Input input{.kind = Input::Kind::kFrame, .frame = reading_.header};
    co_await obey(lanes, input, outcome);
    if (again) {
      world_.saw("an order that was obeyed already");
      if (world_.planted(Plant::kRunTwice) && ownership() == runtime::Ownership::kHere) {
        world_.add_actor(Process::kTarget, "target runs again", start_guest());
      }
    }
    check_refusal(reading_, outcome);
    if (!outcome.ok()) {
      co_return end_of_control(lanes, outcome.error());
    }
  }
}

/// What an honest source sends, whole, is due: unless a frame before it was lost.
void TargetEnd::check_refusal(const Frame& frame, const base::Outcome& outcome) {
  if (!outcome.ok() && !now_->control->to_target.swallowed() && !gave_up_markers_ &&
      outcome.error().kind == base::ErrorKind::kCorrupt) {
    world_.fail("the target cannot take " +
                std::string(runtime::wire::to_string(frame.header.type)) + ": " +
                outcome.error().detail);
  }
}

/// False: it does not fit.
bool TargetEnd::on_describe(Receivers& lanes) {
  const bool refuses = world_.setup.trouble == Trouble::kRefusal;
  (void)feed({.kind = refuses ? Input::Kind::kMisdescribed : Input::Kind::kDescribed,
              .number = lanes.bulk.size()});
  if (!refuses) {
    prove_lanes(lanes);
    tell(FrameType::kAccept);
    return true;
  }
  world_.link_harmed = true;
  tell(FrameType::kRefuse);
  shut(lanes);
  lanes.control_ended = true;
  return false;
}

/// Those of the first epoch are tied already.
void TargetEnd::prove_lanes(const Receivers& lanes) {
  runtime::wire::Hello hello;
  hello.id = identity_.id;
  hello.epoch = lanes.epoch;
  hello.role = runtime::wire::LaneRole::kUrgent;
  (void)feed({.kind = Input::Kind::kLaneProven, .hello = hello});
  hello.role = runtime::wire::LaneRole::kBulk;
  for (; hello.lane < lanes.bulk.size(); ++hello.lane) {
    (void)feed({.kind = Input::Kind::kLaneProven, .hello = hello});
  }
}

void TargetEnd::end_of_control(Receivers& lanes, const base::Error& reason) {
  lanes.lost = true;
  (void)feed({.kind = Input::Kind::kControlEnded, .error = reason});
  shut_control(lanes);
  lanes.control_ended = true;
}

//// Whatever is here now is what the guest wrote last at the source: nobody looks at it again. A
/// target that has said never goes on reading, and its source writing.
void TargetEnd::check_delta() {
  if (brain_.never()) {
    return;
  }
  for (std::uint64_t i = 0; i < world_.layout.pages().value; ++i) {
    const PageIndex page{i};
    const std::uint64_t expected = world_.latest[i];
    const bool here = map_.state(page) != PageState::kMissing;
    if (here && guest_.in_file(page) != Content{expected, expected}) {
      world_.fail("a stale page survived the final delta: page " + std::to_string(i));
    }
  }
}

void TargetEnd::leave() {
  if (state() == TargetState::kReceiving) {
    world_.link_harmed = true;
    (void)feed({.kind = Input::Kind::kLaneEnded,
                .error = base::Error{base::ErrorKind::kOverloaded, 0, "receive", "no room"},
                .lane = {runtime::wire::LaneRole::kBulk, 0}});
  }
}

// ---- completion ---------------------------------------------------------------------------------

void TargetEnd::progress() {
  if (world_.runs_there &&
      map_.missing().value <= (world_.planted(Plant::kCompleteEarly) ? 1U : 0U)) {
    (void)feed({.kind = Input::Kind::kNothingMissing});
  }
}

}  // namespace towline::simulation
