#include "tests/simulation/simulation.h"

#include <cstdio>
#include <map>

#include "tests/simulation/memory.h"
#include "tests/simulation/network.h"
#include "tests/simulation/source_end.h"
#include "tests/simulation/target_end.h"
#include "tests/simulation/trouble.h"

namespace towline::simulation {
namespace {

using base::PageIndex;
using runtime::Ownership;
using runtime::PageState;
using runtime::SourceState;
using runtime::TargetState;

constexpr std::uint64_t kMaxSteps = 60'000;

class Run {
 public:
  Run(const Setup& setup, bool trace)
      : world_(setup),
        guest_(world_),
        network_(world_),
        identity_(world_),
        source_(world_, guest_, network_, identity_),
        target_(world_, network_, identity_, source_.lanes()),
        trouble_(world_, network_, identity_, source_, target_),
        states_(world_.layout.pages().value, PageState::kMissing) {
    world_.trace = trace;
    source_.start();
    target_.start();
    add_source_guest();
    trouble_.begin();
    world_.resuming = [this] { check_comparison(); };
    world_.told_of_lane = [this] { check_told(); };
  }

  Result go() {
    std::uint64_t steps = 0;
    try {
      while (!world_.failed() && steps < kMaxSteps && world_.run_one()) {
        ++steps;
        check_always();
      }
      if (steps == kMaxSteps) {
        world_.fail("it goes on for ever");
      }
      if (!world_.failed()) {
        check_end();
      }
    } catch (const Broken&) {  // The violation says why.
    }
    note_coverage();
    if (world_.trace) {
      std::printf(
          "it ends: source %s in epoch %llu, target %s in epoch %llu, %llu pages missing\n",
          to_string(source_.state()).data(), static_cast<unsigned long long>(world_.source_epoch),
          to_string(target_.state()).data(), static_cast<unsigned long long>(target_.epoch()),
          static_cast<unsigned long long>(target_.map().missing().value));
      std::printf("source: %s\n", source_.dump().c_str());
    }
    return {world_.violation, completed(), steps, world_.coverage};
  }

 private:
  // ---- the world around both ends ---------------------------------------------------------------

  void add_source_guest() {
    writes_left_ = world_.setup.source_writes;
    world_.add_actor(
        Process::kSource, "source guest", [this] { return guest_writes(); },
        [this] { write_at_source(); });
    world_.guest_cuts_in = [this] {
      if (guest_writes() && world_.random.once_in(world_.setup.preemption)) {
        write_at_source();
      }
    };
    // A device completes while the vCPUs leave the guest, too.
    world_.add_actor(
        Process::kSource, "source device", [this] { return guest_.device_busy(); },
        [this] { guest_.device_completes(); });
    if (world_.setup.manual_switch) {
      world_.add_event(
          "user: switch", [] { return true; }, world_.random.below(600),
          [this] { source_.ask_for_switch(); });
    }
  }

  [[nodiscard]] bool guest_writes() const { return writes_left_ > 0 && source_.guest_runs(); }

  void write_at_source() {
    --writes_left_;
    world_.random.once_in(6) ? guest_.device_writes() : guest_.write_something();
  }

  // ---- invariants -------------------------------------------------------------------------------

  void check_always() {
    const bool here = !world_.dead(Process::kSource) && source_.ownership() == Ownership::kHere;
    const bool there = !world_.dead(Process::kTarget) && target_.ownership() == Ownership::kHere;
    expect(!(here && there), "two copies may run");
    expect(!(here && world_.runs_there), "the source may run what runs at the target");
    expect(!here || !source_.heard_running(), "the source took back what it knows to run there");
    expect(!world_.runs_there || there, "vCPUs run at the target without its gate");
    expect(!world_.runs_there || target_.order_read(), "vCPUs run at the target without the order");
    expect(!(there && target_.never()), "a target runs that said never");
    expect(target_.epoch() <= world_.source_epoch, "an epoch that the source never began");
    expect(target_.epoch() >= epoch_, "the target went back to an older epoch");
    expect(!target_.has_old_lane(), "a lane of an old epoch was taken");
    check_attempts();
    epoch_ = target_.epoch();
    check_commit_rule();
    check_bounds();
    check_waits();
    if (world_.switched && ++checks_ % 4 == 0) {
      check_pages();
    }
  }

  /// Nobody waits for what is here, or for what nobody was asked for.
  void check_waits() {
    if (world_.dead(Process::kTarget)) {
      return;
    }
    TargetGuest& guest = target_.guest();
    for (std::size_t thread = 0; thread < guest.threads(); ++thread) {
      expect(!guest.forgotten(thread), "a fault was lost");
      expect(!target_.tied() || !guest.blocked(thread) || guest.unread(thread) ||
                 target_.map().state(guest.waits_for(thread)) != PageState::kMissing ||
                 target_.asked(guest.waits_for(thread)),
             "a fault was not asked for in this epoch");
    }
  }

