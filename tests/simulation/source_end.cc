#include "tests/simulation/source_end.h"

#include <algorithm>
#include <utility>

namespace towline::simulation {

using base::ErrorKind;
using base::PageIndex;
using base::PageRange;
using runtime::LaneName;
using runtime::OwnershipEvent;
using runtime::SourceAction;
using runtime::SourceEffect;
using runtime::SourceEvent;
using runtime::SourceInput;
using runtime::SourceRule;
using runtime::SourceState;
using runtime::wire::LaneRole;

namespace {

// A target that died is asked so often; then somebody has to look.
constexpr std::uint64_t kAttemptsAtTheDead = 3;
constexpr std::uint64_t kPlantedPatience = 2;

runtime::MigrationOptions options_of(const Setup& setup) {
  runtime::MigrationOptions options;
  options.switch_policy =
      setup.manual_switch ? runtime::SwitchPolicy::kManual : runtime::SwitchPolicy::kAfterPass;
  options.passes = setup.passes;
  options.pause_before_switchover = setup.seed % 6 == 0;
  options.bulk_lanes = static_cast<std::uint32_t>(setup.bulk_lanes);
  options.switch_page_budget = setup.sync_budget;
  options.switch_wait = std::chrono::milliseconds(1);  // A thousand steps.
  return options;
}

std::vector<SourceRule> rules_of(Plant plant) {
  std::vector<SourceRule> rules(runtime::kSourceRules.begin(), runtime::kSourceRules.end());
  for (SourceRule& rule : rules) {
    if (plant == Plant::kResumeOnLoss && rule.from == SourceState::kOrdered &&
        rule.on == SourceEvent::kLinkLost) {
      rule.to = SourceState::kFailed;
      rule.act = SourceAction::kResumeGuest;
    }
  }
  return rules;
}

}  // namespace

SourceEnd::SourceEnd(World& world, SourceGuest& guest, Network& network, const Identity& identity)
    : world_(world),
      guest_(guest),
      network_(network),
      identity_(identity),
      owed_(world.layout.pages()),
      order_(world.setup.window_order ? runtime::make_window_order(world.layout.pages())
                                      : runtime::make_address_order(world.layout.pages())),
      rules_(rules_of(world.setup.plant)),
      brain_(runtime::Uri{}, options_of(world.setup), world.layout.pages(), rules_) {
  SourceLanes& lanes = epochs_.emplace_back(1);
  lanes.control = &network.tie(runtime::wire::LaneRole::kControl);
  lanes.urgent = &network.tie(runtime::wire::LaneRole::kUrgent);
  for (std::size_t i = 0; i < world.setup.bulk_lanes; ++i) {
    lanes.bulk.push_back(&network.tie(runtime::wire::LaneRole::kBulk));
  }
}

void SourceEnd::start() {
  world_.add_actor(Process::kSource, "source session", session());
}

void SourceEnd::start_bulk(SourceLanes& lanes) {
  start_thread(lanes, "server", server(lanes, *lanes.urgent, 0));
  for (std::size_t i = 0; i < lanes.bulk.size(); ++i) {
    start_thread(lanes, "bulk " + std::to_string(i), bulk_worker(lanes, i));
  }
}

void SourceEnd::start_thread(SourceLanes& lanes, const std::string& name, Task work) {
  ++lanes.threads;
  world_.add_actor(Process::kSource, "source " + name, counted(lanes, std::move(work)));
}

Task SourceEnd::counted(SourceLanes& lanes, Task work) {
  co_await work;
  --lanes.threads;
}

// ---- the brain ----------------------------------------------------------------------------------

bool SourceEnd::feed(SourceInput input) {
  input.at = world_.clock.now();
  const bool taken = brain_.on(input).ok();
  for (const SourceEffect& effect : brain_.take_effects()) {
    perform(effect);
  }
  return taken;
}

void SourceEnd::perform(const SourceEffect& effect) {
  using Kind = SourceEffect::Kind;
  switch (effect.kind) {
    case Kind::kStepped:
      return on_stepped(effect.rule);
    case Kind::kReadControl:
      return start_thread(lanes(), "control", control_reader(lanes()));
    case Kind::kOweAll:
      return owed_.add({PageIndex{0}, world_.layout.pages()});
    case Kind::kOweNothing:
      return world_.planted(Plant::kOwedKept) ? void() : owed_.clear();
    case Kind::kOweNamed:
      for (const PageRange& run : named_) {
        if (!world_.planted(Plant::kOwedKept)) {
          owed_.add(run);
        }
        for (std::uint64_t page = run.first.value; page < run.end().value; ++page) {
          told_.insert(page);
        }
      }
      return;
    case Kind::kOwedKnown:
      if (state() == SourceState::kServing) {
        world_.told_of_lane();
      }
      return told_.clear();
    case Kind::kCutPass:
      cut_ = true;
      return;
    case Kind::kStopPass:
      return stop_pass();
    case Kind::kHoldBack:
    case Kind::kGoOn:
      no_room_ = effect.kind == Kind::kHoldBack;
      return;
    case Kind::kEndWaiting:
      waiting_ended_ = true;
      return;
    case Kind::kEndFlight:
    case Kind::kFinishSending:
      patient_ = world_.random.once_in(2);
      return lanes().control->to_target.close();
    case Kind::kCloseLanes:
      return close_lanes(lanes());
    case Kind::kOrder:
      return gate(OwnershipEvent::kOrder);
    case Kind::kTargetRuns:
      return world_.planted(Plant::kGateUntold) ? void() : gate(OwnershipEvent::kTargetRuns);
    case Kind::kGiveBack:
      return give_back(effect.rule);
    case Kind::kRelease:
      world_.source_released = true;
      return;
    case Kind::kLaneLost:
      if (brain_.link_lost()) {
        world_.saw("two lanes that broke together");
      }
      return;
    case Kind::kLaneNotReplaced:
      world_.saw("an attempt at a lane that failed");
      return;
    case Kind::kLaneReplaced:
      world_.saw("a lane that was replaced");
      return;
    case Kind::kRecovered:
      world_.saw("a recovery");
      attempts_ = 0;
      return;
    case Kind::kEnds:
      if (effect.text.find("could not be replaced") != std::string::npos) {
        world_.saw("a lane that could not be replaced");
      }
      return;
    case Kind::kShow:
    case Kind::kShowLink:
    case Kind::kLinkLost:
    case Kind::kNoRoom:
    case Kind::kRoomAgain:
    case Kind::kAttemptFailed:
    case Kind::kTakenBack:
      return;
  }
}

void SourceEnd::on_stepped(const SourceRule& rule) {
  world_.coverage.source.emplace(rule.from, rule.on);
  if (rule.on == SourceEvent::kSwitchNow && world_.wait_for_room != 0) {
    world_.fail("the switch begins while a lane of the target waits for room");
  }
  if (rule.on == SourceEvent::kSwitchFailed) {
    world_.link_harmed = true;
  }
}

void SourceEnd::give_back(const SourceRule& rule) {
  if (gate_.ownership() != runtime::Ownership::kHere) {
    const OwnershipEvent back = rule.on == SourceEvent::kTakeBack ? OwnershipEvent::kTakeBack
                                                                  : OwnershipEvent::kTargetRefused;
    gate(runtime::before_order(rule.from) ? OwnershipEvent::kRelease : back);
  }
  parked_ = false;
}

/// Its lanes are closed under the senders.
void SourceEnd::stop_pass() {
  pass_stopped_ = true;
  for (Connection* lane : lanes().bulk) {
    lane->to_target.close();
  }
}

// ---- its own thread -----------------------------------------------------------------------------

Task SourceEnd::session() {
  feed({.kind = SourceInput::Kind::kBegin});
  while (true) {
    co_await next_task();
    if (brain_.over() || given_up_) {
      co_return;
    }
    const runtime::SourceTask task = *brain_.task();
    SourceInput done{.kind = SourceInput::Kind::kDone, .task = task.kind};
    co_await carry_out(task, done);
    co_await simulation::step();  // What it found is told a little later.
    feed(std::move(done));
  }
}

/// Until there is one, or none will follow, or somebody has to look.
Task SourceEnd::next_task() {
  while (!brain_.task().has_value() && !brain_.over() && !given_up_) {
    if (paused()) {
      for (std::uint64_t turns = world_.random.below(4); turns > 0; --turns) {
        co_await simulation::step();
      }
      if (paused()) {
        try_again();
      }
      continue;
    }
    if (brain_.shown() == runtime::MigrationStatus::kPreSwitchover) {
      co_await wait_before_the_switch();
      continue;
    }
    if (patient_ && brain_.link_lost()) {
      co_await hear_the_target_out();
      continue;
    }
    co_await until([this] {
      return brain_.task().has_value() || brain_.over() ||
             (brain_.deadline().has_value() && time_is_over());
    });
    if (!brain_.task().has_value() && brain_.deadline().has_value()) {
      pass_time();
    }
  }
}

/// Its manager does what it wants to do with a guest that stands still, and says go on.
Task SourceEnd::wait_before_the_switch() {
  world_.saw("a switch that waited for its word");
  for (std::uint64_t turns = world_.random.below(40); turns > 0 && !brain_.task().has_value();
       --turns) {
    co_await simulation::step();
  }
  if (!brain_.task().has_value()) {
    feed({.kind = SourceInput::Kind::kContinue});
  }
}

/// A target that says nothing more is waited for, but not for ever.
Task SourceEnd::hear_the_target_out() {
  for (std::uint64_t turns = world_.random.below(400); turns > 0 && !brain_.task().has_value();
       --turns) {
    co_await simulation::step();
  }
  if (!brain_.task().has_value() && brain_.deadline().has_value()) {
    pass_time();
  }
}

/// What is waited for is given up some time: at once, where nobody is patient, or when the other
/// end or a lane is silent.
bool SourceEnd::time_is_over() const {
  const bool impatient = state() == SourceState::kSyncing || brain_.link_lost();
  const SourceLanes& now = epochs_.back();
  return impatient || world_.frozen(Process::kTarget) || world_.dead(Process::kTarget) ||
         (now.control != nullptr && now.control->held_up()) ||
         (in_place_ != nullptr && in_place_->held_up());
}

void SourceEnd::pass_time() {
  world_.clock.pass_to(*brain_.deadline());
  feed({.kind = SourceInput::Kind::kTime});
}

/// The time for another attempt has come.
void SourceEnd::try_again() {
  // Its user vouches that the target is gone: when it is, and wrongly when the source knows better.
  if (take_back_ || told_running_) {
    take_back();
  }
  given_up_ = (world_.dead(Process::kTarget) || world_.source_given_up) &&
              attempts_ >= kAttemptsAtTheDead && network_.elsewhere_next == 0;
  if (given_up_ || !paused()) {
    return;
  }
  if (world_.planted(Plant::kResumeOnTimeout) && attempts_ >= kPlantedPatience &&
      feed({.kind = SourceInput::Kind::kTakeBack})) {
    return;
  }
  ++attempts_;
  if (world_.random.once_in(2)) {
    feed({.kind = SourceInput::Kind::kResume});
  } else {
    pass_time();
  }
}

// ---- its user, its watch, the world -------------------------------------------------------------

bool SourceEnd::paused() const {
  return runtime::is_paused(state());
}

void SourceEnd::cancel() {
  feed({.kind = SourceInput::Kind::kCancel});
}

void SourceEnd::ask_for_switch() {
  feed({.kind = SourceInput::Kind::kSwitchWord});
}

void SourceEnd::take_back() {
  take_back_ = true;
  if (feed({.kind = SourceInput::Kind::kTakeBack})) {
    world_.taken_back = true;
  }
}

void SourceEnd::lose() {
  feed({.kind = SourceInput::Kind::kLinkLost,
        .error = base::Error{ErrorKind::kDisconnected, 0, "watch", "given up"},
        .epoch = lanes().epoch,
        .flag = world_.random.once_in(2)});
}

/// From any thread of `lanes`.
void SourceEnd::lose_lane(const SourceLanes& lanes, LaneName lane, std::uint32_t attempt) {
  feed({.kind = SourceInput::Kind::kLaneBroken,
        .error = base::Error{ErrorKind::kDisconnected, 0, "lane", "broken"},
        .lane = lane,
        .epoch = lanes.epoch,
        .attempt = attempt});
}

void SourceEnd::give_up() {
  SourceLanes& now = lanes();
  const bool alive = now.control != nullptr && !now.control->held_up() && greeting_ == nullptr &&
                     !world_.frozen(Process::kTarget) && !world_.dead(Process::kTarget);
  if (greeting_ != nullptr && now.control == nullptr) {
    waiting_ended_ = true;  // The time-out of connecting or greeting is over.
    return;
  }
  if (state() != SourceState::kServing || !alive) {
    return lose();
  }
  for (std::size_t i = 0; i <= now.bulk.size(); ++i) {
    const LaneName lane = i == 0 ? LaneName{LaneRole::kUrgent, 0}
                                 : LaneName{LaneRole::kBulk, static_cast<std::uint8_t>(i - 1)};
    if (!now.fate(lane).ended && now.place_of(lane)->held_up()) {
      return lose_lane(now, lane, now.fate(lane).attempt);
    }
  }
  lose();
}

bool SourceEnd::uneasy() {
  if (lanes().closed || brain_.link_lost() || state() == SourceState::kConnecting) {
    return false;
  }
  std::vector<Connection*> used;
  if (lanes().control != nullptr) {
    used.push_back(lanes().control);
  }
  if (lanes().urgent != nullptr && !lanes().fate({LaneRole::kUrgent, 0}).ended) {
    used.push_back(lanes().urgent);
  }
  for (std::size_t i = 0; i < lanes().bulk.size(); ++i) {
    if (!lanes().fate({LaneRole::kBulk, static_cast<std::uint8_t>(i)}).ended) {
      used.push_back(lanes().bulk[i]);
    }
  }
  if (greeting_ != nullptr && !waiting_ended_) {
    used.push_back(greeting_);
  }
  const bool silent = world_.frozen(Process::kTarget) || world_.dead(Process::kTarget);
  return std::any_of(used.begin(), used.end(), [&](const Connection* one) {
    return silent || one->held_up() || waits_in_vain(*one);
  });
}

/// All is sent, and both ends wait for each other: a frame of a data lane was lost.
bool SourceEnd::waits_in_vain(const Connection& lane) const {
  const bool serves = state() == SourceState::kServing || state() == SourceState::kOrdered;
  return lane.role != LaneRole::kControl && serves && !world_.planted(Plant::kIdleUnnoticed) &&
         (lane.to_target.swallowed() || lane.to_source.swallowed());
}

void SourceEnd::die(bool host) {
  world_.kill(Process::kSource);
  for (SourceLanes& one : epochs_) {
    for (Connection* lane : one.all()) {
      lane->to_target.cut(world_.random);
      lane->to_target.freeze(host && !lane->to_target.over());
      lane->to_source.shut(world_.random);
    }
  }
}

// ---- shared -------------------------------------------------------------------------------------

void SourceEnd::gate(OwnershipEvent event) {
  const runtime::Ownership from = gate_.ownership();
  if (const auto stepped = gate_.step(event); !stepped.ok()) {
    world_.fail("the source's gate: " + stepped.error().detail);
  }
  world_.coverage.gates.emplace(from, event);
}

void SourceEnd::close_lanes(SourceLanes& lanes) {
  if (std::exchange(lanes.closed, true)) {
    return;
  }
  for (Connection* lane : lanes.all()) {
    // What the kernel still holds goes out, or a reset eats it.
    world_.random.once_in(3) ? lane->to_target.cut(world_.random) : lane->to_target.close();
    lane->to_source.shut(world_.random);
  }
}

}  // namespace towline::simulation
