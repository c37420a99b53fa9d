// Every interleaving of both sessions, their gates, the messages between them and a link that may
// break at any moment and be tied again, twice. What the drivers must do with each
// action is written down here once more, as small as it can be; the tables are the shipped ones.
#include <algorithm>
#include <compare>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/core/source_session.h"
#include "runtime/core/target_session.h"
#include "runtime/run_gate.h"

namespace towline::runtime {
namespace {

enum class Message : std::uint8_t {
  kDescription,
  kAccept,
  kRefuse,
  kState,  ///< With the last delta.
  kRun,
  kCancel,
  kRunning,
  kNever,
  kComplete,
  kMissingAndLoaded,  ///< Missing pages, and that the order was never obeyed.
  kMissing,           ///< Missing pages, behind kRunning.
  kResume,
};

constexpr int kMostEpochs = 3;

/// Both ends and the wire between them.
struct World {
  SourceState source = SourceState::kConnecting;
  TargetState target = TargetState::kListening;
  Ownership here = Ownership::kHere;       ///< The source's gate.
  Ownership there = Ownership::kIncoming;  ///< The target's gate.
  std::vector<Message> to_target;
  std::vector<Message> to_source;
  bool cut = false;           ///< Nothing sent from now on arrives; what is on the wire may.
  bool source_knows = false;  ///< That the link is down: after it has read to the end.
  bool target_knows = false;
  bool order_waits = false;  ///< The run order was read while the state was being loaded.
  bool tombstone = false;    ///< The target has said (to itself) never.
  int epoch = 1;
  bool comparing = false;   ///< The target has told what it misses; *resume* is not here yet.
  bool may_repeat = false;  ///< The target told that it was not ordered: an order may come twice.
  bool fenced = false;      ///< The target was killed, and its user knows it.
  bool heard = false;       ///< The source has read that the guest runs at the target.

  auto operator<=>(const World&) const = default;
};

struct Tables {
  std::vector<SourceRule> source{kSourceRules.begin(), kSourceRules.end()};
  std::vector<TargetRule> target{kTargetRules.begin(), kTargetRules.end()};
  std::vector<OwnershipRule> gate{kOwnershipRules.begin(), kOwnershipRules.end()};
};

/// Walks all worlds that can be reached and notes what was wrong with any of them.
class Walk {
 public:
  explicit Walk(Tables tables) : tables_(std::move(tables)) {
    visit(World{});
    while (!todo_.empty()) {
      const World world = todo_.front();
      todo_.pop_front();
      now_ = &*seen_.find(world);
      expand(world);
    }
  }

  [[nodiscard]] const std::set<std::string>& broken() const { return broken_; }

  /// Worlds from which no interleaving leads to the end of the migration at the source.
  [[nodiscard]] std::size_t stuck() const {
    std::set<const World*> good;
    std::deque<const World*> todo;
    for (const World& world : seen_) {
      const bool over = world.source == SourceState::kCompleted ||
                        world.source == SourceState::kFailed ||
                        world.source == SourceState::kCancelled;
      if (over && good.insert(&world).second) {
        todo.push_back(&world);
      }
    }
    while (!todo.empty()) {
      const auto from = reached_from_.find(todo.front());
      todo.pop_front();
      if (from == reached_from_.end()) {
        continue;
      }
      for (const World* before : from->second) {
        if (good.insert(before).second) {
          todo.push_back(before);
        }
      }
    }
    return static_cast<std::size_t>(
        std::count_if(seen_.begin(), seen_.end(), [&](const World& world) {
          // Killed after it was running: the guest is lost, and the source stays as it is. So it
          // does when the target has given it up.
          return !good.contains(&world) && !world.fenced && !shuts_out(world.target);
        }));
  }

  [[nodiscard]] std::size_t worlds() const { return seen_.size(); }

  [[nodiscard]] bool has(const std::function<bool(const World&)>& wanted) const {
    return std::any_of(seen_.begin(), seen_.end(), wanted);
  }

  /// Rules that no interleaving takes: the model, or the rule, is not what it seems.
  [[nodiscard]] std::vector<std::string> never_taken() const {
    std::vector<std::string> names;
    for (const SourceRule& rule : tables_.source) {
      if (!source_taken_.contains({rule.from, rule.on})) {
        names.push_back(std::string(to_string(rule.from)) + " + " +
                        std::string(to_string(rule.on)));
      }
    }
    for (const TargetRule& rule : tables_.target) {
      if (!target_taken_.contains({rule.from, rule.on})) {
        names.push_back(std::string(to_string(rule.from)) + " + " +
                        std::string(to_string(rule.on)));
      }
    }
    return names;
  }

