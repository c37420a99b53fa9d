// Every interleaving of a source that leaves a ledger, its targets, the messages between them and
// a link that may break; and the source may die between any two of its steps. Whoever comes after
// it knows the ledger alone: it goes on as heir, keeps the guest, moves it to a further target, and
// may die as well. Sessions, gates and what a phase means are the shipped ones; written down here
// once more is in which order the driver does what an event asks for (source_driver.cc,
// source_recovery.cc, source_standby.cc), and what standby.cc does with a ledger.
//
// switch_model_test.cc walks the same switch with more of the target and without deaths.
#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/core/source_session.h"
#include "runtime/core/target_session.h"
#include "runtime/run_gate.h"
#include "runtime/standby/ledger.h"

namespace towline::runtime {
namespace {

constexpr int kTargets = 2;  // The move's, and a rescue's.

/// How often something may go wrong, at any time.
struct Trouble {
  int deaths = 2;
  int breaks = 1;  ///< Of a link, deaths apart, which break it too.
};

enum class Mistake : std::uint8_t {
  kNone,
  kOrderedAfterSend,
  kServingBeforeWord,
  kReleasedAfterStart,
  kEpochAfterGreeting,
  kOverBeforeRescue,
  kRecordAfterOrder,
  kReleasedAsSource,
  kRunningAfterMissing,
};

enum class Message : std::uint8_t {
  kDescription,
  kAccept,
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

/// One step of the driver: between any two of them its process may end.
struct Op {
  enum class Kind : std::uint8_t {
    kStep,    ///< The session: a SourceEvent.
    kGate,    ///< An OwnershipEvent.
    kSend,    ///< A Message.
    kFlight,  ///< One send(): state and run order.
    kCount,   ///< A greater epoch, in the process alone.
    kGreet,   ///< The first words on a control lane of that epoch leave.
    kMeet,    ///< They are answered.
    kState,   ///< Ledger: the parked machine.
    kPhase,   ///< Ledger: a StandbyPhase.
    kEpoch,   ///< Ledger: the process's epoch.
    kRecord,  ///< Ledger: which migration this is.
  };

  Kind kind = Kind::kStep;
  std::uint8_t what = 0;
};

using Ops = std::vector<Op>;

template <typename What>
Op op(Op::Kind kind, What what) {
  return {kind, static_cast<std::uint8_t>(what)};
}

Op step_of(SourceEvent event) {
  return op(Op::Kind::kStep, event);
}

Op gate_of(OwnershipEvent event) {
  return op(Op::Kind::kGate, event);
}

Op send_of(Message message) {
  return op(Op::Kind::kSend, message);
}

Op note_of(StandbyPhase phase) {
  return op(Op::Kind::kPhase, phase);
}

/// A target and the link to it.
struct Target {
  TargetState state = TargetState::kListening;
  Ownership gate = Ownership::kIncoming;
  std::vector<Message> to_it;
  std::vector<Message> from_it;
  bool cut = false;          ///< Nothing sent from now on arrives; what is on the wire may.
  bool knows = false;        ///< That the link is down: after it has read to the end.
  bool order_waits = false;  ///< The run order was read while the state was being loaded.
  bool tombstone = false;
  bool comparing = false;   ///< It has told what it misses; *resume* is not here yet.
  bool may_repeat = false;  ///< It told that it was not ordered: an order may come twice.
  bool fenced = false;      ///< Killed, and the user knows it.
  int greeted = 0;          ///< The greatest epoch in which anybody has called it.
};

/// What is a source: the guest's own process, or a page server.
struct Process {
  bool lives = true;
  bool heir = false;
  SourceState session = SourceState::kConnecting;
  Ownership gate = Ownership::kHere;
  int epoch = 1;
  int target = 0;
  bool knows = false;   ///< That the link is down.
  bool joined = false;  ///< It began in the middle of a migration.
  Ops todo;
};

struct Ledger {
  StandbyPhase phase = StandbyPhase::kRunning;
  int epoch = 1;
  int target = 0;
  bool state = false;
};

struct World {
  Process process;
  Ledger ledger;
  std::array<Target, kTargets> targets;
  int next_target = 1;
  int deaths = 0;
  int breaks = 0;
  bool ran_on = false;          ///< The guest ran on at its source after it had been parked.
  bool died_as_source = false;  ///< With the process whose guest it was.
  bool died_as_target = false;
  bool forgotten = false;  ///< Memory and state are given up.
  bool heard = false;      ///< This process or the ledger knows that a target runs the guest.

