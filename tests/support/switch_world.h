#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/core/source_protocol.h"
#include "runtime/core/target_protocol.h"
#include "runtime/run_gate.h"
#include "runtime/standby/ledger.h"

/// Both ends of a switch as values: the brains that ship, both gates, and the frames between them.
/// What is decided here is only what the world may do: which frame arrives when, which task ends
/// how, where the link breaks, what the users say.
namespace towline::runtime::switch_model {

/// The tables that ship, or some with a mistake in them.
struct Tables {
  std::vector<SourceRule> source{kSourceRules.begin(), kSourceRules.end()};
  std::vector<TargetRule> target{kTargetRules.begin(), kTargetRules.end()};
  std::vector<OwnershipRule> gate{kOwnershipRules.begin(), kOwnershipRules.end()};
};

/// A mistake in what lies around the brains: an effect that is not performed, or an input that is
/// withheld.
enum class Mistake : std::uint8_t {
  kNone,
  kGateUntold,       ///< The source's gate is not told that the target runs the guest.
  kOrderUnnoted,     ///< The source's gate is not told of the order.
  kRunningWithheld,  ///< *Running* is told to the source behind the end of what is missing.
  kRunningUnread,    ///< The source does not read what arrived before the link broke.
  kCancelled,        ///< A cancel after the order gives the guest back.
  kRunningUntold,    ///< A target that tells what it misses does not tell that the guest runs.
  // With processes that die:
  kOrderedAfterSend,    ///< The ledger says *ordered* only when the order has left.
  kServingBeforeWord,   ///< The ledger says *serving* when the order has left.
  kReleasedAfterStart,  ///< The guest runs on before the ledger has released it.
  kEpochAfterGreeting,  ///< The ledger has an epoch only when its greeting was sent.
  kOverBeforeRescue,    ///< A rescue gives the kept guest up when it begins.
  kRecordAfterOrder,    ///< A rescue's target is in the ledger only when the order has left.
  kReleasedAsSource,    ///< An heir releases a guest as if it could run it.
  kFencedEarly,  ///< A new epoch begins before the old one's control lane was read to its end.
};

/// A frame, as far as the brains look at it.
struct Frame {
  wire::FrameType type;
  std::uint64_t count = 0;
  std::uint32_t round = 0;
  std::uint16_t flags = 0;
};

/// A target, and the link to it.
struct Peer {
  explicit Peer(const Tables& tables);

  TargetProtocol target;
  std::string target_dump;                 ///< Of its last input: most steps are not the target's.
  Ownership there = Ownership::kIncoming;  ///< Its gate.
  std::vector<Frame> to_target;
  std::vector<Frame> to_source;
  bool cut_there = false;              ///< What the source sends from now on does not arrive.
  bool cut_back = false;               ///< The same for the target.
  bool target_reads = false;           ///< tl-control is there.
  std::deque<TargetTask> waits;        ///< What tl-control waits for.
  std::optional<std::uint64_t> fence;  ///< Begins when the old lane was read to its end.
  bool shut_out = false;  ///< The source is given up; nothing arrives behind the old lanes.
  bool room_lost = false;
  bool given_up = false;      ///< The target has given its source up.
  bool killed = false;        ///< The target's process, and its user knows it.
  std::uint64_t greeted = 0;  ///< The greatest epoch in which anybody has called it.
};

/// What a source leaves for an heir, as a page server reads it.
struct Ledger {
  StandbyPhase phase = StandbyPhase::kRunning;
  std::uint64_t epoch = 1;
  int target = 0;
  bool state = false;
};

/// What became of the guest without a source's doing.
enum class Fate : std::uint8_t { kOpen, kDiedWithSource, kForgotten };

/// The link's present target is the Peer that it is.
struct World : Peer {
  World(const Tables& tables, const MigrationOptions& options);

  SourceProtocol source;
  std::string source_dump;
  Ownership here = Ownership::kHere;  ///< The source's gate.

  bool source_reads = false;      ///< The control lane's reader is there.
  bool loss_told = false;         ///< Its watch has told the loss of this epoch's link.
  std::optional<Frame> withheld;  ///< See Mistake.
  bool cancel_said = false;
  bool switch_said = false;
  bool heard = false;  ///< The source, or its ledger, has read that a target runs the guest.
  int breaks = 0;