 private:
  void visit(const World& world) {
    const auto [at, first] = seen_.insert(world);
    reached_from_[&*at].insert(now_);
    if (first) {
      todo_.push_back(world);
      check(world);
    }
  }

  void check(const World& world) {
    const bool here = world.here == Ownership::kHere;
    const bool there = world.there == Ownership::kHere;
    note(here && there, "two copies run");
    note(world.tombstone && there, "a target runs that said never");
    note(here && !before_order(world.source), "the source runs after the order");
    note(world.heard && here, "the source runs a guest that it knows to run at the target");
    note(world.there == Ownership::kHere && before_order(world.source) && world.source_knows,
         "the source gave up a guest that runs at the target");
    const bool settled = world.to_target.empty() && world.to_source.empty() && !world.cut;
    note(
        settled && world.source == SourceState::kOrdered && world.target == TargetState::kListening,
        "the order is lost on a link that holds");
  }

  void note(bool wrong, const char* what) {
    if (wrong) {
      broken_.insert(what);
    }
  }

  // ---- one end's step ---------------------------------------------------------------------------

  void gate(Ownership& ownership, OwnershipEvent event) {
    for (const OwnershipRule& rule : tables_.gate) {
      if (rule.from == ownership && rule.on == event) {
        ownership = rule.to;
        return;
      }
    }
    note(true, "the gate refuses what a session's action needs");
  }

  static void send(const World& world, std::vector<Message>& queue, Message message) {
    if (!world.cut) {
      queue.push_back(message);
    }
  }

  bool source_steps(World& world, SourceEvent event) {
    for (const SourceRule& rule : tables_.source) {
      if (rule.from == world.source && rule.on == event) {
        source_taken_.insert({rule.from, event});
        world.source = rule.to;
        source_acts(world, rule);
        return true;
      }
    }
    return false;
  }

  void source_acts(World& world, const SourceRule& rule) {
    switch (rule.act) {
      case SourceAction::kDescribe:
        send(world, world.to_target, Message::kDescription);
        break;
      case SourceAction::kPark:
        gate(world.here, OwnershipEvent::kHold);
        break;
      case SourceAction::kOrder:
        gate(world.here, OwnershipEvent::kOrder);
        send(world, world.to_target, Message::kState);
        send(world, world.to_target, Message::kRun);
        break;
      case SourceAction::kNoteRunning:
        gate(world.here, OwnershipEvent::kTargetRuns);
        break;
      case SourceAction::kResumeGuest:
        gate(world.here, rule.from == SourceState::kSwitching ? OwnershipEvent::kRelease
                         : rule.on == SourceEvent::kTakeBack  ? OwnershipEvent::kTakeBack
                                                              : OwnershipEvent::kTargetRefused);
        break;
      case SourceAction::kOrderAgain:
        send(world, world.to_target, Message::kResume);
        send(world, world.to_target, Message::kRun);
        break;
      case SourceAction::kPush:
        send(world, world.to_target, Message::kResume);
        break;
      case SourceAction::kCompare:
      case SourceAction::kNone:
      case SourceAction::kBeginPass:
      case SourceAction::kBeginSync:
      case SourceAction::kStayParked:
      case SourceAction::kRelease:
        break;
    }
    if (rule.on == SourceEvent::kCancel) {
      send(world, world.to_target, Message::kCancel);
    }
  }

  bool target_steps(World& world, TargetEvent event) {
    for (const TargetRule& rule : tables_.target) {
      if (rule.from == world.target && rule.on == event) {
        target_taken_.insert({rule.from, event});
        world.target = rule.to;
        target_acts(world, rule.act);
        return true;
      }
    }
    return false;
  }

  void target_acts(World& world, TargetAction action) {
    switch (action) {
      case TargetAction::kRun:
        gate(world.there, OwnershipEvent::kTake);
        send(world, world.to_source, Message::kRunning);
        break;
      case TargetAction::kNeverWill:
        world.tombstone = true;
        send(world, world.to_source, Message::kNever);
        break;
      case TargetAction::kFinish:
        send(world, world.to_source, Message::kComplete);
        break;
      case TargetAction::kTellMissing: {
        const bool runs = world.there == Ownership::kHere;
        if (runs) {
          send(world, world.to_source, Message::kRunning);
        }
        send(world, world.to_source, runs ? Message::kMissing : Message::kMissingAndLoaded);
        world.comparing = true;
        world.may_repeat = !runs;
        break;
      }
      case TargetAction::kAskAgain:
        world.comparing = false;
        break;
      case TargetAction::kDropHalf:
        world.tombstone = true;
        break;
      case TargetAction::kNone:
      case TargetAction::kLoad:
      case TargetAction::kShutOut:
        break;
    }
  }

