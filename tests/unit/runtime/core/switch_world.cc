#include "tests/unit/runtime/core/switch_world.h"

#include <fmt/format.h>

namespace towline::runtime::switch_model {

World::World(const Tables& tables, const MigrationOptions& options)
    : source(Uri{}, options, base::PageCount{1}, tables.source),
      target(MigrationOptions{}, base::PageCount{1}, tables.target) {
}

std::string World::key() const {
  std::string key = fmt::format("{}|{}|", source.dump(), target.dump());
  for (const bool flag : {cut_there, cut_back, source_reads, loss_told, target_reads, shut_out,
                          cancel_said, switch_said, room_lost, given_up, killed, heard,
                          withheld.has_value(), source.deadline().has_value()}) {
    key += flag ? '1' : '0';
  }
  key +=
      fmt::format("|{}/{}/{}|", static_cast<int>(here), static_cast<int>(there), fence.value_or(0));
  const auto add = [&key](const Frame& frame) {
    key += fmt::format("{}/{}/{}/{} ", static_cast<int>(frame.type), frame.count, frame.round,
                       frame.flags);
  };
  for (const Frame& frame : to_target) {
    add(frame);
  }
  key += '|';
  for (const Frame& frame : to_source) {
    add(frame);
  }
  key += '|';
  for (const TargetTask& task : waits) {
    key += fmt::format("{}/{}/{} ", static_cast<int>(task.kind), task.number,
                       static_cast<int>(task.frame));
  }
  return key;
}

void Steps::note(bool wrong, const std::string& what) {
  if (wrong) {
    notes_.broken.insert(what);
  }
}

void Steps::check(const World& world) {
  const bool here = world.here == Ownership::kHere;
  const bool there = world.there == Ownership::kHere;
  const SourceState state = world.source.state();
  note(here && there, "two copies run");
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

void Steps::first(const World& nothing, const Found& found) {
  World world = nothing;
  tell(world, {.kind = SourceInput::Kind::kBegin});
  found(std::move(world));
}

void Steps::follow(const World& world, const Found& found) {
  const Found checked = [&](World next) {
    check(next);
    found(std::move(next));
  };
  source_task(world, checked);
  source_reads(world, checked);
  source_waits(world, checked);
  source_users(world, checked);
  if (!world.killed) {
    target_reads(world, checked);
    target_waits(world, checked);
    target_machine(world, checked);
    target_alone(world, checked);
  }
  breakage(world, checked);
}

// ---- the link -----------------------------------------------------------------------------------

/// The link breaks, by itself or because an end closed it, and takes any tail of what is on the
/// wire with it.
void Steps::breakage(const World& world, const Found& found) {
  if ((!world.cut_there || !world.cut_back) && world.source.epoch() < most_epochs_) {
    World next = world;
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