  Target& peer() { return targets.at(static_cast<std::size_t>(process.target)); }

  [[nodiscard]] const Target& peer() const {
    return targets.at(static_cast<std::size_t>(process.target));
  }

  [[nodiscard]] std::string key() const;
};

std::string World::key() const {
  std::string bytes;
  const auto put = [&bytes](auto value) { bytes.push_back(static_cast<char>(value)); };
  for (const bool flag : {process.lives, process.heir, process.knows, process.joined, ledger.state,
                          ran_on, died_as_source, died_as_target, forgotten, heard}) {
    put(flag);
  }
  put(process.session);
  put(process.gate);
  put(ledger.phase);
  for (const int number :
       {process.epoch, process.target, ledger.epoch, ledger.target, next_target, deaths, breaks}) {
    put(number);
  }
  put(process.todo.size());
  for (const Op& one : process.todo) {
    put(one.kind);
    put(one.what);
  }
  for (const Target& target : targets) {
    put(target.state);
    put(target.gate);
    put(target.greeted);
    for (const bool flag : {target.cut, target.knows, target.order_waits, target.tombstone,
                            target.comparing, target.may_repeat, target.fenced}) {
      put(flag);
    }
    for (const auto* queue : {&target.to_it, &target.from_it}) {
      put(queue->size());
      for (const Message message : *queue) {
        put(message);
      }
    }
  }
  return bytes;
}

bool is_over(SourceState session) {
  return session == SourceState::kCompleted || session == SourceState::kFailed ||
         session == SourceState::kCancelled;
}

/// What a driver does about an event, in its order. Empty: the event means nothing to it.
class Driver {
 public:
  explicit Driver(Mistake mistake) : mistake_(mistake) {}

  [[nodiscard]] Ops script(const Process& process, SourceEvent event) const {
    const auto rule = step(process.session, event);
    if (!rule.ok()) {
      return {};
    }
    if (event == SourceEvent::kReconnect) {
      if (mistake_ == Mistake::kEpochAfterGreeting) {
        return {op(Op::Kind::kCount, 0), step_of(event), op(Op::Kind::kGreet, 0),
                op(Op::Kind::kEpoch, 0), op(Op::Kind::kMeet, 0)};
      }
      return {op(Op::Kind::kCount, 0), op(Op::Kind::kEpoch, 0), step_of(event),
              op(Op::Kind::kGreet, 0), op(Op::Kind::kMeet, 0)};
    }
    switch (rule.value().act) {
      case SourceAction::kDescribe:
        return {step_of(event), send_of(Message::kDescription)};
      case SourceAction::kBeginPass:  // find_page_server(), for a rescue: renew().
        if (process.heir && mistake_ != Mistake::kRecordAfterOrder) {
          return {op(Op::Kind::kEpoch, 0), op(Op::Kind::kRecord, 0), step_of(event)};
        }
        return {step_of(event)};
      case SourceAction::kPark:  // switch_over(), send_flight(), leave_state().
        if (process.heir) {
          return {step_of(event), gate_of(OwnershipEvent::kHold)};
        }
        return {step_of(event), gate_of(OwnershipEvent::kHold), op(Op::Kind::kState, 0),
                note_of(StandbyPhase::kParked)};
      case SourceAction::kOrder:
        return order(process);
      case SourceAction::kNoteRunning:
        return running();
      case SourceAction::kPush:
        return {send_of(Message::kResume), step_of(event)};
      case SourceAction::kOrderAgain:
        return {send_of(Message::kResume), step_of(event), send_of(Message::kRun)};
      case SourceAction::kRelease:
        return {note_of(StandbyPhase::kOver), step_of(event)};
      case SourceAction::kResumeGuest:
        return resume(process, rule.value());
      case SourceAction::kNone:
      case SourceAction::kBeginSync:
      case SourceAction::kStayParked:
      case SourceAction::kCompare:
        return joined(cancelled(event), {step_of(event)}, end(process, rule.value()));
    }
    return {};
  }