  // ---- what may happen next ---------------------------------------------------------------------

  void expand(const World& world) {
    user_and_machine_at_source(world);
    machine_at_target(world);
    deliver(world);
    breakage(world);
    recovery(world);
  }

  void try_source(World world, SourceEvent event) {
    if (source_steps(world, event)) {
      visit(world);
    }
  }

  void user_and_machine_at_source(const World& world) {
    for (const SourceEvent event :
         {SourceEvent::kLanesReady, SourceEvent::kPassesDone, SourceEvent::kSwitchNow,
          SourceEvent::kSwitchFailed, SourceEvent::kOrderSent, SourceEvent::kCancel}) {
      try_source(world, event);
    }
    if (world.source == SourceState::kConnecting) {
      try_source(world, SourceEvent::kRefused);  // In answer to the hello.
    }
  }

  void machine_at_target(const World& world) {
    if (world.fenced) {
      return;
    }
    World loaded = world;
    if (target_steps(loaded, TargetEvent::kStateLoaded)) {
      if (std::exchange(loaded.order_waits, false)) {
        target_steps(loaded, TargetEvent::kRunOrdered);
      }
      // What happened to the link meanwhile; what it was told is not told again.
      if (loaded.target_knows || loaded.comparing) {
        target_steps(loaded, TargetEvent::kLinkLost);
      }
      if (loaded.comparing) {
        const World before = loaded;
        target_steps(loaded, TargetEvent::kReconnected);
        loaded.to_source = before.to_source;
        loaded.may_repeat = before.may_repeat;
      }
      visit(loaded);
    }
    World failed = world;
    if (target_steps(failed, TargetEvent::kLoadFailed)) {
      visit(failed);
    }
    for (const TargetEvent event :
         {TargetEvent::kSourceGivenUp, TargetEvent::kPagesPoisoned, TargetEvent::kGuestGivenUp}) {
      World alone = world;
      if (target_steps(alone, event)) {
        visit(alone);
      }
    }
    World complete = world;
    if (target_steps(complete, TargetEvent::kNothingMissing)) {
      visit(complete);
    }
    // A target that is told to end before it has the state says never.
    if (world.target == TargetState::kReceiving && !world.tombstone) {
      World leaving = world;
      leaving.tombstone = true;
      leaving.target = TargetState::kFailed;
      send(leaving, leaving.to_source, Message::kNever);
      visit(leaving);
    }
  }

  void deliver(const World& world) {
    if (!world.to_target.empty() && !world.fenced) {
      World next = world;
      next.to_target.erase(next.to_target.begin());
      target_reads(next, world.to_target.front());
      visit(next);
    }
    if (!world.to_source.empty()) {
      World next = world;
      next.to_source.erase(next.to_source.begin());
      source_reads(next, world.to_source.front());
      visit(next);
    }
  }

  void target_reads(World& world, Message message) {
    switch (message) {
      case Message::kDescription: {
        World refused = world;
        send(refused, refused.to_source, Message::kRefuse);
        visit(refused);
        if (target_steps(world, TargetEvent::kDescriptionAccepted)) {
          send(world, world.to_source, Message::kAccept);
        }
        break;
      }
      case Message::kState:
        target_steps(world, TargetEvent::kStateReceived);
        break;
      case Message::kRun:
        if (world.may_repeat && (world.there == Ownership::kHere || world.order_waits)) {
          world.may_repeat = false;  // Obeyed already, or waiting to be.
        } else if (!target_steps(world, TargetEvent::kRunOrdered)) {
          world.order_waits = world.target == TargetState::kLoading;
        }
        break;
      case Message::kResume:
        target_steps(world, TargetEvent::kResynced);
        world.comparing = false;
        break;
      case Message::kCancel:
        target_steps(world, TargetEvent::kCancelled);
        break;
      case Message::kAccept:
      case Message::kRefuse:
      case Message::kRunning:
      case Message::kNever:
      case Message::kComplete:
      case Message::kMissingAndLoaded:
      case Message::kMissing:
        note(true, "a message goes the wrong way");
    }
  }

