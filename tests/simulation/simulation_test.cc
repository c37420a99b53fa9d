#include "tests/simulation/simulation.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include <doctest/doctest.h>

#include "source_root.h"

namespace towline::simulation {
namespace {

// Under a sanitizer a run takes twenty times as long: fewer seeds, and luck is not asked for.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kShare = 20;
#else
constexpr std::uint64_t kShare = 1;
#endif

/// Runs seeds [first, first + runs), or a share of them; stops at the first that fails and says how
/// to see it again.
Coverage hold(Trouble trouble, std::uint64_t runs, std::uint64_t first = 1) {
  Coverage coverage;
  const std::uint64_t share = std::max<std::uint64_t>(1, runs / kShare);
  for (std::uint64_t seed = first; seed < first + share; ++seed) {
    const Result result = simulate(Setup::of(seed, trouble));
    if (result.violation.has_value()) {
      FAIL("simulate --runs 1 --seed " << seed << " --trouble " << to_string(trouble) << ": "
                                       << *result.violation);
    }
    coverage.add(result.coverage);
  }
  return coverage;
}

bool met(const Coverage& coverage, const char* event) {
  const auto found = coverage.events.find(event);
  return kShare > 1 || (found != coverage.events.end() && found->second > 0);
}

TEST_CASE("every seed that failed once holds now") {
  std::map<std::string, Trouble> troubles;
  for (int i = 0; i < kTroubles; ++i) {
    troubles.emplace(to_string(static_cast<Trouble>(i)), static_cast<Trouble>(i));
  }
  std::ifstream file(TOWLINE_SOURCE_ROOT "/tests/simulation/seeds.txt");
  int replayed = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') {
      continue;
    }
    std::istringstream words(line);
    std::uint64_t seed = 0;
    std::string trouble;
    words >> seed >> trouble;
    REQUIRE(troubles.contains(trouble));
    hold(troubles.at(trouble), 1, seed);
    ++replayed;
  }
  CHECK(replayed > 0);
}

TEST_CASE(
    "on a link that holds every migration completes, and every page is the last one written") {
  const Coverage coverage = hold(Trouble::kNone, 3000);
  CHECK(coverage.events.at("a completed migration") == 3000 / kShare);
}

TEST_CASE("a link that breaks at any moment leaves one copy, and is tied again if it has to be") {
  const Coverage coverage = hold(Trouble::kCutAll, 800);
  CHECK(met(coverage, "a recovery"));
  CHECK(met(coverage, "a switch that waited for its word"));
}

TEST_CASE("a link that breaks around the order is tied again, and the guest runs once") {
  const Coverage coverage = hold(Trouble::kCutFlight, 800);
  CHECK(met(coverage, "a recovery"));
  CHECK(met(coverage, "an order that was obeyed already"));
}

TEST_CASE("a lane that breaks alone takes nothing with it that was promised") {
  const Coverage coverage = hold(Trouble::kCutLane, 800);
  CHECK(met(coverage, "a lane that was replaced"));
}

TEST_CASE("data lanes that break after the switch are replaced, mostly in their epoch") {
  const Coverage coverage = hold(Trouble::kLanes, 1500);
  CHECK(met(coverage, "a lane that was replaced"));
  CHECK(met(coverage, "a lane that could not be replaced"));
  CHECK(met(coverage, "an attempt that was overtaken"));
}

TEST_CASE("storms of faults leave one copy and every page, and the move ends once they are over") {
  const Coverage coverage = hold(Trouble::kStorm, 4000);
  CHECK(met(coverage, "completed in the sixth epoch or later"));
}

TEST_CASE("a source that dies leaves its guest where it was, or at the target what came") {
  const Coverage coverage = hold(Trouble::kSourceDies, 1500);
  CHECK(met(coverage, "a loaded half without a source"));
  CHECK(met(coverage, "a guest cut off from its memory"));
}

TEST_CASE("a source that is given up is not let in again, and takes nothing with it that is here") {
  const Coverage coverage = hold(Trouble::kSourceGivenUp, 2500);
  for (const runtime::TargetRule& rule : runtime::kTargetRules) {
    const bool of_this = runtime::shuts_out(rule.from) || runtime::shuts_out(rule.to);
    CAPTURE(to_string(rule.from));
    CAPTURE(to_string(rule.on));
    CHECK((!of_this || kShare > 1 || coverage.target.contains({rule.from, rule.on})));
  }
  CHECK(met(coverage, "a source that was given up came back"));
  CHECK(met(coverage, "the guest touched a poisoned page"));
  CHECK(met(coverage, "a guest without what was lost"));
  CHECK(met(coverage, "a guest that was given up"));
}