  /// Conservation, where both ends agree: exactly what is missing there is owed here.
  void check_comparison() {
    if (runtime::shuts_out(target_.state())) {
      return;  // What it said is still read, and of no use.
    }
    std::uint64_t missing = 0;
    for (std::uint64_t i = 0; i < states_.size(); ++i) {
      const bool misses = target_.map().state(PageIndex{i}) == PageState::kMissing;
      missing += misses ? 1 : 0;
      if (misses != source_.owed().contains(PageIndex{i})) {
        world_.fail(misses ? "a missing page is not owed after the comparison"
                           : "a page is owed that the target holds");
      }
    }
    expect(target_.map().missing().value == missing, "a claim of the old epoch outlives it");
  }

  /// Behind the fence of one lane: whatever is missing was told.
  void check_told() {
    for (std::uint64_t i = 0; i < states_.size(); ++i) {
      const bool misses = target_.map().state(PageIndex{i}) == PageState::kMissing;
      expect(!misses || source_.told().contains(i) || world_.being_installed.contains(i),
             "a missing page was not told behind the fence of a lane");
    }
  }

  /// Of every lane the attempts only grow, in its epoch.
  void check_attempts() {
    if (target_.epoch_of_lanes() != epoch_of_lanes_) {
      epoch_of_lanes_ = target_.epoch_of_lanes();
      attempts_.clear();
    }
    for (const auto& [lane, fate] : target_.fates()) {
      expect(fate.attempt >= attempts_[lane], "the target went back to an older attempt at a lane");
      attempts_[lane] = fate.attempt;
    }
  }

  void expect(bool holds, const char* otherwise) {
    if (!holds) {
      world_.fail(otherwise);
    }
  }

  /// After the order the source's guest comes back only by the target's never.
  void check_commit_rule() {
    const bool before = runtime::before_order(source_.state());
    ordered_ = ordered_ || !before;
    const bool by_hand = world_.taken_back && world_.dead(Process::kTarget);
    expect(!ordered_ || !before || target_.never() || by_hand,
           "the source took its guest back after the order");
  }

  void check_bounds() {
    expect(target_.requests().size() <= world_.setup.request_bound, "too many requests");
    const std::uint64_t missing = target_.map().missing().value;
    expect(!was_switched_ || missing <= missing_, "the missing set grew after the switch");
    missing_ = missing;
    was_switched_ = world_.switched;
  }

  /// Installed is for ever, a zero page never becomes missing, and what is not here can still come.
  void check_pages() {
    for (std::uint64_t i = 0; i < states_.size(); ++i) {
      const PageState now = target_.map().state(PageIndex{i});
      expect(states_[i] != PageState::kInstalled || now == PageState::kInstalled,
             "an installed page was given up after the switch");
      expect(states_[i] != PageState::kZero || now != PageState::kMissing,
             "a zero page became missing after the switch");
      states_[i] = now;
    }
    expect(!world_.source_released || target_.map().missing().value == 0,
           "the source gave up memory that the target misses");
  }

  // ---- the end ----------------------------------------------------------------------------------

  [[nodiscard]] bool completed() const {
    return source_.state() == SourceState::kCompleted && target_.state() == TargetState::kCompleted;
  }

  void check_end() {
    check_pages();
    if (!world_.link_harmed) {
      expect(completed(), "nothing went wrong and yet it did not complete");
      expect(world_.source_epoch == 1, "nothing went wrong and yet the link was given up");
    }
    const bool source_lives = !world_.dead(Process::kSource);
    const bool target_lives = !world_.dead(Process::kTarget);
    if (source_lives && target_lives) {
      expect(settled(), "the network holds, and yet nothing is settled");
    }
    if (target_lives) {
      check_waiters();
      check_target_fate();
    }
    if (target_.state() == TargetState::kCompleted && target_lives) {
      check_memory();
    }
    if (target_.state() == TargetState::kPoisoned && target_lives) {
      check_poison();
    }
    if (source_lives) {
      check_source_fate();
    }
  }

  /// Whatever went wrong, both ends know how it ended, and it is the same end.
  [[nodiscard]] bool settled() const {
    const SourceState source = source_.state();
    const TargetState target = target_.state();
    const bool here = source == SourceState::kFailed || source == SourceState::kCancelled;
    const bool given_up = target == TargetState::kPoisoned || target == TargetState::kLost ||
                          (target == TargetState::kCompleted && world_.source_given_up);
    return completed() || (given_up && source_.paused()) ||
           (here && source_.guest_runs() && !world_.runs_there &&
            (target == TargetState::kListening || target == TargetState::kFailed));
  }

