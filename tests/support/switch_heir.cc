// The source's process may die between any two words that it leaves; whoever comes after it knows
// the ledger alone, as tools/page_server/server.cc: it goes on as heir, or keeps the guest and
// moves it to a further target, and may die as well.
#include <algorithm>
#include <utility>

#include "tests/support/switch_hands.h"
#include "tests/support/switch_world.h"

namespace towline::runtime::switch_model {
namespace {

constexpr std::uint64_t kIncarnation = 7;

}  // namespace

// ---- what is left for an heir -------------------------------------------------------------------

void Steps::Hands::change(OwnershipEvent event) {
  steps_.may_die(world_);
  if (event == OwnershipEvent::kOrder) {
    const StandbyPhase phase = world_.ledger.phase;
    steps_.note(phase != StandbyPhase::kOrdered && !(phase == StandbyPhase::kParked &&
                                                     steps_.mistake_ == Mistake::kOrderedAfterSend),
                "the guest is ordered away, and the ledger does not know");
  }
  steps_.gate(world_.here, event);
  world_.released = false;
  if (world_.here == Ownership::kHere) {
    world_.ran_on = world_.ran_on || !world_.kept;
    // A kept guest that no target has, and none will have, is kept on.
    world_.idle = world_.kept;
  }
  steps_.may_die(world_);
}

void Steps::Hands::write(StandbyPhase phase) {
  world_.ledger.phase = phase;
  steps_.may_die(world_);
}

void Steps::Hands::write_record() {
  world_.ledger.target = world_.which;
  steps_.may_die(world_);
}

base::Outcome Steps::Hands::leave_state() {
  if (!world_.kept) {
    world_.ledger.state = true;
    steps_.may_die(world_);
    write(StandbyPhase::kParked);
  }
  return base::Done{};
}

base::Outcome Steps::Hands::note_ordered() {
  if (steps_.mistake_ != Mistake::kOrderedAfterSend) {
    write(StandbyPhase::kOrdered);
  }
  return base::Done{};
}

void Steps::Hands::after_flight() {
  steps_.may_die(world_);
  if (steps_.mistake_ == Mistake::kOrderedAfterSend) {
    write(StandbyPhase::kOrdered);
  }
  if (steps_.mistake_ == Mistake::kServingBeforeWord) {
    write(StandbyPhase::kServing);
  }
  if (steps_.mistake_ == Mistake::kRecordAfterOrder) {
    write_record();
  }
}

void Steps::Hands::note_running() {
  write(StandbyPhase::kServing);
}

void Steps::Hands::note_release() {
  const bool kept = world_.kept && steps_.mistake_ != Mistake::kReleasedAsSource;
  if (steps_.mistake_ == Mistake::kReleasedAfterStart && !world_.kept) {
    World early = world_;
    early.here = Ownership::kHere;
    steps_.may_die(early);
  }
  world_.released = !kept;
  write(kept ? StandbyPhase::kParked : StandbyPhase::kRunning);
}

void Steps::Hands::note_over() {
  write(StandbyPhase::kOver);
}

void Steps::Hands::find() {
  if (!world_.kept) {
    return;
  }
  world_.ledger.epoch = 1;
  steps_.may_die(world_);
  if (steps_.mistake_ != Mistake::kRecordAfterOrder) {
    write_record();
  }
}

void Steps::Hands::greet(std::uint64_t epoch) {
  const auto note_epoch = [&] {
    world_.ledger.epoch = epoch;
    steps_.may_die(world_);
  };
  if (steps_.mistake_ != Mistake::kEpochAfterGreeting) {
    note_epoch();
  }
  steps_.note(epoch <= world_.greeted, "an epoch is used twice");
  world_.greeted = std::max(world_.greeted, epoch);
  steps_.may_die(world_);
  note_epoch();
}

// ---- a death, and what follows ------------------------------------------------------------------

void Steps::may_die(const World& world) {
  if (world.deaths == limits_.deaths || found_ == nullptr || world.fate != Fate::kOpen ||
      world.source.state() == SourceState::kCompleted) {
    return;
  }
  World dead = world;
  ++dead.deaths;
  dead.to_source.clear();
  dead.cut_there = true;  // Any tail of what is under way may be lost.
  dead.cut_back = true;
  dead.source_reads = false;
  dead.loss_told = true;
  dead.withheld.reset();
  // Its guest dies with it while it runs, until the ledger has it, and once it is released.
  const bool ours = world.here == Ownership::kHere || world.here == Ownership::kHeld;
  const bool died =
      !world.kept && (world.here == Ownership::kHere ||
                      (world.ledger.phase == StandbyPhase::kRunning && (ours || world.released)));
  note(died && ownership_left(world.ledger.phase).has_value(), "an old guest is kept");
  dead.fate = died ? Fate::kDiedWithSource : Fate::kOpen;
  died ? (*found_)(std::move(dead)) : settle(std::move(dead));
}

/// From the ledger alone.
void Steps::settle(World world) {
  const auto owner = ownership_left(world.ledger.phase);
  if (!owner.has_value()) {
    const auto arrived = [](const Peer& peer) {
      return peer.target.state() == TargetState::kCompleted || peer.given_up;
    };
    note(!arrived(world) && !(world.other.has_value() && arrived(*world.other)) &&
             !world.died_as_target,
         "the last copy of the guest is dropped");
    world.fate = Fate::kForgotten;
    return (*found_)(std::move(world));
  }
  note(!world.ledger.state, "a guest without its state is kept");
  note(world.ran_on, "an old guest is kept");
  if (world.ledger.target != world.which) {
    if (!world.other.has_value()) {
      return note(true, "the ledger names a target that there is not");
    }
    std::swap(static_cast<Peer&>(world), *world.other);
    world.which = world.ledger.target;
    world.cut_there = true;
    world.cut_back = true;
    world.to_source.clear();
  }
  world.source = SourceProtocol(Uri{}, options_, base::PageCount{1}, tables_.source);
  world.source_dump = world.source.dump();
  world.here = *owner;
  world.kept = true;
  world.released = false;
  world.idle = *owner == Ownership::kHere;
  world.inherited = !world.idle;
  const bool serving = world.ledger.phase == StandbyPhase::kServing;
  world.heard = serving;
  if (!world.idle) {
    tell(world, SourceInput{.kind = SourceInput::Kind::kInherit,
                            .text = "its process ended",
                            .number = kIncarnation,
                            .epoch = world.ledger.epoch,
                            .flag = serving});
  }
  (*found_)(std::move(world));
}

/// The user of a page server that keeps a guest moves it to a further target.
void Steps::rescue(const World& world, const Found& found) {
  if (world.other.has_value()) {
    return;
  }
  World next = world;
  next.other = static_cast<const Peer&>(world);
  static_cast<Peer&>(next) = Peer(tables_);
  next.which = 1;
  next.source = SourceProtocol(Uri{}, options_, base::PageCount{1}, tables_.source);
  next.idle = false;
  next.inherited = false;
  next.heard = false;
  next.source_reads = false;
  next.loss_told = false;
  if (mistake_ == Mistake::kOverBeforeRescue) {
    next.ledger.phase = StandbyPhase::kOver;
  }
  begin(next);
  found(std::move(next));
}

/// StandbyNotes::end(): a guest that runs on at its own process, or has moved, needs nobody.
void Steps::end_of_source(const World& world, const Found& found) {
  if (limits_.deaths == 0 || world.kept || !is_final(world.source.shown()) ||
      world.ledger.phase == StandbyPhase::kOver) {
    return;
  }
  World next = world;
  next.ledger.phase = StandbyPhase::kOver;
  found(std::move(next));
}

}  // namespace towline::runtime::switch_model
