#include "tests/support/switch_world.h"

#include <fmt/format.h>

namespace towline::runtime::switch_model {

namespace {

template <typename... Flags>
void put_flags(std::string& key, Flags... flags) {
  (key.push_back(flags ? '1' : '0'), ...);
}

void put_frames(std::string& key, const std::vector<Frame>& frames) {
  for (const Frame& frame : frames) {
    key += fmt::format("{}/{}/{}/{} ", static_cast<int>(frame.type), frame.count, frame.round,
                       frame.flags);
  }
  key += '|';
}

void put_peer(std::string& key, const Peer& peer) {
  key += peer.target_dump;
  put_flags(key, peer.cut_there, peer.cut_back, peer.target_reads, peer.shut_out, peer.room_lost,
            peer.given_up, peer.killed);
  key +=
      fmt::format("|{}/{}/{}|", static_cast<int>(peer.there), peer.fence.value_or(0), peer.greeted);
  put_frames(key, peer.to_target);
  put_frames(key, peer.to_source);
  for (const TargetTask& task : peer.waits) {
    key += fmt::format("{}/{}/{} ", static_cast<int>(task.kind), task.number,
                       static_cast<int>(task.frame));
  }
}

}  // namespace

Peer::Peer(const Tables& tables)
    : target(MigrationOptions{}, base::PageCount{1}, tables.target), target_dump(target.dump()) {
}

World::World(const Tables& tables, const MigrationOptions& options)
    : Peer(tables),
      source(Uri{}, options, base::PageCount{1}, tables.source),
      source_dump(source.dump()) {
}

std::string World::key() const {
  std::string key = source_dump;
  put_flags(key, source_reads, loss_told, cancel_said, switch_said, heard, withheld.has_value(),
            source.deadline().has_value(), ledger.state, kept, idle, inherited, released, ran_on,
            died_as_target);
  key += fmt::format("|{}/{}/{}/{}/{}/{}/{}/{}|", static_cast<int>(here), breaks, deaths, which,
                     static_cast<int>(fate), static_cast<int>(ledger.phase), ledger.epoch,
                     ledger.target);
  put_peer(key, *this);
  if (other.has_value()) {
    put_peer(key, *other);
  }
  return key;
}

void Steps::note(bool wrong, const std::string& what) {
  if (wrong) {
    notes_.broken.insert(what);
  }
}

void Steps::check(const World& world) {
  if (world.fate != Fate::kOpen) {
    return;
  }
  const bool here = world.here == Ownership::kHere;
  const bool there = world.there == Ownership::kHere;
  const bool elsewhere = world.other.has_value() && world.other->there == Ownership::kHere;
  const SourceState state = world.source.state();
  note((here && (there || elsewhere)) || (there && elsewhere), "two copies run");
  note(there && world.target.never(), "a target runs that said never");
  note(here && !before_order(state), "the source runs after the order");
  note(here && world.heard, "the source runs a guest that it knows to run at the target");
  note(there && before_order(state), "the source gave up a guest that runs at the target");
  note(world.heard && world.here != Ownership::kGone,
       "the source knows that the guest runs there, and its gate does not");
  const bool settled = world.to_target.empty() && world.to_source.empty() && !world.cut_there &&
                       !world.cut_back && world.waits.empty();
  note(settled && state == SourceState::kOrdered && !world.source.task().has_value() &&
           world.target.state() == TargetState::kReceiving,
       "the order is lost on a link that holds");
}

void Steps::first(const Found& found) {
  World world(tables_, options_);
  begin(world);
  found(std::move(world));
}

void Steps::begin(World& world) {
  tell(world, SourceInput{.kind = SourceInput::Kind::kBegin});
}

void Steps::follow(const World& world, const Found& found) {
  const Found checked = [&](World next) {
    check(next);
    found(std::move(next));
  };
  if (world.fate != Fate::kOpen) {
    return;  // What the targets do from here on is theirs.
  }
  found_ = &checked;
  may_die(world);
  if (world.idle) {
    rescue(world, checked);
  } else {
    source_task(world, checked);
    source_reads(world, checked);
    source_waits(world, checked);
    source_users(world, checked);
    end_of_source(world, checked);
    breakage(world, checked);
  }
  follow_target(world, checked);
  if (world.other.has_value()) {
    const auto swapped = [](World one) {
      std::swap(static_cast<Peer&>(one), *one.other);
      return one;
    };
    follow_target(swapped(world), [&](World next) { checked(swapped(std::move(next))); });
  }
  found_ = nullptr;
}

void Steps::follow_target(const World& world, const Found& found) {
  if (!world.killed) {
    target_reads(world, found);
    target_waits(world, found);
    target_machine(world, found);
    target_alone(world, found);
  }
}

// ---- the link -----------------------------------------------------------------------------------

/// The link breaks, by itself or because an end closed it, and takes any tail of what is on the
/// wire with it.
void Steps::breakage(const World& world, const Found& found) {
  if (world.target.epoch() != 0 && (!world.cut_there || !world.cut_back) && may_break(world)) {
    World next = world;
    count_break(next);
    next.cut_there = true;
    next.cut_back = true;
    found(std::move(next));
  }
  if ((world.cut_there || world.fence.has_value()) && !world.to_target.empty()) {
    World next = world;
    next.to_target.pop_back();
    found(std::move(next));
  }
  if (world.cut_back && !world.to_source.empty()) {
    World next = world;
    next.to_source.pop_back();
    found(std::move(next));
  }
}

bool Steps::may_break(const World& world) const {
  return world.source.epoch() < limits_.epochs && world.breaks < limits_.breaks;
}

/// Where there is a limit to them.
void Steps::count_break(World& world) const {
  if (limits_.breaks < Limits{}.breaks) {
    ++world.breaks;
  }
}

void Steps::gate(Ownership& ownership, OwnershipEvent event) {
  for (const OwnershipRule& rule : tables_.gate) {
    if (rule.from == ownership && rule.on == event) {
      ownership = rule.to;
      return;
    }
  }
  note(true, "the gate refuses what a brain asks for");
}

void Steps::send_there(World& world, Frame frame) {
  if (!world.cut_there) {
    world.to_target.push_back(frame);
  }
}

/// While a new epoch is being fenced, whatever is sent goes to the old lane.
void Steps::send_back(World& world, Frame frame) {
  if (!world.cut_back && !world.fence.has_value()) {
    world.to_source.push_back(frame);
  }
}

}  // namespace towline::runtime::switch_model
