#include "tests/simulation/trouble.h"

#include <algorithm>
#include <memory>

namespace towline::simulation {

using runtime::SourceState;
using runtime::TargetState;

Troublemaker::Troublemaker(World& world, Network& network, const Identity& identity,
                           SourceEnd& source, TargetEnd& target)
    : world_(world), network_(network), identity_(identity), source_(source), target_(target) {
}

void Troublemaker::begin() {
  network_.accept = [this](Connection& connection) {
    world_.add_actor(Process::kTarget, "target greet", target_.greet(connection));
  };
  network_.accept_elsewhere = [this](Connection& connection) {
    world_.add_actor(Process::kOutside, "another process", answer_elsewhere(connection));
  };
  add_watches();
  add_setup_trouble();
}

/// Where something is wrong without an end or an error, somebody finds out in the end.
void Troublemaker::add_watches() {
  world_.add_actor(
      Process::kSource, "source watch", [this] { return source_.uneasy(); },
      [this] { source_.give_up(); });
  world_.add_actor(
      Process::kTarget, "target watch", [this] { return target_.uneasy(); },
      [this] { target_.give_up(); });
}

void Troublemaker::add_setup_trouble() {
  switch (world_.setup.trouble) {
    case Trouble::kCutAll:
      return at("cut all", any_time(), [this] { cut_all(); });
    case Trouble::kCutFlight:
      if (world_.random.once_in(2)) {
        world_.flight_sent = [this] { cut_all(); };
        return;
      }
      return at("cut all", after_order(12), [this] { cut_all(); });
    case Trouble::kCutLane:
      return at("cut lane", world_.random.once_in(2) ? any_time() : after_order(12),
                [this] { cut_one(); });
    case Trouble::kFlip:
      return at("flip a bit", any_time(), [this] { flip(); });
    case Trouble::kCancel:
      return at("user: cancel", world_.random.once_in(3) ? switching() : any_time(), [this] {
        world_.link_harmed = true;
        source_.cancel();
      });
    case Trouble::kTargetLeaves:
      if (world_.random.once_in(2)) {
        return at("target leaves", any_time(), [this] { target_.leave(); });
      }
      return at("target leaves", switching(), [this] { target_.leave(); });
    case Trouble::kRefusal:
      if (world_.random.once_in(2)) {
        world_.link_harmed = true;
        source_.refuse_connection();
      }
      return;
    case Trouble::kLanes:
      for (std::uint64_t i = 0; i < world_.setup.faults; ++i) {
        at("harm a lane",
           {[this] { return source_.state() == SourceState::kServing; }, world_.random.below(150)},
           [this] { harm_lane(); });
      }
      return;
    case Trouble::kNoRoom:
      if (world_.random.once_in(4)) {
        at("cut", any_time(), [this] { world_.random.once_in(2) ? cut_all() : cut_one(); });
      } else if (world_.random.once_in(4)) {
        at("user: cancel", any_time(), [this] {
          world_.link_harmed = true;
          source_.cancel();
        });
      }
      return;
    case Trouble::kSwallow:
      for (std::uint64_t i = world_.random.between(1, 4); i > 0; --i) {
        at("swallow a frame", world_.random.once_in(2) ? some_moment() : any_time(),
           [this] { swallow(); });
      }
      if (world_.random.once_in(3)) {
        at("cut", some_moment(), [this] { world_.random.once_in(2) ? cut_all() : cut_one(); });
      }
      return;
    case Trouble::kStorm:
      return add_storm();
    case Trouble::kSourceGivenUp:
      add_storm();
      if (world_.random.once_in(2)) {
        add_death(true);
      }
      return add_giving_up();
    case Trouble::kSourceDies:
    case Trouble::kTargetDies:
      add_storm();
      return add_death(world_.setup.trouble == Trouble::kSourceDies);
    case Trouble::kNone:
    case Trouble::kSaveFails:
    case Trouble::kLoadFails:
    case Trouble::kTightMemory:
      return;
  }
}

// ---- moments ------------------------------------------------------------------------------------

void Troublemaker::at(const std::string& name, Moment moment, std::function<void()> act) {
  world_.add_event(name, std::move(moment.due), moment.turns, std::move(act));
}

Troublemaker::Moment Troublemaker::any_time() {
  return {[] { return true; }, world_.random.below(world_.random.once_in(2) ? 900 : 250)};
}

Troublemaker::Moment Troublemaker::switching() {
  return {[this] { return source_.state() == SourceState::kSwitching; }, world_.random.below(2)};
}

/// While the order is on its way, or its answer, or soon after.
Troublemaker::Moment Troublemaker::after_order(std::uint64_t turns) {
  return {[this] { return !runtime::before_order(source_.state()); }, world_.random.below(turns)};
}

/// Often one that is over quickly.
Troublemaker::Moment Troublemaker::some_moment() {
  switch (world_.random.below(9)) {
    case 0:
      return world_.random.once_in(2) ? any_time() : after_order(200);
    case 1:
      return after_order(12);
    case 2:
      return {[this] { return source_.state() == SourceState::kServing; }, world_.random.below(60)};
    case 3:
      return {[this] { return source_.greeting() != nullptr; }, world_.random.below(30)};
    case 4:
      return {[this] { return source_.paused(); }, world_.random.below(4)};
    case 5:
      return {[this] {
                const SourceState state = source_.state();
                return !runtime::before_order(state) && state != SourceState::kOrdered &&
                       state != SourceState::kServing && state != SourceState::kCompleted;
              },
              world_.random.below(20)};
    case 6:
    case 7:
      return {[this] {
                const TargetState state = target_.state();
                return state == TargetState::kLoadedRecovering ||
                       state == TargetState::kRunningRecovering;
              },
              world_.random.below(10)};
    default:
      return {[this] {
                const TargetState state = target_.state();
                return state == TargetState::kLoading || state == TargetState::kLoaded ||
                       state == TargetState::kLoadedAlone;
              },
              world_.random.below(10)};
  }
}

/// On now, and off after some turns.
void Troublemaker::for_a_while(const std::string& name, std::uint64_t longest,
                               std::function<void(bool)> set) {
  set(true);
  world_.add_event(
      name, [] { return true; }, world_.random.below(longest),
      [set = std::move(set)] { set(false); });
}

// ---- faults -------------------------------------------------------------------------------------

void Troublemaker::add_storm() {
  if (!world_.random.once_in(4)) {  // Most of the rest happens while what broke is being repaired.
    at("cut", after_order(world_.random.once_in(3) ? 12 : 100),
       [this] { world_.random.once_in(2) ? cut_all() : cut_one(); });
  }
  for (std::uint64_t i = 0; i < world_.setup.faults; ++i) {
    add_fault(some_moment());
  }
}

void Troublemaker::add_fault(Moment moment) {
  switch (world_.random.below(6)) {
    case 0:
      return at("cut all", std::move(moment), [this] { cut_all(); });
    case 1:
      return at("cut one", std::move(moment), [this] { cut_one(); });
    case 2:
      return at("harm the network", std::move(moment), [this] { harm_network(); });
    case 3:
      return at("harm a process", std::move(moment), [this] { harm_processes(); });
    case 4:
      return at("harm the next connections", std::move(moment), [this] { harm_connecting(); });
    default:
      return at("a stranger", std::move(moment), [this] { send_stranger(); });
  }
}

void Troublemaker::cut_all() {
  world_.link_harmed = true;
  for (Connection* one : network_.live()) {
    one->cut(world_.random);
  }
}

void Troublemaker::cut_one() {
  const auto live = network_.live();
  if (!live.empty()) {
    world_.link_harmed = true;
    live[world_.random.below(live.size())]->cut(world_.random);
  }
}

/// A data lane is cut, or carries a wrong bit, or nothing any more.
void Troublemaker::harm_lane() {
  std::vector<Connection*> lanes;
  for (Connection* one : network_.live()) {
    if (one->role != runtime::wire::LaneRole::kControl) {
      lanes.push_back(one);
    }
  }
  if (lanes.empty()) {
    return;
  }
  world_.link_harmed = true;
  Connection& one = *lanes[world_.random.below(lanes.size())];
  switch (world_.random.below(4)) {
    case 0:
      (void)one.to_target.flip(world_.random);
      return;
    case 1:
      one.to_target.freeze(!one.to_target.over());
      one.to_source.freeze(!one.to_source.over());
      return;
    default:
      return one.cut(world_.random);
  }
}

void Troublemaker::flip() {
  const auto live = network_.live();
  for (std::size_t tries = 0; tries < 8 && !live.empty(); ++tries) {
    Connection& one = *live[world_.random.below(live.size())];
    Pipe& pipe = world_.random.once_in(3) ? one.to_source : one.to_target;
    if (pipe.flip(world_.random)) {
      world_.link_harmed = true;
      return;
    }
  }
}

/// The next one that is on its way: of the control lane, mostly, where each says something.
void Troublemaker::swallow() {
  std::vector<Pipe*> pipes;
  for (Connection* one : network_.live()) {
    const bool control = one->role == runtime::wire::LaneRole::kControl;
    if (control || world_.random.once_in(4)) {
      pipes.push_back(&one->to_target);
      pipes.push_back(&one->to_source);
    }
  }
  const bool waits = std::none_of(pipes.begin(), pipes.end(), [this](Pipe* pipe) {
    return pipe->swallow(world_.random, !world_.planted(Plant::kFramesUncounted));
  });
  if (waits && ++swallow_tries_ < 400) {
    return at("swallow a frame", {[] { return true; }, 1}, [this] { swallow(); });
  }
  if (!waits) {
    world_.link_harmed = true;
    world_.saw("a frame that was swallowed");
  }
}

void Troublemaker::harm_network() {
  world_.link_harmed = true;
  switch (world_.random.below(3)) {
    case 0:
      return freeze_something();
    case 1:
      return partition();
    default:
      return flip();
  }
}

/// One connection is held up without a word, one way or both, for a while or for ever.
void Troublemaker::freeze_something() {
  const auto live = network_.live();
  if (live.empty()) {
    return;
  }
  Connection* one = source_.greeting();
  if (one == nullptr || world_.random.once_in(4)) {
    one = live[world_.random.below(live.size())];
  }
  const std::uint64_t way = world_.random.below(3);
  const auto set = [one, way](bool on) {
    if (way != 1) {
      one->to_target.freeze(on && !one->to_target.over());
    }
    if (way != 0) {
      one->to_source.freeze(on && !one->to_source.over());
    }
  };
  if (world_.random.once_in(2)) {
    set(true);
  } else {
    for_a_while("thaw", 60, set);
  }
}

void Troublemaker::partition() {
  const std::uint64_t way = world_.random.below(3);
  for_a_while("the network is back", 60, [this, way](bool on) {
    network_.target_cut_off = way != 1 && on;
    network_.source_cut_off = way != 0 && on;
  });
}

void Troublemaker::harm_processes() {
  world_.link_harmed = true;
  switch (world_.random.below(4)) {
    case 0:
      return for_a_while("source goes on", 60,
                         [this](bool on) { world_.freeze(Process::kSource, on); });
    case 1:
      return for_a_while("target goes on", 60,
                         [this](bool on) { world_.freeze(Process::kTarget, on); });
    case 2:  // A false alarm, or its user wants a pause.
      return source_.lose();
    default:
      return target_.lose();
  }
}

void Troublemaker::harm_connecting() {
  world_.link_harmed = true;
  switch (world_.random.below(3)) {
    case 0:
      network_.refused_next += world_.random.between(1, 3);
      return;
    case 1:
      network_.lost_next += world_.random.between(1, 3);
      return;
    default:
      network_.elsewhere_next += 1;
      return;
  }
}

/// Often at once, when the old lanes may still have something to read.
void Troublemaker::add_giving_up() {
  const bool poison = !world_.random.once_in(3);
  at("target: the source is given up",
     {[this] { return target_.state() == TargetState::kRunningAlone; },
      world_.random.below(world_.random.once_in(2) ? 2 : 40)},
     [this, poison] { target_.give_up_source(poison); });
}

void Troublemaker::add_death(bool source) {
  const bool host = world_.random.once_in(3);
  const bool replaced = world_.random.once_in(3);
  const bool taken_back = world_.random.once_in(2);
  at("death", world_.random.once_in(3) ? any_time() : some_moment(), [=, this] {
    world_.link_harmed = true;
    if (source) {
      return source_.die(host);
    }
    target_.die(host);
    network_.elsewhere_next = replaced ? 2 : 0;
    if (taken_back) {
      source_.take_back();
    }
  });
}

}  // namespace towline::simulation