  /// The target's word that it runs the guest, where it is read.
  [[nodiscard]] Ops running_heard(const Process& process) const {
    if (mistake_ == Mistake::kRunningAfterMissing &&
        process.session == SourceState::kOrderedRecovering) {
      return {};
    }
    return script(process, SourceEvent::kTargetRunning);
  }

  /// What it misses, behind that word.
  [[nodiscard]] Ops missing_heard(const Process& process) const {
    if (mistake_ == Mistake::kRunningAfterMissing &&
        process.session == SourceState::kOrderedRecovering) {
      return joined(running(), {send_of(Message::kResume), step_of(SourceEvent::kCompared)});
    }
    return script(process, SourceEvent::kCompared);
  }

  [[nodiscard]] static Ops running() {
    return {gate_of(OwnershipEvent::kTargetRuns), note_of(StandbyPhase::kServing),
            step_of(SourceEvent::kTargetRunning)};
  }

  [[nodiscard]] Ops begin_rescue() const {
    return mistake_ == Mistake::kOverBeforeRescue ? Ops{note_of(StandbyPhase::kOver)} : Ops{};
  }

  static Ops joined(Ops first, const Ops& second, const Ops& third = {}) {
    first.insert(first.end(), second.begin(), second.end());
    first.insert(first.end(), third.begin(), third.end());
    return first;
  }

 private:
  [[nodiscard]] Ops order(const Process& process) const {
    const Op noted = note_of(StandbyPhase::kOrdered);
    const Ops sent{step_of(SourceEvent::kOrderSent), gate_of(OwnershipEvent::kOrder),
                   op(Op::Kind::kFlight, 0)};
    if (mistake_ == Mistake::kOrderedAfterSend) {
      return joined(sent, {noted});
    }
    Ops ordered = joined({noted}, sent);
    if (mistake_ == Mistake::kServingBeforeWord) {
      ordered.push_back(note_of(StandbyPhase::kServing));
    }
    if (mistake_ == Mistake::kRecordAfterOrder && process.heir) {
      ordered.push_back(op(Op::Kind::kRecord, 0));
    }
    return ordered;
  }

  /// end(), resume_guest(), take_back(): note_release() and the gate.
  [[nodiscard]] Ops resume(const Process& process, const SourceRule& rule) const {
    const bool kept = process.heir && mistake_ != Mistake::kReleasedAsSource;
    const Op noted = note_of(kept ? StandbyPhase::kParked : StandbyPhase::kRunning);
    const Op opened = gate_of(rule.from == SourceState::kSwitching ? OwnershipEvent::kRelease
                              : rule.on == SourceEvent::kTakeBack  ? OwnershipEvent::kTakeBack
                                                                  : OwnershipEvent::kTargetRefused);
    const Ops both =
        mistake_ == Mistake::kReleasedAfterStart ? Ops{opened, noted} : Ops{noted, opened};
    return joined(joined(cancelled(rule.on), both), {step_of(rule.on)}, end(process, rule));
  }

  static Ops cancelled(SourceEvent event) {
    return event == SourceEvent::kCancel ? Ops{send_of(Message::kCancel)} : Ops{};
  }

  /// note_end(): who runs on with the guest needs nobody.
  static Ops end(const Process& process, const SourceRule& rule) {
    return !process.heir && is_over(rule.to) ? Ops{note_of(StandbyPhase::kOver)} : Ops{};
  }