  /// Who waits, waits for a page that is not there.
  void check_waiters() {
    TargetGuest& guest = target_.guest();
    for (std::size_t thread = 0; thread < guest.threads(); ++thread) {
      if (guest.blocked(thread)) {
        const PageState state = target_.map().state(guest.waits_for(thread));
        const bool unread = guest.unread(thread) && !target_.tied();  // See TargetEnd::faults().
        expect(state == PageState::kMissing || unread, "a fault was lost");
        expect(!completed(), "a guest waits after completion");
        expect(target_.state() != TargetState::kPoisoned, "a guest waits for what is lost");
      }
    }
    if (completed()) {
      expect(target_.requests().size() == 0, "requests are left after completion");
      expect(target_.map().claimed().value == 0, "a claim is left after completion");
    }
  }

  /// The verdict: every page is what the guest wrote last.
  void check_memory() {
    for (std::uint64_t i = 0; i < world_.latest.size(); ++i) {
      (void)target_.guest().access(0, PageIndex{i}, false);
    }
  }

  /// What was missing is poisoned, all of it and nothing else; the rest is what the guest wrote.
  void check_poison() {
    expect(target_.map().missing().value == 0, "a page is missing and not poisoned");
    expect(target_.map().poisoned().value > 0, "nothing was missing, and yet it is not complete");
    for (std::uint64_t i = 0; i < world_.latest.size(); ++i) {
      const PageIndex page{i};
      const bool lost = target_.map().state(page) == PageState::kPoisoned;
      expect(lost == target_.guest().poisoned(page), "map and memory differ in what is poisoned");
      expect(lost || target_.guest().in_file(page) == Content{world_.latest[i], world_.latest[i]},
             "a page that was here is not as the guest wrote it");
    }
  }

  /// Neither end is left believing what is not so.
  void check_source_fate() {
    const SourceState source = source_.state();
    const bool resumed = runtime::before_order(source);
    expect(!source_.heard_running() || source_.ownership() == Ownership::kGone,
           "the source knows that the guest runs there, and its gate does not");
    expect(!resumed || source_.guest_runs(), "the source's guest is parked for nothing");
    expect(resumed || source == SourceState::kCompleted || source_.paused(),
           "the source does not know that the link is down");
  }

  void check_target_fate() {
    const TargetState target = target_.state();
    expect(target == TargetState::kListening || target == TargetState::kLoading ||
               target == TargetState::kLoadedAlone || target == TargetState::kRunningAlone ||
               target == TargetState::kCompleted || target == TargetState::kFailed ||
               target == TargetState::kPoisoned || target == TargetState::kLost,
           "the target does not know that the link is down");
    expect(target != TargetState::kLoading || target_.guest().blocked(world_.setup.vcpus),
           "the target loads for ever without waiting for a page");
  }

  void note_coverage() {
    const auto& counters = target_.receiver().counters();
    const auto note = [&](std::uint64_t times, const char* event) {
      if (times > 0) {
        world_.saw(event);
      }
    };
    note(counters.duplicates, "a duplicate");
    note(counters.local_faults, "a fault answered without the network");
    note(completed() ? 1 : 0, "a completed migration");
    note(target_.state() == TargetState::kLoadedAlone ? 1 : 0, "a loaded half without a source");
    note(target_.state() == TargetState::kRunningAlone ? 1 : 0, "a guest cut off from its memory");
    note(completed() && world_.source_epoch > 5 ? 1 : 0, "completed in the sixth epoch or later");
    note(target_.state() == TargetState::kPoisoned ? 1 : 0, "a guest without what was lost");
    note(target_.state() == TargetState::kLost ? 1 : 0, "a guest that was given up");
    note(source_.given_up() ? 1 : 0, "a source that stays parked");
  }

  World world_;
  SourceGuest guest_;
  Network network_;
  Identity identity_;
  SourceEnd source_;
  TargetEnd target_;
  Troublemaker trouble_;
  std::uint64_t writes_left_ = 0;
  std::uint64_t checks_ = 0;
  std::uint64_t missing_ = 0;
  std::uint64_t epoch_ = 1;
  std::uint64_t epoch_of_lanes_ = 1;
  std::map<std::uint64_t, std::uint32_t> attempts_;  // By lane_code().
  bool was_switched_ = false;
  bool ordered_ = false;
  std::vector<PageState> states_;
};

}  // namespace

Result simulate(const Setup& setup, bool trace) {
  return Run(setup, trace).go();
}

}  // namespace towline::simulation
