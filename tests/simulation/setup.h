#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace towline::simulation {

/// Everything random of a run comes from here: the same seed gives the same run on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  /// In [0, bound). The engine's own distributions differ between libraries.
  std::uint64_t below(std::uint64_t bound) { return engine_() % bound; }

  /// In [low, high].
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + below(high - low + 1);
  }

  /// True once in `times`.
  bool once_in(std::uint64_t times) { return below(times) == 0; }

 private:
  std::mt19937_64 engine_;
};

/// What may go wrong in a run.
enum class Trouble : std::uint8_t {
  kNone,
  kCutAll,        ///< The whole link breaks, each direction at any byte. It can be tied again.
  kCutFlight,     ///< The whole link breaks soon after the order was sent.
  kCutLane,       ///< One lane breaks.
  kFlip,          ///< One bit on the wire turns over.
  kCancel,        ///< The user cancels, at any time.
  kRefusal,       ///< The target refuses the connection or the description.
  kTargetLeaves,  ///< The target is told to end before it has the state: it says never.
  kSaveFails,
  kLoadFails,
  kTightMemory,    ///< Writes of pages fail now and then at the target.
  kStorm,          ///< One to ten faults of the network, of processes that freeze, of strangers.
  kSourceDies,     ///< The source's process or host ends, at any step; perhaps in a storm.
  kSourceGivenUp,  ///< As kSourceDies, but the source may live; the target gives it up some time.
  kTargetDies,     ///< The target's process or host ends, at any step; perhaps in a storm.
  kLanes,          ///< After the switch data lanes break, one after the other; memory may be tight.
  kNoRoom,         ///< Room for a pass's pages vanishes and comes back; perhaps the link breaks or
                   ///< the user cancels meanwhile.
  kSwallow,        ///< Frames vanish whole on connections that live; perhaps the link breaks too.
};

std::string_view to_string(Trouble trouble);
inline constexpr int kTroubles = static_cast<int>(Trouble::kSwallow) + 1;

/// Mistakes that can be planted, to see that they are caught. Never in what ships: each changes a
/// driver or the kernel of the simulated world.
enum class Plant : std::uint8_t {
  kNone,
  kStaleBeforeMarkers,    ///< The target applies a stale set before the lanes' markers were seen.
  kReadBeforeClear,       ///< The source reads a page and arms the log afterwards.
  kDeltaForgotten,        ///< The last dirty delta is not sent.
  kDeviceUnmarked,        ///< Device writes are not marked when they complete.
  kClaimKept,             ///< A frame with a bad checksum keeps its claim, and the lane goes on.
  kSumNotChecked,         ///< Payload checksums are not looked at.
  kResumeOnLoss,          ///< The source resumes its guest when the link breaks after the order.
  kRunTwice,              ///< The target starts its vCPUs for each order that it reads.
  kRunWithoutOrder,       ///< The target runs as soon as it has loaded.
  kNeverThenRun,          ///< The target says never when it loses a lane while running.
  kFaultDropped,          ///< A fault on a claimed page is forgotten.
  kWakeForgotten,         ///< Ending a claim as zero wakes nobody.
  kZeroNotPunched,        ///< A zero page keeps what an earlier pass left in the file.
  kZapForgotten,          ///< A stale page stays mapped.
  kInstalledOverwritten,  ///< A late frame is written over an installed page.
  kServeEarly,            ///< Faults are asked for before the final delta was applied.
  kCompleteEarly,         ///< The target says complete while a page is missing.
  kSweepForgotten,        ///< What nobody pushed is not collected.
  kResumeOnTimeout,       ///< The source takes its guest back when it could not reconnect for long.
  kOldLaneAccepted,       ///< The target takes a lane of an epoch that is over.
  kOldEpochAccepted,      ///< The target looks at the epoch of a hello, not again at its proof.
  kOldFrameInstalled,     ///< The target goes on reading an old lane in the new epoch.
  kClaimKeptAtFence,      ///< A lane that dies inside a frame keeps its claim.
  kClaimsResetEarly,      ///< Claims are given back while an old receiver still runs.
  kFaultNotAskedAgain,    ///< Outstanding faults are not asked for in the new epoch.
  kStrangerBelieved,      ///< The proof is not looked at.
  kTombstoneForgotten,    ///< The target drops its half and does not remember that it did.
  kOtherNeverBelieved,    ///< The source believes the never of another incarnation.
  kOwedKept,              ///< The source goes on with what it believes to owe.
  kRunningUntold,         ///< The target compares as one that never read the order.
  kOldPusherRuns,         ///< The source does not join the old epoch's lanes before it compares.
  kGivenUpLetIn,          ///< The target lets a source in that it has given up.
  kPoisonTooMuch,         ///< The page behind a run of missing ones is poisoned too.
  kCompleteUnannounced,   ///< The target may say complete before it has said that the guest runs.
  kOldAttemptAccepted,    ///< The target takes a lane that an earlier attempt was to replace.
  kLaneNotJoined,         ///< The receiver of a lane that is replaced goes on.
  kLaneMissingEarly,      ///< What is missing is told before a replaced lane's receiver has ended.
  kLaneNotAsked,          ///< What was asked for on a lost urgent lane is not asked for again.
  kRunningUnnoted,        ///< In a recovery *running* is noted only when all was told.
  // An effect or a task of a brain that is dropped, or done too early or too late.
  kGateUntold,        ///< The source's gate does not hear that the target runs the guest.
  kPostcopyUnopened,  ///< The final delta is applied, and pages of the time after it are refused.
  kOrderForgotten,    ///< The gate is opened, and the guest never started.
  kTombstoneLate,     ///< The tombstone is written when its *never* is on its way already.
  kResumeEarly,       ///< The source goes on, and its lanes are not waited for.
  kFramesUncounted,   ///< Frames that vanish from a control lane are not missed.
  kIdleUnnoticed,     ///< Both ends wait for each other, and the source's watch does not see it.
};

inline constexpr int kPlants = static_cast<int>(Plant::kIdleUnnoticed) + 1;

std::string_view to_string(Plant plant);

/// One run, as its seed decides it.
struct Setup {
  std::uint64_t seed = 0;
  Trouble trouble = Trouble::kNone;
  Plant plant = Plant::kNone;
  std::vector<std::uint64_t> regions;  ///< Pages of each.
  std::size_t bulk_lanes = 1;
  std::uint32_t passes = 1;
  bool manual_switch = false;  ///< The user says when; a pass may be cut.
  std::uint64_t sync_budget = 4;
  std::uint64_t source_writes = 100;
  std::size_t vcpus = 1;
  std::uint64_t target_accesses = 40;  ///< Of each vCPU.
  std::uint64_t preemption = 6;        ///< Once in so many places another thread cuts in.
  std::size_t request_bound = 64;
  bool window_order = true;
  std::uint64_t faults = 0;   ///< Of a storm.
  bool tight_memory = false;  ///< Writes of pages fail now and then at the target.
  bool load_fails = false;

  static Setup of(std::uint64_t seed, Trouble trouble, Plant plant = Plant::kNone);
};

/// The trouble that a bare seed stands for.
Trouble trouble_of(std::uint64_t seed);

}  // namespace towline::simulation