  Mistake mistake_;
};

/// Walks all worlds that can be reached, or as far as the first one with which something is wrong.
class LedgerWalk {
 public:
  explicit LedgerWalk(Mistake mistake, Trouble most = {}, bool to_the_first = true)
      : driver_(mistake), most_(most) {
    World first;
    first.targets[0].greeted = 1;
    visit(first);
    while (!todo_.empty() && (broken_.empty() || !to_the_first)) {
      const auto [number, world] = std::move(todo_.front());
      todo_.pop_front();
      now_ = number;
      expand(world);
    }
  }

  [[nodiscard]] const std::set<std::string>& broken() const { return broken_; }

  [[nodiscard]] std::size_t worlds() const { return before_.size(); }

  [[nodiscard]] const std::set<std::string>& ends() const { return ends_; }

  /// Worlds whose guest nobody will ever have again, whatever happens.
  [[nodiscard]] std::size_t stuck() const {
    std::vector<bool> leads(before_.size());
    std::deque<std::size_t> todo(good_.begin(), good_.end());
    for (const std::size_t world : good_) {
      leads[world] = true;
    }
    while (!todo.empty()) {
      const std::size_t world = todo.front();
      todo.pop_front();
      for (const std::size_t before : before_[world]) {
        if (!leads[before]) {
          leads[before] = true;
          todo.push_back(before);
        }
      }
    }
    return static_cast<std::size_t>(std::count(leads.begin(), leads.end(), false));
  }

 private:
  void visit(const World& world) {
    const auto [at, first] = numbers_.try_emplace(world.key(), before_.size());
    if (first) {
      before_.emplace_back();
      check(world, at->second);
      todo_.emplace_back(at->second, world);
    }
    before_[at->second].push_back(now_);
  }

  void note(bool wrong, const char* what) {
    if (wrong) {
      broken_.insert(what);
    }
  }

  void check(const World& world, std::size_t number) {
    int owners = world.process.lives && world.process.gate == Ownership::kHere ? 1 : 0;
    for (const Target& target : world.targets) {
      owners += target.gate == Ownership::kHere ? 1 : 0;
      note(target.tombstone && target.gate == Ownership::kHere, "a target runs that said never");
    }
    note(owners > 1, "two have the guest");
    note(world.heard && world.process.lives && world.process.gate == Ownership::kHere,
         "a guest is here that is known to run at its target");
    if (const auto end = end_of(world)) {
      ends_.insert(*end);
      good_.push_back(number);
    }
  }

  /// How the guest ended up; none: that is open.
  static std::optional<std::string> end_of(const World& world) {
    const Process& process = world.process;
    if (world.died_as_source) {
      return "died with its own process";
    }
    if (world.died_as_target) {
      return "died with its target";
    }
    if (process.lives && process.session == SourceState::kCompleted && process.todo.empty()) {
      return std::string(process.target == 0 ? "moved" : "rescued") +
             (process.joined ? " by an heir" : "");
    }
    const bool settled =
        process.lives && process.gate == Ownership::kHere && is_over(process.session);
    if (settled && process.todo.empty()) {
      return process.heir ? "kept" : "runs on";
    }
    return world.forgotten ? std::optional<std::string>("forgotten") : std::nullopt;
  }

  void expand(const World& world) {
    for (std::size_t i = 0; i < world.targets.size(); ++i) {
      machine_at_target(world, i);
      target_hears(world, i);
    }
    if (world.forgotten || world.died_as_source) {
      return;  // What targets do from here on is theirs.
    }
    if (!world.process.lives) {
      return settle(world);
    }
    death(world);
    if (!world.process.todo.empty()) {
      next_op(world);
      return;
    }
    source_hears(world);
    user_and_machine_at_source(world);
    breakage(world);
    rescue(world);
  }

  // ---- the source's process ---------------------------------------------------------------------