TEST_CASE("a source whose target died stays parked until its user takes the guest back") {
  const Coverage coverage = hold(Trouble::kTargetDies, 1500);
  CHECK(met(coverage, "a source that stays parked"));
  CHECK(
      coverage.gates.contains({runtime::Ownership::kOrdered, runtime::OwnershipEvent::kTakeBack}));
}

TEST_CASE("a flipped bit is found before it can be seen") {
  hold(Trouble::kFlip, 800);
}

TEST_CASE("a cancel at any moment before the order gives the guest back, and later does nothing") {
  hold(Trouble::kCancel, 800);
}

TEST_CASE("a refusal leaves the source's guest running") {
  hold(Trouble::kRefusal, 300);
}

TEST_CASE("a target that says never before it had the guest leaves it at the source") {
  hold(Trouble::kTargetLeaves, 600);
}

TEST_CASE("a save that fails gives the guest back") {
  hold(Trouble::kSaveFails, 300);
}

TEST_CASE("a load that fails gives the guest back by the target's word") {
  hold(Trouble::kLoadFails, 400);
}

TEST_CASE("where pages cannot always be stored every migration completes in the end") {
  const Coverage coverage = hold(Trouble::kTightMemory, 800);
  CHECK(met(coverage, "a page could not be written"));
  CHECK(met(coverage, "zeros could not be stored"));
  CHECK(met(coverage, "a sweep"));
}

TEST_CASE("a pass for which there is no room waits until there is, and nothing of it is lost") {
  const Coverage coverage = hold(Trouble::kNoRoom, 1500);
  CHECK(met(coverage, "a lane that waited for room"));
  CHECK(met(coverage, "a completed migration"));
}

TEST_CASE("a frame that vanishes on a link that lives is missed, and nothing waits for ever") {
  const Coverage coverage = hold(Trouble::kSwallow, 2500);
  CHECK(met(coverage, "a frame that was swallowed"));
  CHECK(met(coverage, "a marker that was swallowed"));
  CHECK(met(coverage, "a recovery"));
  CHECK(met(coverage, "a completed migration"));
}

TEST_CASE("the seeds take every rule of every table and meet what only luck brings about") {
  Coverage coverage;
  for (std::uint64_t seed = 190'000; seed < 190'000 + 6000 / kShare; ++seed) {
    const Result result = simulate(Setup::of(seed, trouble_of(seed)));
    CAPTURE(seed);
    REQUIRE_FALSE(result.violation.has_value());
    coverage.add(result.coverage);
  }
  if (kShare > 1) {
    return;
  }
  for (const runtime::SourceRule& rule : runtime::kSourceRules) {
    CAPTURE(to_string(rule.from));
    CAPTURE(to_string(rule.on));
    CHECK(coverage.source.contains({rule.from, rule.on}) != never_taken(rule));
  }
  for (const runtime::TargetRule& rule : runtime::kTargetRules) {
    CAPTURE(to_string(rule.from));
    CAPTURE(to_string(rule.on));
    CHECK(coverage.target.contains({rule.from, rule.on}));
  }
  for (const runtime::OwnershipRule& rule : runtime::kOwnershipRules) {
    CAPTURE(to_string(rule.from));
    CAPTURE(to_string(rule.on));
    CHECK(coverage.gates.contains({rule.from, rule.on}));
  }
  for (int i = 0; i <= static_cast<int>(runtime::TargetEffect::Kind::kRoomAgain); ++i) {
    const auto effect = static_cast<runtime::TargetEffect::Kind>(i);
    // Time is not modelled: nothing is overdue.
    const bool timed = effect == runtime::TargetEffect::Kind::kGiveUpMarkers ||
                       effect == runtime::TargetEffect::Kind::kOverdue;
    CAPTURE(to_string(effect));
    CHECK((timed || coverage.target_effects.contains(effect)));
  }
  for (int i = 0; i <= static_cast<int>(runtime::TargetTask::Kind::kStartGuest); ++i) {
    const auto task = static_cast<runtime::TargetTask::Kind>(i);
    CAPTURE(to_string(task));
    // The source compares no clocks here.
    CHECK((task == runtime::TargetTask::Kind::kAnswerPing || coverage.target_tasks.contains(task)));
  }
  for (const char* event :
       {"a duplicate", "a fault answered without the network", "a fault on a claimed page",
        "a pass was cut", "a sweep", "an answer met a claim", "an installed page lost its entry",
        "a connection that went nowhere", "a connection that nobody took",
        "a control lane that was overtaken", "a lane that was overtaken",
        "an epoch that was overtaken before it began", "another incarnation answered",
        "a stranger was sent away", "a lane that was replaced", "two lanes that broke together"}) {
    CAPTURE(event);
    CHECK(coverage.events[event] > 0);
  }
}