  void source_reads(World& world, Message message) {
    switch (message) {
      case Message::kAccept:
        source_steps(world, SourceEvent::kAccepted);
        break;
      case Message::kRefuse:
        source_steps(world, SourceEvent::kRefused);
        break;
      case Message::kRunning:
        world.heard = world.heard || !before_order(world.source);
        source_steps(world, SourceEvent::kTargetRunning);
        break;
      case Message::kNever:
        source_steps(world, SourceEvent::kTargetNever);
        break;
      case Message::kComplete:
        source_steps(world, SourceEvent::kTargetComplete);
        break;
      case Message::kMissingAndLoaded:
        // What it says may be over by now: it was loading with the order read, and runs.
        source_steps(world, SourceEvent::kTargetLoaded);
        break;
      case Message::kMissing:
        source_steps(world, SourceEvent::kCompared);
        break;
      case Message::kResume:
      case Message::kDescription:
      case Message::kState:
      case Message::kRun:
      case Message::kCancel:
        note(true, "a message goes the wrong way");
    }
  }

  /// The link breaks and takes any tail of what is on the wire with it; the target notices once it
  /// has read to the end, the source also before: what has arrived is read all the same.
  void breakage(const World& world) {
    if (!world.cut && world.epoch == kMostEpochs) {
      return;  // The last one holds: everything must end in it.
    }
    if (!world.cut) {
      for (std::size_t there = 0; there <= world.to_target.size(); ++there) {
        for (std::size_t back = 0; back <= world.to_source.size(); ++back) {
          World next = world;
          next.cut = true;
          next.to_target.resize(there);
          next.to_source.resize(back);
          visit(next);
        }
      }
      return;
    }
    if (!world.source_knows) {
      World next = world;
      next.source_knows = true;
      source_steps(next, SourceEvent::kLinkLost);
      visit(next);
    }
    // A target that is loading steps only afterwards: the order may have been read already.
    if (world.to_target.empty() && !world.target_knows && !world.fenced) {
      World next = world;
      next.target_knows = true;
      next.comparing = false;
      target_steps(next, TargetEvent::kLinkLost);
      visit(next);
    }
  }

  /// The source comes back in a new epoch; or its user has killed the target, and takes over. A
  /// user may be wrong about that, too: but not against what the source has heard.
  void recovery(const World& world) {
    if (!world.cut || !world.source_knows) {
      return;
    }
    // The old lane's reader is joined first: no word of one epoch is read in the next.
    if (!world.fenced && world.epoch < kMostEpochs && world.to_source.empty()) {
      World next = world;
      if (source_steps(next, SourceEvent::kReconnect)) {
        visit(next);
      }
    }
    if (world.source == SourceState::kOrderedReconnecting ||
        world.source == SourceState::kServingReconnecting) {
      try_source(world, SourceEvent::kLinkLost);
      if (!world.fenced) {
        reconnect(world);
      }
    }
    if (world.source == SourceState::kOrderedPaused) {
      World killed = world;
      killed.fenced = true;
      killed.there = Ownership::kGone;
      visit(killed);
      if (world.fenced || world.heard) {
        try_source(world, SourceEvent::kTakeBack);
      }
    }
  }

  void reconnect(World world) {
    if (shuts_out(world.target)) {
      return;
    }
    if (!world.to_target.empty() || !world.target_knows) {
      return;  // The fence: the old lanes are read to their ends first.
    }
    world.to_source.clear();
    world.cut = false;
    world.source_knows = false;
    world.target_knows = false;
    ++world.epoch;
    source_steps(world, SourceEvent::kReconnected);
    if (world.tombstone || world.target == TargetState::kFailed) {
      send(world, world.to_source, Message::kNever);
    } else if (world.target == TargetState::kCompleted) {
      send(world, world.to_source, Message::kRunning);
      send(world, world.to_source, Message::kComplete);
    } else {
      target_steps(world, TargetEvent::kReconnected);
    }
    visit(world);
  }

