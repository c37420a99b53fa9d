// What the source does from the order on: runtime/source/recovery.cc as tasks.
#include <algorithm>

#include "tests/simulation/source_end.h"

namespace towline::simulation {

using runtime::OwnershipEvent;
using runtime::Prover;
using runtime::SourceEvent;
using runtime::SourceState;
using runtime::wire::FrameType;
using runtime::wire::Hello;
using runtime::wire::LaneRole;

namespace {

// A target that died is asked so often; then somebody has to look.
constexpr std::uint64_t kAttemptsAtTheDead = 3;
constexpr std::uint64_t kPlantedPatience = 2;

}  // namespace

bool SourceEnd::paused() const {
  return state_ == SourceState::kOrderedPaused || state_ == SourceState::kServingPaused;
}

bool SourceEnd::recovering() const {
  return state_ == SourceState::kOrderedRecovering || state_ == SourceState::kServingRecovering;
}

Task SourceEnd::see_it_through() {
  while (true) {
    if (paused()) {
      co_await try_again();
    } else {
      co_await until_told([this] {
        return lanes().push ? inbox_.complete || !inbox_.broken.empty()
                            : state_ == SourceState::kServing;
      });
      if (!inbox_.broken.empty() && !inbox_.complete && !interrupted()) {
        bool replaced = false;
        co_await replace_lane(replaced);
        if (replaced) {
          continue;
        }
      }
      if (!come_to_an_end()) {
        co_await hear_the_target_out();
      }
    }
    if (given_up_ ||
        (!paused() && state_ != SourceState::kOrdered && state_ != SourceState::kServing)) {
      co_return;
    }
  }
}

/// Acts on what was heard. False: the link is lost, and nothing more was said.
bool SourceEnd::come_to_an_end() {
  if (state_ == SourceState::kOrdered && inbox_.never && !inbox_.running) {
    give_back();
    return true;
  }
  if (state_ == SourceState::kServing && !lanes().push) {
    lanes().push = true;
    return true;
  }
  if (state_ == SourceState::kServing && inbox_.complete) {
    finish();
    return true;
  }
  return false;
}

/// Where the word is read, in whatever state that is: an ordered one.
void SourceEnd::target_runs() {
  gate(OwnershipEvent::kTargetRuns);
  step(SourceEvent::kTargetRunning);
}

void SourceEnd::give_back() {
  step(SourceEvent::kTargetNever);
  close_lanes(lanes());
}

/// A lane broke, but the control lane may still hold the target's last words.
Task SourceEnd::hear_the_target_out() {
  const bool patient = world_.random.once_in(2);
  Connection& control = *lanes().control;
  if (patient) {
    control.to_target.close();
    co_await until([this, &control] {
      return inbox_.control_ended || control.held_up() || world_.frozen(Process::kTarget) ||
             world_.dead(Process::kTarget);
    });
  }
  if (come_to_an_end() && state_ != SourceState::kServing) {
    co_return;
  }
  if (state_ == SourceState::kServing && inbox_.complete) {
    co_return finish();
  }
  if (world_.planted(Plant::kResumeOnLoss) && state_ == SourceState::kOrdered) {
    co_return give_back();
  }
  step(SourceEvent::kLinkLost);
  close_lanes(lanes());
}

// ---- a new epoch --------------------------------------------------------------------------------

Task SourceEnd::try_again() {
  close_lanes(lanes());
  if (!world_.planted(Plant::kOldPusherRuns)) {
    co_await until([this] { return lanes().threads == 0; });
  }
  for (std::uint64_t pause = world_.random.below(4); pause > 0; --pause) {
    co_await simulation::step();
  }
  // Its user vouches that the target is gone: when it is, and wrongly when the source knows better.
  if ((take_back_ || told_running_) && state_ == SourceState::kOrderedPaused) {
    world_.taken_back = true;
    step(SourceEvent::kTakeBack);
    co_return;
  }
  given_up_ = (world_.dead(Process::kTarget) || world_.source_given_up) &&
              attempts_ >= kAttemptsAtTheDead && network_.elsewhere_next == 0;
  if (given_up_) {
    co_return;
  }
  if (world_.planted(Plant::kResumeOnTimeout) && attempts_ >= kPlantedPatience &&
      state_ == SourceState::kOrderedPaused) {
    step(SourceEvent::kTakeBack);
    co_return;
  }
  ++attempts_;
  inbox_ = {};
  lane_attempts_ = 0;
  SourceLanes& fresh = epochs_.emplace_back(epochs_.back().epoch + 1);
  world_.source_epoch = fresh.epoch;
  // By hand it shows from the beginning; by itself, once somebody answers.
  const bool by_hand = world_.random.once_in(2);
  if (by_hand) {
    step(SourceEvent::kReconnect);
  }
  co_await open_lane(LaneRole::kControl, 0, fresh.control);
  if (fresh.control == nullptr) {
    if (by_hand) {
      step(SourceEvent::kLinkLost);
    }
    co_return;
  }
  if (!by_hand) {
    step(SourceEvent::kReconnect);
  }
  step(SourceEvent::kReconnected);
  if (!world_.planted(Plant::kOwedKept)) {
    owed_.clear();
  }
  start_thread(fresh, "control", control_reader(fresh));
  bool settled = false;
  co_await compare(settled);
  if (!settled) {
    step(SourceEvent::kLinkLost);
    close_lanes(fresh);
  }
}

/// What the target is, and what it misses. Not settled: the link is lost again.
Task SourceEnd::compare(bool& settled) {
  co_await until_told(
      [this] { return inbox_.missing_told || (inbox_.running && inbox_.complete); });
  if (inbox_.never && state_ == SourceState::kOrderedRecovering) {
    give_back();
    settled = true;
    co_return;
  }
  if (inbox_.running && inbox_.complete) {
    note_at_last();
    finish();
    settled = true;
    co_return;
  }
  if (!inbox_.missing_told || (state_ == SourceState::kServingRecovering && !inbox_.running)) {
    co_return;
  }
  bool opened = false;
  co_await open_lanes(opened);
  if (opened && !interrupted()) {
    go_on();
    settled = true;
  }
}

void SourceEnd::go_on() {
  world_.resuming();
  world_.saw("a recovery");
  attempts_ = 0;
  holes_taken_ = false;
  start_bulk(lanes());
  lanes().control->to_target.send({.type = FrameType::kResume});
  note_at_last();
  if (state_ == SourceState::kServingRecovering) {
    step(SourceEvent::kCompared);
    lanes().push = true;
    return;
  }
  step(SourceEvent::kTargetLoaded);
  lanes().control->to_target.send({.type = FrameType::kRun});
}

/// Planted: when everything was told, and the recovery can be cut before.
void SourceEnd::note_at_last() {
  if (world_.planted(Plant::kRunningUnnoted) && inbox_.running &&
      state_ == SourceState::kOrderedRecovering) {
    target_runs();
  }
}

Task SourceEnd::open_lanes(bool& opened) {
  SourceLanes& fresh = lanes();
  co_await open_lane(LaneRole::kUrgent, 0, fresh.urgent);
  opened = fresh.urgent != nullptr;
  for (std::size_t i = 0; i < world_.setup.bulk_lanes && opened; ++i) {
    Connection* lane = nullptr;
    co_await open_lane(LaneRole::kBulk, static_cast<std::uint8_t>(i), lane);
    opened = lane != nullptr;
    if (opened) {
      fresh.bulk.push_back(lane);
    }
  }
}

/// Connects, greets, proves. `opened` stays null when it comes to nothing: refused, silent, or
/// another incarnation.
Task SourceEnd::open_lane(LaneRole role, std::uint8_t number, Connection*& opened,
                          std::uint32_t attempt) {
  Connection& made = network_.connect(role);
  made.epoch = lanes().epoch;
  greeting_ = &made;
  Hello hello;
  hello.role = role;
  hello.lane = number;
  hello.has_secret = true;
  hello.id = identity_.id;
  hello.epoch = lanes().epoch;
  hello.incarnation = identity_.source_incarnation;
  hello.attempt = attempt;
  fill_randomly(world_.random, hello.nonce);
  const auto greeting = runtime::wire::encode_hello(hello);
  network_.heard_hello.assign(greeting.begin(), greeting.end());
  made.to_target.send({.type = FrameType::kHello}, greeting);
  bool ready = false;
  co_await until([this, &made] { return made.to_source.readable() || inbox_.lost; });
  if (const auto reply = answer_of(made, FrameType::kHelloReply); reply.has_value()) {
    ready = prove(made, hello, reply->payload);
  }
  if (ready) {
    co_await answered(made, attempt != 0 && world_.random.once_in(4));
    ready = answer_of(made, FrameType::kLaneReady).has_value();
  }
  greeting_ = nullptr;
  if (ready) {
    opened = &made;
  } else {
    made.to_target.close();
    made.to_source.shut(world_.random);
  }
}

/// Until an answer came; who is impatient does not wait for long.
Task SourceEnd::answered(Connection& made, bool impatient) {
  const auto over = [this, &made] { return made.to_source.readable() || inbox_.lost; };
  if (!impatient) {
    co_await until(over);
  }
  for (std::uint64_t turns = world_.random.below(8); impatient && turns > 0 && !over(); --turns) {
    co_await simulation::step();
  }
}

/// The frame that came, if it is of the wanted type and the link was not given up meanwhile.
std::optional<Frame> SourceEnd::answer_of(Connection& made, FrameType wanted) {
  if (inbox_.lost || !made.to_source.readable()) {
    return std::nullopt;
  }
  auto taken = made.to_source.take();
  const bool due = taken.ok() && taken.value().has_value() && taken.value()->header.type == wanted;
  return due ? std::move(taken).value() : std::nullopt;
}

/// False: it does not know the secret, or it is another incarnation, which proves nothing.
bool SourceEnd::prove(Connection& made, const Hello& hello, std::span<const std::byte> payload) {
  const auto reply = runtime::wire::decode_hello_reply(payload);
  if (!reply.ok() || reply.value().proof != runtime::lane_proof(identity_.secret, Prover::kTarget,
                                                                hello, reply.value().nonce)) {
    return false;
  }
  if (reply.value().incarnation != identity_.target_incarnation) {
    world_.saw("another incarnation answered");
    if (!world_.planted(Plant::kOtherNeverBelieved)) {
      return false;
    }
  }
  const auto proof =
      runtime::lane_proof(identity_.secret, Prover::kSource, hello, reply.value().nonce);
  network_.heard_proof.assign(proof.begin(), proof.end());
  made.to_target.send({.type = FrameType::kProof}, proof);
  return true;
}

}  // namespace towline::simulation
