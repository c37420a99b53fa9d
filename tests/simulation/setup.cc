#include "tests/simulation/setup.h"

namespace towline::simulation {

std::string_view to_string(Trouble trouble) {
  switch (trouble) {
    case Trouble::kNone:
      return "none";
    case Trouble::kCutAll:
      return "cut-all";
    case Trouble::kCutFlight:
      return "cut-flight";
    case Trouble::kCutLane:
      return "cut-lane";
    case Trouble::kFlip:
      return "flip";
    case Trouble::kCancel:
      return "cancel";
    case Trouble::kRefusal:
      return "refusal";
    case Trouble::kTargetLeaves:
      return "target-leaves";
    case Trouble::kSaveFails:
      return "save-fails";
    case Trouble::kLoadFails:
      return "load-fails";
    case Trouble::kTightMemory:
      return "tight-memory";
    case Trouble::kStorm:
      return "storm";
    case Trouble::kSourceDies:
      return "source-dies";
    case Trouble::kSourceGivenUp:
      return "source-given-up";
    case Trouble::kTargetDies:
      return "target-dies";
    case Trouble::kLanes:
      return "lanes";
    case Trouble::kNoRoom:
      return "no-room";
    case Trouble::kSwallow:
      return "swallow";
  }
  __builtin_unreachable();
}

std::string_view to_string(Plant plant) {
  switch (plant) {
    case Plant::kNone:
      return "none";
    case Plant::kStaleBeforeMarkers:
      return "stale-before-markers";
    case Plant::kReadBeforeClear:
      return "read-before-clear";
    case Plant::kDeltaForgotten:
      return "delta-forgotten";
    case Plant::kDeviceUnmarked:
      return "device-unmarked";
    case Plant::kClaimKept:
      return "claim-kept";
    case Plant::kSumNotChecked:
      return "sum-not-checked";
    case Plant::kResumeOnLoss:
      return "resume-on-loss";
    case Plant::kRunTwice:
      return "run-twice";
    case Plant::kRunWithoutOrder:
      return "run-without-order";
    case Plant::kNeverThenRun:
      return "never-then-run";
    case Plant::kFaultDropped:
      return "fault-dropped";
    case Plant::kWakeForgotten:
      return "wake-forgotten";
    case Plant::kZeroNotPunched:
      return "zero-not-punched";
    case Plant::kZapForgotten:
      return "zap-forgotten";
    case Plant::kInstalledOverwritten:
      return "installed-overwritten";
    case Plant::kServeEarly:
      return "serve-early";
    case Plant::kCompleteEarly:
      return "complete-early";
    case Plant::kSweepForgotten:
      return "sweep-forgotten";
    case Plant::kResumeOnTimeout:
      return "resume-on-timeout";
    case Plant::kOldLaneAccepted:
      return "old-lane-accepted";
    case Plant::kOldEpochAccepted:
      return "old-epoch-accepted";
    case Plant::kOldFrameInstalled:
      return "old-frame-installed";
    case Plant::kClaimKeptAtFence:
      return "claim-kept-at-fence";
    case Plant::kClaimsResetEarly:
      return "claims-reset-early";
    case Plant::kFaultNotAskedAgain:
      return "fault-not-asked-again";
    case Plant::kStrangerBelieved:
      return "stranger-believed";
    case Plant::kTombstoneForgotten:
      return "tombstone-forgotten";
    case Plant::kOtherNeverBelieved:
      return "other-never-believed";
    case Plant::kOwedKept:
      return "owed-kept";
    case Plant::kRunningUntold:
      return "running-untold";
    case Plant::kOldPusherRuns:
      return "old-pusher-runs";
    case Plant::kGivenUpLetIn:
      return "given-up-let-in";
    case Plant::kPoisonTooMuch:
      return "poison-too-much";
    case Plant::kCompleteUnannounced:
      return "complete-unannounced";
    case Plant::kOldAttemptAccepted:
      return "old-attempt-accepted";
    case Plant::kLaneNotJoined:
      return "lane-not-joined";
    case Plant::kLaneMissingEarly:
      return "lane-missing-early";
    case Plant::kLaneNotAsked:
      return "lane-not-asked";
    case Plant::kRunningUnnoted:
      return "running-unnoted";
    case Plant::kGateUntold:
      return "gate-untold";
    case Plant::kPostcopyUnopened:
      return "postcopy-unopened";
    case Plant::kOrderForgotten:
      return "order-forgotten";
    case Plant::kTombstoneLate:
      return "tombstone-late";
    case Plant::kResumeEarly:
      return "resume-early";
    case Plant::kFramesUncounted:
      return "frames-uncounted";
    case Plant::kIdleUnnoticed:
      return "idle-unnoticed";
  }
  __builtin_unreachable();
}

Trouble trouble_of(std::uint64_t seed) {
  // Every third run meets no trouble and has to complete; every third is a storm.
  Random random(seed ^ 0x7472'6f75'626cU);
  const std::uint64_t third = random.below(3);
  if (third == 2) {
    return static_cast<Trouble>(random.below(kTroubles));
  }
  return third == 0 ? Trouble::kNone : Trouble::kStorm;
}

Setup Setup::of(std::uint64_t seed, Trouble trouble, Plant plant) {
  Random random(seed);
  Setup setup;
  setup.seed = seed;
  setup.trouble = trouble;
  setup.plant = plant;
  for (std::uint64_t regions = random.between(1, 3); regions > 0; --regions) {
    setup.regions.push_back(random.between(1, random.once_in(4) ? 140 : 40));
  }
  setup.bulk_lanes = random.between(1, 3);
  setup.passes = static_cast<std::uint32_t>(random.between(random.once_in(4) ? 0 : 1, 3));
  setup.manual_switch = random.once_in(3);
  setup.sync_budget = random.below(12);
  setup.source_writes = random.below(random.once_in(3) ? 400 : 100);
  setup.vcpus = random.between(1, 3);
  setup.target_accesses = random.between(5, 60);
  setup.preemption = random.between(2, 12);
  setup.request_bound = random.once_in(4) ? random.between(1, setup.vcpus) : 64;
  setup.window_order = !random.once_in(4);
  const bool storm = trouble == Trouble::kStorm;
  setup.faults = storm ? random.between(1, 10) : random.below(4);
  setup.tight_memory = trouble == Trouble::kTightMemory || (storm && random.once_in(8)) ||
                       (trouble == Trouble::kSourceGivenUp && random.once_in(3));
  setup.load_fails = trouble == Trouble::kLoadFails || (storm && random.once_in(16));
  if (trouble == Trouble::kLanes) {
    setup.faults = random.between(1, 8);
    setup.tight_memory = random.once_in(3);
  }
  return setup;
}

}  // namespace towline::simulation