  Tables tables_;
  std::set<World> seen_;  // Its elements stay where they are.
  std::map<const World*, std::set<const World*>> reached_from_;
  const World* now_ = nullptr;  // The one that is being expanded.
  std::deque<World> todo_;
  std::set<std::string> broken_;
  std::set<std::pair<SourceState, SourceEvent>> source_taken_;
  std::set<std::pair<TargetState, TargetEvent>> target_taken_;
};

using Names = std::set<std::string>;

TEST_CASE("two running copies are impossible in every interleaving of the switch") {
  const Walk walk{Tables{}};
  CHECK(walk.broken() == Names{});
  CHECK(walk.worlds() > 150);
}

TEST_CASE("every world leads to the end of the migration, if the link is tied again") {
  const Walk walk{Tables{}};
  CHECK(walk.stuck() == 0);
}

TEST_CASE("the walk takes every rule of both tables and ends in every way there is") {
  const Walk walk{Tables{}};
  CHECK(walk.never_taken() == std::vector<std::string>{});
  CHECK(walk.has([](const World& world) {
    return world.source == SourceState::kCompleted && world.target == TargetState::kCompleted;
  }));
  CHECK(walk.has([](const World& world) {
    return world.source == SourceState::kOrderedPaused && world.target == TargetState::kLoadedAlone;
  }));
  CHECK(walk.has([](const World& world) {
    return world.source == SourceState::kOrderedPaused &&
           world.target == TargetState::kRunningAlone;
  }));
  CHECK(walk.has([](const World& world) {
    return world.source == SourceState::kFailed && world.here == Ownership::kHere &&
           world.tombstone;
  }));
}

void change(Tables& tables, SourceState from, SourceEvent on, SourceState to, SourceAction act) {
  std::erase_if(tables.source,
                [&](const SourceRule& rule) { return rule.from == from && rule.on == on; });
  tables.source.push_back({from, on, to, act});
}

TEST_CASE("the walk finds a source that resumes when the link breaks after the order") {
  Tables tables;
  change(tables, SourceState::kOrdered, SourceEvent::kLinkLost, SourceState::kFailed,
         SourceAction::kResumeGuest);
  CHECK(Walk(tables).broken().contains("two copies run"));
}

TEST_CASE("the walk finds a source that can be cancelled after the order") {
  Tables tables;
  change(tables, SourceState::kOrdered, SourceEvent::kCancel, SourceState::kCancelled,
         SourceAction::kResumeGuest);
  CHECK(Walk(tables).broken().contains("two copies run"));
}

TEST_CASE("the walk finds *running* that is noted only when it was told what is missing") {
  Tables tables;
  std::erase_if(tables.source, [](const SourceRule& rule) {
    return rule.from == SourceState::kOrderedRecovering && rule.on == SourceEvent::kTargetRunning;
  });
  change(tables, SourceState::kOrderedRecovering, SourceEvent::kCompared, SourceState::kServing,
         SourceAction::kPush);
  const Walk walk(tables);
  CHECK(walk.broken().contains("two copies run"));
  CHECK(walk.broken().contains("the source runs a guest that it knows to run at the target"));
}

TEST_CASE("the walk finds a paused source that does not note what it reads late") {
  Tables tables;
  std::erase_if(tables.source, [](const SourceRule& rule) {
    return rule.from == SourceState::kOrderedPaused && rule.on == SourceEvent::kTargetRunning;
  });
  CHECK(Walk(tables).broken().contains("two copies run"));
}

TEST_CASE("the walk finds a target that runs without the order") {
  Tables tables;
  std::erase_if(tables.target, [](const TargetRule& rule) {
    return rule.from == TargetState::kLoaded && rule.on == TargetEvent::kLinkLost;
  });
  tables.target.push_back(
      {TargetState::kReceiving, TargetEvent::kLinkLost, TargetState::kRunning, TargetAction::kRun});
  std::rotate(tables.target.begin(), tables.target.end() - 1, tables.target.end());
  CHECK(Walk(tables).broken().contains("two copies run"));
}

TEST_CASE("the walk finds a target that says never and can still be told to run") {
  Tables tables;
  for (TargetRule& rule : tables.target) {
    if (rule.on == TargetEvent::kLoadFailed) {
      rule.to = TargetState::kLoaded;
    }
  }
  CHECK(Walk(tables).broken().contains("a target runs that said never"));
}

TEST_CASE("the walk finds a gate that opens while the source's guest is gone") {
  Tables tables;
  for (OwnershipRule& rule : tables.gate) {
    if (rule.on == OwnershipEvent::kTargetRuns) {
      rule.to = Ownership::kHere;
    }
  }
  CHECK(Walk(tables).broken().contains("two copies run"));
}

}  // namespace
}  // namespace towline::runtime