TEST_CASE("the same seed gives the same run") {
  for (std::uint64_t seed = 1; seed < 40; ++seed) {
    const Setup setup = Setup::of(seed, trouble_of(seed));
    const Result first = simulate(setup);
    const Result later = simulate(setup);
    CHECK(first.steps == later.steps);
    CHECK(first.completed == later.completed);
    CHECK(first.coverage.events == later.coverage.events);
  }
}

// ---- what is planted is found -------------------------------------------------------------------

/// The first violation that the plant leads to within so many seeds; empty: it goes unseen.
std::string found(Plant plant, Trouble trouble = Trouble::kNone, std::uint64_t first = 1) {
  for (std::uint64_t seed = first; seed < first + 4000; ++seed) {
    const Result result = simulate(Setup::of(seed, trouble, plant));
    if (result.violation.has_value()) {
      return *result.violation;
    }
  }
  return {};
}

bool is_among(const std::string& violation, std::initializer_list<const char*> expected) {
  for (const char* one : expected) {
    if (violation.find(one) == 0) {
      return true;
    }
  }
  MESSAGE("found instead: " << violation);
  return false;
}

constexpr const char* kStalePage = "a stale page survived the final delta";
constexpr const char* kStaleRead = "a stale read";
constexpr const char* kNotDone = "nothing went wrong and yet it did not complete";
constexpr const char* kOpenClaim = "a claim of the pre-pass outlives the final delta";
constexpr const char* kLostFault = "a fault was lost";

TEST_CASE("planted: a stale set that is applied before the markers is found") {
  CHECK(is_among(found(Plant::kStaleBeforeMarkers),
                 {kStalePage, kOpenClaim, "a frame of a round that is not due"}));
}

TEST_CASE("planted: a page that is read before its log is armed is found") {
  CHECK(is_among(found(Plant::kReadBeforeClear), {kStalePage, kStaleRead}));
}

TEST_CASE("planted: a last delta that is not sent is found") {
  CHECK(is_among(found(Plant::kDeltaForgotten), {kStalePage, kStaleRead}));
}

TEST_CASE("planted: a device write that is not marked is found") {
  CHECK(is_among(found(Plant::kDeviceUnmarked), {kStalePage, kStaleRead}));
}

TEST_CASE("planted: a claim that is not released is found") {
  CHECK(is_among(found(Plant::kClaimKept), {kOpenClaim, kNotDone, kLostFault}));
}

TEST_CASE("planted: a checksum that is not looked at is found") {
  CHECK(is_among(found(Plant::kSumNotChecked, Trouble::kFlip),
                 {"a page got the bytes of another", kStalePage, kStaleRead}));
}

TEST_CASE("planted: a source that resumes when the link breaks after the order is found") {
  CHECK(is_among(found(Plant::kResumeOnLoss, Trouble::kCutFlight),
                 {"the source took its guest back after the order", "two copies may run"}));
}

TEST_CASE("planted: an order that is obeyed twice is found") {
  CHECK(is_among(found(Plant::kRunTwice, Trouble::kStorm), {"the order was obeyed twice"}));
}

TEST_CASE("planted: a target that runs without the order is found") {
  CHECK(is_among(found(Plant::kRunWithoutOrder, Trouble::kCutFlight),
                 {"vCPUs run at the target without the order"}));
}

TEST_CASE("planted: a target that says never and runs all the same is found") {
  CHECK(is_among(found(Plant::kNeverThenRun, Trouble::kCutLane),
                 {"the source took its guest back after the order", "two copies may run"}));
}