  void next_op(World world) {
    Process& process = world.process;
    const Op op = process.todo.front();
    if (process.session == SourceState::kSwitching && op.kind == Op::Kind::kState) {
      try_source(world, SourceEvent::kSwitchFailed);  // The state cannot be read.
    }
    process.todo.erase(process.todo.begin());
    switch (op.kind) {
      case Op::Kind::kStep: {
        const auto rule = step(process.session, static_cast<SourceEvent>(op.what));
        note(!rule.ok(), "the session refuses what its driver needs");
        process.session = rule.ok() ? rule.value().to : process.session;
        break;
      }
      case Op::Kind::kGate:
        open_or_close(process.gate, static_cast<OwnershipEvent>(op.what));
        world.ran_on = world.ran_on || (!process.heir && process.gate == Ownership::kHere);
        break;
      case Op::Kind::kSend:
        send(world.peer(), world.peer().to_it, static_cast<Message>(op.what));
        break;
      case Op::Kind::kFlight:
        send(world.peer(), world.peer().to_it, Message::kState);
        send(world.peer(), world.peer().to_it, Message::kRun);
        break;
      case Op::Kind::kCount:
        ++process.epoch;
        break;
      case Op::Kind::kGreet:
        note(process.epoch <= world.peer().greeted, "an epoch is used twice");
        world.peer().greeted = std::max(world.peer().greeted, process.epoch);
        break;
      case Op::Kind::kMeet:
        return meet(world);
      case Op::Kind::kState:
        world.ledger.state = true;
        break;
      case Op::Kind::kPhase:
        world.ledger.phase = static_cast<StandbyPhase>(op.what);
        break;
      case Op::Kind::kEpoch:
        world.ledger.epoch = process.epoch;
        break;
      case Op::Kind::kRecord:
        world.ledger.target = process.target;
        break;
    }
    visit(world);
  }

  void open_or_close(Ownership& ownership, OwnershipEvent event) {
    RunGate gate(ownership);
    note(!gate.step(event).ok(), "the gate refuses what a session's action needs");
    ownership = gate.ownership();
  }

  static void send(const Target& target, std::vector<Message>& queue, Message message) {
    if (!target.cut) {
      queue.push_back(message);
    }
  }

  /// The attempt fails; or the target has read its old lanes to their ends, and answers.
  void meet(World world) {
    Process& process = world.process;
    Target& target = world.peer();
    if (world.breaks < most_.breaks) {
      World lost = world;
      ++lost.breaks;
      lost.process.session = step(process.session, SourceEvent::kLinkLost).value().to;
      visit(lost);
    }
    if (!target.knows || !target.to_it.empty()) {
      return;
    }
    process.session = step(process.session, SourceEvent::kReconnected).value().to;
    process.knows = false;
    target.from_it.clear();
    target.cut = false;
    target.knows = false;
    if (target.tombstone || target.state == TargetState::kFailed) {
      send(target, target.from_it, Message::kNever);
    } else if (target.state == TargetState::kCompleted) {
      send(target, target.from_it, Message::kRunning);
      send(target, target.from_it, Message::kComplete);
    } else {
      target_steps(target, TargetEvent::kReconnected);
    }
    visit(world);
  }

  bool try_source(World world, SourceEvent event) {
    world.process.todo = driver_.script(world.process, event);
    if (world.process.todo.empty()) {
      return false;
    }
    visit(world);
    return true;
  }

  void user_and_machine_at_source(const World& world) {
    const Process& process = world.process;
    for (const SourceEvent event :
         {SourceEvent::kLanesReady, SourceEvent::kPassesDone, SourceEvent::kSwitchNow,
          SourceEvent::kOrderSent, SourceEvent::kCancel}) {
      try_source(world, event);
    }
    if (process.knows && !world.peer().fenced) {
      try_source(world, SourceEvent::kReconnect);
    }
    if (process.session == SourceState::kOrderedPaused && !world.peer().fenced) {
      World killed = world;
      killed.died_as_target = killed.peer().gate == Ownership::kHere;
      killed.peer().fenced = true;
      killed.peer().gate = Ownership::kGone;
      visit(killed);
    }
    // Who vouches may be wrong, but not against what was heard.
    if (process.session == SourceState::kOrderedPaused && (world.peer().fenced || world.heard)) {
      try_source(world, SourceEvent::kTakeBack);
    }
  }

