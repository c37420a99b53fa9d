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
  kFencedEarly,      ///< A new epoch begins before the old one's control lane was read to its end.
};

/// A frame, as far as the brains look at it.
struct Frame {
  wire::FrameType type;
  std::uint64_t count = 0;
  std::uint32_t round = 0;
  std::uint16_t flags = 0;
};

struct World {
  World(const Tables& tables, const MigrationOptions& options);

  SourceProtocol source;
  TargetProtocol target;
  Ownership here = Ownership::kHere;       ///< The source's gate.
  Ownership there = Ownership::kIncoming;  ///< The target's gate.

  std::vector<Frame> to_target;
  std::vector<Frame> to_source;
  bool cut_there = false;  ///< What the source sends from now on does not arrive.
  bool cut_back = false;   ///< The same for the target.

  bool source_reads = false;           ///< The control lane's reader is there.
  bool loss_told = false;              ///< Its watch has told the loss of this epoch's link.
  bool target_reads = true;            ///< tl-control is there.
  std::deque<TargetTask> waits;        ///< What tl-control waits for.
  std::optional<std::uint64_t> fence;  ///< This epoch begins when the old lane was read to its end.
  bool shut_out = false;          ///< The source is given up; nothing arrives behind the old lanes.
  std::optional<Frame> withheld;  ///< See Mistake.

  bool cancel_said = false;
  bool switch_said = false;
  bool room_lost = false;
  bool given_up = false;  ///< The target has given its source up.
  bool killed = false;    ///< The target's process, and its user knows it.
  bool heard = false;     ///< The source has read that the guest runs at the target.

  /// Equal for worlds of which the same can become.
  [[nodiscard]] std::string key() const;
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
  /// `most_epochs`: the last one's link holds, so that everything must end in it.
  Steps(const Tables& tables, Mistake mistake, std::uint64_t most_epochs, Notes& notes)
      : tables_(tables), mistake_(mistake), most_epochs_(most_epochs), notes_(notes) {}

  /// The first of all worlds, and every one that can follow a world at once.
  void first(const World& nothing, const std::function<void(World)>& found);
  void follow(const World& world, const std::function<void(World)>& found);

 private:
  using Found = std::function<void(World)>;

  void note(bool wrong, const std::string& what);
  void check(const World& world);

  // The source (switch_source.cc).
  bool tell(World& world, SourceInput input);
  void perform(World& world, const SourceEffect& effect);
  void give_back(World& world, const SourceRule& rule);
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
  void end_reading(World& world, base::ErrorKind kind);
  void target_reads(const World& world, const Found& found);
  void target_waits(const World& world, const Found& found);
  void target_machine(const World& world, const Found& found);
  void target_alone(const World& world, const Found& found);

  // The link (switch_world.cc).
  void breakage(const World& world, const Found& found);
  void gate(Ownership& ownership, OwnershipEvent event);
  static void send_there(World& world, Frame frame);
  static void send_back(World& world, Frame frame);

  const Tables& tables_;
  const Mistake mistake_;
  const std::uint64_t most_epochs_;
  Notes& notes_;
};

}  // namespace towline::runtime::switch_model