TEST_CASE("planted: a fault that is dropped because its page is claimed is found") {
  CHECK(is_among(found(Plant::kFaultDropped), {kLostFault}));
}

TEST_CASE("planted: a claim that ends as zero and wakes nobody is found") {
  CHECK(is_among(found(Plant::kWakeForgotten), {kLostFault}));
}

TEST_CASE("planted: a zero page that keeps its old content in the file is found") {
  CHECK(is_among(found(Plant::kZeroNotPunched),
                 {kStalePage, kStaleRead, "residue shows through a zero page"}));
}

TEST_CASE("planted: a stale page that stays mapped is found") {
  CHECK(is_among(found(Plant::kZapForgotten),
                 {kStaleRead, "a write of a page that the guest has seen or can see",
                  "a punch of a page that the guest has seen or can see"}));
}

TEST_CASE("planted: a late frame that is written over an installed page is found") {
  CHECK(is_among(found(Plant::kInstalledOverwritten), {"a write without a claim"}));
}

TEST_CASE("planted: a request before the final delta is found") {
  CHECK(is_among(found(Plant::kServeEarly),
                 {"a request came before its time", "an answer to what was not asked"}));
}

TEST_CASE("planted: a target that is complete too early is found") {
  CHECK(
      is_among(found(Plant::kCompleteEarly), {"the memory is released while a page is missing",
                                              "the source gave up memory that the target misses"}));
}

TEST_CASE("planted: pages that nobody pushed and nobody sweeps are found") {
  CHECK(is_among(found(Plant::kSweepForgotten, Trouble::kTightMemory), {kNotDone}));
}

// ---- of recovery --------------------------------------------------------------------------------

constexpr const char* kTookBack = "the source took its guest back after the order";
constexpr const char* kTwoCopies = "two copies may run";
constexpr const char* kUnsettled = "the network holds, and yet nothing is settled";
constexpr const char* kForEver = "it goes on for ever";
constexpr const char* kOldFrame = "a frame of an old epoch was installed";
constexpr const char* kOldClaim = "a claim of the old epoch outlives it";

TEST_CASE("planted: a source that takes its guest back after a while is found") {
  CHECK(is_among(found(Plant::kResumeOnTimeout, Trouble::kStorm), {kTookBack, kTwoCopies}));
}

TEST_CASE("planted: a lane of an old epoch that is taken is found") {
  CHECK(is_among(found(Plant::kOldLaneAccepted, Trouble::kStorm),
                 {"a lane of an old epoch was taken"}));
}

TEST_CASE("planted: an epoch that is looked at before the proof only is found") {
  CHECK(is_among(found(Plant::kOldEpochAccepted, Trouble::kStorm),
                 {"the target went back to an older epoch"}));
}

TEST_CASE("planted: a frame of an old epoch that is installed is found") {
  CHECK(is_among(found(Plant::kOldFrameInstalled, Trouble::kStorm), {kOldFrame, kOldClaim}));
}

TEST_CASE("planted: a claim that a dead lane keeps is found") {
  CHECK(is_among(found(Plant::kClaimKeptAtFence, Trouble::kStorm),
                 {kOldClaim, kLostFault, kUnsettled}));
}

TEST_CASE("planted: claims that are reset while an old receiver runs are found") {
  CHECK(is_among(found(Plant::kClaimsResetEarly, Trouble::kStorm),
                 {kOldFrame, "zeros lost its claim half-way", "a write lost its claim half-way",
                  "a mapping lost its claim half-way", "a punch lost its claim half-way"}));
}

TEST_CASE("planted: a fault that is not asked for again is found") {
  CHECK(is_among(found(Plant::kFaultNotAskedAgain, Trouble::kStorm),
                 {"a fault was not asked for in this epoch"}));
}

TEST_CASE("planted: a stranger whose epoch is believed is found") {
  CHECK(is_among(found(Plant::kStrangerBelieved, Trouble::kStorm),
                 {"an epoch that the source never began"}));
}

TEST_CASE("planted: a tombstone that is forgotten is found") {
  CHECK(is_among(found(Plant::kTombstoneForgotten, Trouble::kStorm),
                 {kForEver, kUnsettled, kTookBack}));
}

TEST_CASE("planted: another incarnation that is believed is found") {
  CHECK(is_among(found(Plant::kOtherNeverBelieved, Trouble::kStorm),
                 {kTookBack, kTwoCopies, kUnsettled}));
}