  // Of processes that die.
  Ledger ledger;
  std::optional<Peer> other;  ///< The target that is not the present one.
  int which = 0;              ///< The present target's number.
  bool kept = false;       ///< The source is a page server: an heir, or one that keeps the guest.
  bool idle = false;       ///< It keeps the guest, and moves it nowhere.
  bool inherited = false;  ///< It began in the middle of a migration.
  bool released = false;   ///< The ledger says that the guest is its process's again.
  bool ran_on = false;     ///< The guest ran on at its source after it had been parked.
  bool died_as_target = false;
  int deaths = 0;
  Fate fate = Fate::kOpen;

  /// Equal for worlds of which the same can become.
  [[nodiscard]] std::string key() const;
};

/// What bounds a walk.
struct Limits {
  std::uint64_t epochs = 3;  ///< Nothing breaks in the last one: everything must end in it.
  int breaks = 1000;         ///< Of a link, those apart that a death brings.
  int deaths = 0;            ///< Of a source's process.
  bool words = true;         ///< The source's user orders the switch, cancels, and resumes by hand.
  bool watch = true;         ///< The source gives a link up before it has read it to its end.
  bool refusals = true;      ///< A target refuses the guest, or has no room for it.
  bool alone = true;         ///< A target gives its source up.
};

/// What was seen of all worlds.
struct Notes {
  std::set<std::string> broken;
  std::set<std::pair<SourceState, SourceEvent>> source_taken;
  std::set<std::pair<TargetState, TargetEvent>> target_taken;
};

/// Lets things happen to a world.
class Steps {
 public:
  Steps(const Tables& tables, MigrationOptions options, Mistake mistake, const Limits& limits,
        Notes& notes)
      : tables_(tables),
        options_(std::move(options)),
        mistake_(mistake),
        limits_(limits),
        notes_(notes) {}

  /// The first of all worlds, and every one that can follow a world at once.
  void first(const std::function<void(World)>& found);
  void follow(const World& world, const std::function<void(World)>& found);

 private:
  using Found = std::function<void(World)>;

  void note(bool wrong, const std::string& what);
  void check(const World& world);

  // The source (switch_source.cc).
  bool tell(World& world, SourceInput input);
  void perform(World& world, const SourceEffect& effect);
  void done(World& world, const SourceInput& found);
  void source_task(const World& world, const Found& found);
  void task_fails(const World& world, base::ErrorKind kind, const Found& found);
  void open_control(const World& world, const Found& found);
  void source_reads(const World& world, const Found& found);
  void source_waits(const World& world, const Found& found);
  void source_users(const World& world, const Found& found);

  // The target (switch_target.cc).
  bool tell(World& world, TargetInput input);
  void perform(World& world, const TargetEffect& effect);
  bool carry_out(World& world, const TargetTask& task);
  void tell_missing(World& world, const TargetTask& task);
  void attach_lane(World& world);
  void end_reading(World& world, base::ErrorKind kind);
  void target_reads(const World& world, const Found& found);
  void target_waits(const World& world, const Found& found);
  void target_machine(const World& world, const Found& found);
  void target_alone(const World& world, const Found& found);

  // Processes that die, and who comes after them (switch_heir.cc).
  class Hands;
  friend class Hands;
  void may_die(const World& world);
  void settle(World world);
  void rescue(const World& world, const Found& found);
  void begin(World& world);
  void end_of_source(const World& world, const Found& found);

  // The link (switch_world.cc).
  [[nodiscard]] bool may_break(const World& world) const;
  void count_break(World& world) const;
  void follow_target(const World& world, const Found& found);
  void breakage(const World& world, const Found& found);
  void gate(Ownership& ownership, OwnershipEvent event);
  static void send_there(World& world, Frame frame);
  static void send_back(World& world, Frame frame);

  const Tables& tables_;
  const MigrationOptions options_;
  const Mistake mistake_;
  const Limits limits_;
  Notes& notes_;
  const Found* found_ = nullptr;  // Of the world that is followed just now: for deaths.
};

}  // namespace towline::runtime::switch_model