  void source_hears(const World& world) {
    if (is_over(world.process.session)) {
      return;
    }
    if (world.peer().from_it.empty()) {
      if (world.peer().cut && !world.process.knows) {
        World next = world;
        next.process.knows = true;
        try_source(next, SourceEvent::kLinkLost);
      }
      return;
    }
    World next = world;
    const Message message = world.peer().from_it.front();
    next.peer().from_it.erase(next.peer().from_it.begin());
    next.heard = next.heard || message == Message::kRunning;
    next.process.todo = answer(next.process, message);
    visit(next);
  }

  Ops answer(const Process& process, Message message) {
    switch (message) {
      case Message::kAccept:
        return driver_.script(process, SourceEvent::kAccepted);
      case Message::kRunning:
        return driver_.running_heard(process);
      case Message::kNever:
        return driver_.script(process, SourceEvent::kTargetNever);
      case Message::kComplete:
        return driver_.script(process, SourceEvent::kTargetComplete);
      case Message::kMissingAndLoaded:
        // await_comparison() calls it corrupt, and there is nothing better to be told next time.
        note(process.session == SourceState::kServingRecovering,
             "the target never ran what the ledger says it runs");
        return driver_.script(process, SourceEvent::kTargetLoaded);
      case Message::kMissing:
        return driver_.missing_heard(process);
      case Message::kDescription:
      case Message::kState:
      case Message::kRun:
      case Message::kCancel:
      case Message::kResume:
        note(true, "a message goes the wrong way");
    }
    return {};
  }

  /// The link breaks and takes any tail of what is on the wire with it.
  void breakage(const World& world) {
    if (world.peer().cut || world.breaks == most_.breaks || is_over(world.process.session)) {
      return;
    }
    for (std::size_t there = 0; there <= world.peer().to_it.size(); ++there) {
      for (std::size_t back = 0; back <= world.peer().from_it.size(); ++back) {
        World next = world;
        ++next.breaks;
        next.peer().cut = true;
        next.peer().to_it.resize(there);
        next.peer().from_it.resize(back);
        visit(next);
      }
    }
  }

  // ---- its death, and who comes after it
  // ---------------------------------------------------------

  void death(const World& world) {
    const Process& process = world.process;
    if (world.deaths == most_.deaths || process.session == SourceState::kCompleted) {
      return;
    }
    const std::size_t least = world.peer().cut ? world.peer().to_it.size() : 0;
    for (std::size_t there = least; there <= world.peer().to_it.size(); ++there) {
      World next = world;
      ++next.deaths;
      next.peer().to_it.resize(there);
      next.peer().from_it.clear();
      next.peer().knows = world.peer().cut && world.peer().knows;
      next.peer().cut = true;
      // Its guest dies with it while it runs, until the ledger has it, and once it is released.
      const bool released = !process.todo.empty() && process.todo.front().kind == Op::Kind::kGate &&
                            process.gate == Ownership::kOrdered;
      next.died_as_source = !process.heir && (process.gate == Ownership::kHere ||
                                              (world.ledger.phase == StandbyPhase::kRunning &&
                                               (process.gate == Ownership::kHeld || released)));
      next.heard = world.ledger.phase == StandbyPhase::kServing;
      next.process = Process{};
      next.process.lives = false;
      next.process.heir = true;
      if (next.died_as_source && ownership_left(next.ledger.phase).has_value()) {
        broken_.insert("an old guest is kept");
      }
      visit(next);
    }
  }