TEST_CASE("planted: a source that does not owe what the target misses is found") {
  CHECK(is_among(found(Plant::kOwedKept, Trouble::kStorm),
                 {"a missing page is not owed after the comparison"}));
}

TEST_CASE("planted: a running target that compares as a loaded one is found") {
  CHECK(is_among(found(Plant::kRunningUntold, Trouble::kStorm), {kUnsettled, kForEver}));
}

TEST_CASE("planted: an old lane of the source that pushes in the new epoch is found") {
  CHECK(is_among(
      found(Plant::kOldPusherRuns, Trouble::kStorm),
      {"a missing page is not owed after the comparison", "a page is owed that the target holds",
       "a page is served from memory that was given up"}));
}

TEST_CASE("planted: a target that is complete before it says that the guest runs is found") {
  CHECK(is_among(found(Plant::kCompleteUnannounced),
                 {"nothing went wrong and yet the link was given up"}));
}

TEST_CASE("planted: a source that notes only at a recovery's end that the target runs is found") {
  CHECK(is_among(found(Plant::kRunningUnnoted, Trouble::kStorm), {kTwoCopies}));
}

TEST_CASE("planted: a gate that is not told that the target runs the guest is found") {
  CHECK(is_among(found(Plant::kGateUntold),
                 {"the source knows that the guest runs there, and its gate does not"}));
}

TEST_CASE("planted: a lane of an earlier attempt that is taken is found") {
  CHECK(is_among(found(Plant::kOldAttemptAccepted, Trouble::kLanes),
                 {"the target went back to an older attempt at a lane",
                  "a frame of a lane that was replaced was installed"}));
}

TEST_CASE("planted: a replaced lane whose receiver goes on is found") {
  CHECK(is_among(found(Plant::kLaneNotJoined, Trouble::kLanes),
                 {"a frame of a lane that was replaced was installed"}));
}

TEST_CASE("planted: a missing set that is told before a lane's receiver has ended is found") {
  // Rare: once in some thousands of runs.
  CHECK(is_among(found(Plant::kLaneMissingEarly, Trouble::kLanes, 50'000),
                 {"a missing page was not told behind the fence of a lane"}));
}

TEST_CASE("planted: what an urgent lane was asked for and is not asked for again is found") {
  CHECK(is_among(found(Plant::kLaneNotAsked, Trouble::kLanes),
                 {"a fault was not asked for in this epoch", kLostFault}));
}

TEST_CASE("planted: a source that was given up and is let in is found") {
  CHECK(is_among(found(Plant::kGivenUpLetIn, Trouble::kSourceGivenUp),
                 {"a source that was given up is let in"}));
}

TEST_CASE("planted: poisoning more than what is missing is found") {
  CHECK(is_among(found(Plant::kPoisonTooMuch, Trouble::kSourceGivenUp),
                 {"map and memory differ in what is poisoned", "a page is poisoned that was not"}));
}

// ---- of the target's brain: what its performer may get wrong
// -------------------------------------

TEST_CASE("planted: a final delta that does not open the time after it is found") {
  CHECK(is_among(found(Plant::kPostcopyUnopened),
                 {"an answer to what was not asked", "a frame of a round that is not due"}));
}

TEST_CASE("planted: a guest that is not started though its gate is open is found") {
  CHECK(is_among(found(Plant::kOrderForgotten), {kNotDone}));
}

TEST_CASE("planted: a tombstone that is written behind its word is found") {
  CHECK(is_among(found(Plant::kTombstoneLate, Trouble::kLoadFails), {kTookBack}));
}

TEST_CASE("planted: frames that nobody counts are found") {
  CHECK(is_among(found(Plant::kFramesUncounted, Trouble::kSwallow),
                 {kUnsettled, "the target cannot take"}));
}

TEST_CASE("planted: ends that wait for each other, unseen, are found") {
  CHECK(is_among(found(Plant::kIdleUnnoticed, Trouble::kSwallow), {kUnsettled}));
}

TEST_CASE("planted: lanes that are not waited for before their epoch goes on are found") {
  CHECK(is_among(found(Plant::kResumeEarly, Trouble::kStorm),
                 {"a fault was not asked for in this epoch"}));
}

}  // namespace
}  // namespace towline::simulation