  /// PageServer::settle(), inherit(), become_source(): from the ledger alone.
  void settle(World world) {
    const auto owner = ownership_left(world.ledger.phase);
    if (!owner.has_value()) {
      world.forgotten = true;
      const bool arrived =
          std::any_of(world.targets.begin(), world.targets.end(),
                      [](const Target& target) { return target.state == TargetState::kCompleted; });
      note(!arrived && !world.died_as_target, "the last copy of the guest is dropped");
      return visit(world);
    }
    note(!world.ledger.state, "a guest without its state is kept");
    note(world.ran_on, "an old guest is kept");
    Process& heir = world.process;
    heir.lives = true;
    heir.heir = true;
    heir.gate = *owner;
    heir.epoch = world.ledger.epoch;
    heir.target = world.ledger.target;
    heir.knows = true;
    heir.joined = *owner != Ownership::kHere;
    heir.session = world.ledger.phase == StandbyPhase::kServing   ? SourceState::kServingPaused
                   : world.ledger.phase == StandbyPhase::kOrdered ? SourceState::kOrderedPaused
                                                                  : SourceState::kFailed;
    visit(world);
  }

  /// The user of a page server that keeps a guest moves it to a further target.
  void rescue(World world) {
    Process& process = world.process;
    if (!process.heir || process.gate != Ownership::kHere || !is_over(process.session) ||
        world.next_target == kTargets) {
      return;
    }
    process.session = SourceState::kConnecting;
    process.epoch = 1;
    process.target = world.next_target++;
    process.knows = false;
    process.joined = false;
    process.todo = driver_.begin_rescue();
    world.peer().greeted = 1;
    visit(world);
  }

  // ---- a target
  // ----------------------------------------------------------------------------------

  bool target_steps(Target& target, TargetEvent event) {
    const auto rule = step(target.state, event);
    if (!rule.ok()) {
      return false;
    }
    target.state = rule.value().to;
    switch (rule.value().act) {
      case TargetAction::kRun:
        open_or_close(target.gate, OwnershipEvent::kTake);
        send(target, target.from_it, Message::kRunning);
        break;
      case TargetAction::kNeverWill:
        target.tombstone = true;
        send(target, target.from_it, Message::kNever);
        break;
      case TargetAction::kFinish:
        send(target, target.from_it, Message::kComplete);
        break;
      case TargetAction::kTellMissing: {
        const bool runs = target.gate == Ownership::kHere;
        if (runs) {
          send(target, target.from_it, Message::kRunning);
        }
        send(target, target.from_it, runs ? Message::kMissing : Message::kMissingAndLoaded);
        target.comparing = true;
        target.may_repeat = !runs;
        break;
      }
      case TargetAction::kAskAgain:
        target.comparing = false;
        break;
      case TargetAction::kDropHalf:
        target.tombstone = true;
        break;
      case TargetAction::kNone:
      case TargetAction::kLoad:
      case TargetAction::kShutOut:
        break;
    }
    return true;
  }

  void machine_at_target(const World& world, std::size_t number) {
    if (world.targets.at(number).fenced) {
      return;
    }
    World loaded = world;
    Target& target = loaded.targets.at(number);
    if (target_steps(target, TargetEvent::kStateLoaded)) {
      if (std::exchange(target.order_waits, false)) {
        target_steps(target, TargetEvent::kRunOrdered);
      }
      // What happened to the link meanwhile; what it was told is not told again.
      if (target.knows || target.comparing) {
        target_steps(target, TargetEvent::kLinkLost);
      }
      if (target.comparing) {
        const Target before = target;
        target_steps(target, TargetEvent::kReconnected);
        target.from_it = before.from_it;
        target.may_repeat = before.may_repeat;
      }
      visit(loaded);
    }
    for (const TargetEvent event : {TargetEvent::kLoadFailed, TargetEvent::kNothingMissing}) {
      World next = world;
      if (target_steps(next.targets.at(number), event)) {
        visit(next);
      }
    }
  }

  void target_hears(const World& world, std::size_t number) {
    World next = world;
    Target& target = next.targets.at(number);
    if (target.fenced) {
      return;
    }
    if (!target.to_it.empty()) {
      const Message message = target.to_it.front();
      target.to_it.erase(target.to_it.begin());
      target_reads(target, message);
      return visit(next);
    }
    // A target that is loading steps only afterwards: the order may have been read already.
    if (target.cut && !target.knows) {
      target.knows = true;
      target.comparing = false;
      target_steps(target, TargetEvent::kLinkLost);
      visit(next);
    }
  }

  void target_reads(Target& target, Message message) {
    switch (message) {
      case Message::kDescription:
        if (target_steps(target, TargetEvent::kDescriptionAccepted)) {
          send(target, target.from_it, Message::kAccept);
        }
        break;
      case Message::kState:
        target_steps(target, TargetEvent::kStateReceived);
        break;
      case Message::kRun:
        if (target.may_repeat && (target.gate == Ownership::kHere || target.order_waits)) {
          target.may_repeat = false;  // Obeyed already, or waiting to be.
        } else if (!target_steps(target, TargetEvent::kRunOrdered)) {
          target.order_waits = target.state == TargetState::kLoading;
        }
        break;
      case Message::kResume:
        target_steps(target, TargetEvent::kResynced);
        target.comparing = false;
        break;
      case Message::kCancel:
        target_steps(target, TargetEvent::kCancelled);
        break;
      case Message::kAccept:
      case Message::kRunning:
      case Message::kNever:
      case Message::kComplete:
      case Message::kMissingAndLoaded:
      case Message::kMissing:
        note(true, "a message goes the wrong way");
    }
  }

  Driver driver_;
  Trouble most_;
  std::unordered_map<std::string, std::size_t> numbers_;
  std::vector<std::vector<std::size_t>> before_;  // By number: from which worlds it is reached.
  std::vector<std::size_t> good_;
  std::size_t now_ = 0;  // The one that is being expanded.
  std::deque<std::pair<std::size_t, World>> todo_;
  std::set<std::string> broken_;
  std::set<std::string> ends_;
};

using Names = std::set<std::string>;

TEST_CASE("whenever its process dies, a guest has one owner, and an heir that goes on") {
  const LedgerWalk walk(Mistake::kNone);
  CHECK(walk.broken() == Names{});
  CHECK(walk.stuck() == 0);
  CHECK(walk.ends() == Names{"died with its own process", "died with its target", "forgotten",
                             "kept", "moved", "moved by an heir", "rescued", "rescued by an heir",
                             "runs on"});
  CHECK(walk.worlds() > 200'000);
}

TEST_CASE("the walk finds an order that is in the ledger only when it was sent") {
  const LedgerWalk walk(Mistake::kOrderedAfterSend);
  CHECK(walk.broken().contains("two have the guest"));
}

TEST_CASE("the walk finds a ledger that says *serving* before the target has said it") {
  const LedgerWalk walk(Mistake::kServingBeforeWord, {.deaths = 1, .breaks = 0}, false);
  CHECK(walk.broken() == Names{"the target never ran what the ledger says it runs"});
  CHECK(walk.stuck() > 0);
}

TEST_CASE("the walk finds a guest that runs on before the ledger has released it") {
  const LedgerWalk walk(Mistake::kReleasedAfterStart);
  CHECK(walk.broken().contains("an old guest is kept"));
}

TEST_CASE("the walk finds an epoch that is in the ledger only when its greeting was sent") {
  const LedgerWalk walk(Mistake::kEpochAfterGreeting);
  CHECK(walk.broken().contains("an epoch is used twice"));
}

TEST_CASE("the walk finds a rescue that gives the kept guest up when it begins") {
  const LedgerWalk walk(Mistake::kOverBeforeRescue);
  CHECK(walk.broken().contains("the last copy of the guest is dropped"));
}

TEST_CASE("the walk finds an heir that releases a guest as if it could run it") {
  const LedgerWalk walk(Mistake::kReleasedAsSource);
  CHECK(walk.broken().contains("the last copy of the guest is dropped"));
}

TEST_CASE("the walk finds *running* that is noted only when what is missing was told") {
  const LedgerWalk walk(Mistake::kRunningAfterMissing);
  CHECK(walk.broken().contains("a guest is here that is known to run at its target"));
}

TEST_CASE("the walk finds a rescue whose heir would ask the wrong target") {
  const LedgerWalk walk(Mistake::kRecordAfterOrder);
  CHECK(walk.broken().contains("two have the guest"));
}

}  // namespace
}  // namespace towline::runtime
