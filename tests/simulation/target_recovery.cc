// How a source that comes back is met: runtime/target/recovery.cc and the listener as tasks.
#include <algorithm>
#include <string>
#include <vector>

#include "tests/simulation/target_end.h"

namespace towline::simulation {

using base::PageCount;
using base::PageIndex;
using runtime::PageState;
using runtime::Prover;
using runtime::TargetEvent;
using runtime::TargetState;
using runtime::wire::FrameType;
using runtime::wire::Hello;
using runtime::wire::LaneRole;

// ---- the listener -------------------------------------------------------------------------------

/// What is said before the proof changes nothing; and what was true at the greeting may not be true
/// any more when the proof comes.
Task TargetEnd::greet(Connection& connection) {
  Pipe& pipe = connection.to_target;
  co_await until([&pipe] { return pipe.readable(); });
  auto greeting = pipe.take();
  base::Expected<Hello> hello = base::fail(base::ErrorKind::kCorrupt, "hello", "none");
  if (greeting.ok() && greeting.value().has_value() &&
      greeting.value()->header.type == FrameType::kHello) {
    hello = runtime::wire::decode_hello(greeting.value()->payload);
  }
  bool proven = hello.ok() && admits(hello.value());
  if (proven) {
    runtime::wire::HelloReply reply;
    reply.wants_proof = true;
    reply.incarnation = identity_.target_incarnation;
    fill_randomly(world_.random, reply.nonce);
    reply.proof =
        runtime::lane_proof(identity_.secret, Prover::kTarget, hello.value(), reply.nonce);
    connection.to_source.send({.type = FrameType::kHelloReply},
                              runtime::wire::encode_hello_reply(reply));
    co_await until([&pipe] { return pipe.readable(); });
    const auto proof = pipe.take();
    const auto expected =
        runtime::lane_proof(identity_.secret, Prover::kSource, hello.value(), reply.nonce);
    proven = proof.ok() && proof.value().has_value() &&
             proof.value()->header.type == FrameType::kProof &&
             (std::equal(expected.begin(), expected.end(), proof.value()->payload.begin(),
                         proof.value()->payload.end()) ||
              world_.planted(Plant::kStrangerBelieved));
  }
  if (!proven) {
    world_.saw("a stranger was sent away");
    connection.to_source.send({.type = FrameType::kRefuse});
    connection.to_source.close();
    co_return pipe.shut(world_.random);
  }
  connection.to_source.send({.type = FrameType::kLaneReady});
  co_await simulation::step();
  deliver(connection, hello.value());
}

bool TargetEnd::admits(const Hello& hello) const {
  const bool known = hello.id == identity_.id && state_ != TargetState::kListening &&
                     (state_ != TargetState::kFailed || never_) &&
                     (!runtime::shuts_out(state_) || world_.planted(Plant::kGivenUpLetIn));
  if (hello.role == LaneRole::kControl) {
    return known && hello.epoch > newest_;
  }
  return known && hello.epoch == newest_ && (hello.attempt == 0 || replaces_lanes());
}

void TargetEnd::deliver(Connection& connection, const Hello& hello) {
  if (hello.role != LaneRole::kControl) {
    return attach(connection, hello);
  }
  if (runtime::shuts_out(state_) && !world_.planted(Plant::kGivenUpLetIn)) {
    world_.saw("a source that was given up came back");
    connection.to_source.close();
    return connection.to_target.shut(world_.random);
  }
  if (hello.epoch <= newest_) {
    world_.saw("a control lane that was overtaken");
    if (!world_.planted(Plant::kOldEpochAccepted)) {
      connection.to_source.close();
      return connection.to_target.shut(world_.random);
    }
  }
  newest_ = hello.epoch;
  Receivers& before = epochs_.back();
  if (!world_.planted(Plant::kOldFrameInstalled)) {
    shut(before);
  } else {
    before.control->to_source.close();
    before.control->to_target.shut(world_.random);
  }
  Receivers& fresh = epochs_.emplace_back(hello.epoch, before.bulk.size());
  fresh.control = &connection;
  world_.add_actor(Process::kTarget, "target control again", control_again(fresh, before));
}

void TargetEnd::attach(Connection& connection, const Hello& hello) {
  if (hello.attempt != 0) {
    return replace(connection, hello);
  }
  Connection*& place = hello.role == LaneRole::kUrgent
                           ? now_->urgent
                           : now_->bulk[hello.lane % now_->bulk.size()].lane;
  const bool due = hello.epoch == now_->epoch && hello.epoch == newest_ && !now_->lost;
  if (hello.epoch != now_->epoch) {
    world_.saw("a lane that was overtaken");
  }
  if ((!due || place != nullptr) && !world_.planted(Plant::kOldLaneAccepted)) {
    connection.to_source.close();
    return connection.to_target.shut(world_.random);
  }
  place = &connection;
  ++now_->fate({hello.role, hello.lane}).readers;
  if (hello.role == LaneRole::kUrgent) {
    start_thread(*now_, "urgent", urgent(*now_, connection, 0));
  } else {
    start_thread(*now_, "bulk " + std::to_string(hello.lane),
                 bulk(*now_, hello.lane, connection, 0));
  }
}

// ---- a new epoch --------------------------------------------------------------------------------

/// Ends every lane at once, in both directions.
void TargetEnd::shut(Receivers& lanes) {
  lanes.lost = true;
  for (Connection* lane : lanes.all()) {
    lane->to_source.close();
    lane->to_target.shut(world_.random);
  }
}

/// Begins when every thread of the epoch before has ended: each claim of theirs is released or
/// installed.
Task TargetEnd::control_again(Receivers& lanes, Receivers& before) {
  const bool joins =
      !world_.planted(Plant::kOldFrameInstalled) && !world_.planted(Plant::kClaimsResetEarly);
  co_await until(
      [&before, joins] { return before.control_ended && (before.threads == 0 || !joins); });
  if (runtime::shuts_out(state_) && !world_.planted(Plant::kGivenUpLetIn)) {
    shut(lanes);
    lanes.control_ended = true;
    co_return;
  }
  if (newest_ != lanes.epoch) {
    world_.saw("an epoch that was overtaken before it began");
    lanes.control_ended = true;
    co_return;
  }
  if (world_.planted(Plant::kClaimsResetEarly)) {
    reset_claims();
  }
  now_ = &lanes;
  asked_.clear();
  attached_.clear();
  answer_again(lanes);
  co_await read_control(lanes);
}

void TargetEnd::reset_claims() {
  for (PageIndex page{0}; page.value < map_.pages().value; ++page.value) {
    if (is_claimed(map_.state(page))) {
      map_.abandon({page, PageCount{1}});
    }
  }
}

void TargetEnd::answer_again(Receivers& lanes) {
  if (state_ == TargetState::kFailed) {
    return tell(FrameType::kNever);
  }
  if (state_ == TargetState::kCompleted) {
    tell(FrameType::kRunning, std::vector<std::byte>(8));
    return tell(FrameType::kComplete);
  }
  link_ = LinkState::kComparing;
  may_repeat_order_ = true;
  step(TargetEvent::kReconnected);
  tell_missing(lanes, 0);
}

void TargetEnd::tell_missing(Receivers& lanes, std::uint32_t attempt) {
  std::uint64_t told = 0;
  PageIndex at{0};
  while (const auto frame = runtime::wire::encode_missing(
             [this](PageIndex from, PageCount limit) { return map_.next_missing(from, limit); }, at,
             map_.pages())) {
    lanes.control->to_source.send(frame->header, frame->payload);
    told += frame->header.count;
    at = frame->next;
    world_.preempt();
  }
  if (entered_ && attempt == 0 && !world_.planted(Plant::kRunningUntold)) {
    tell(FrameType::kRunning, std::vector<std::byte>(8));
  }
  world_.preempt();
  lanes.control->to_source.send({.type = FrameType::kMissingEnd, .count = told, .round = attempt});
}

bool TargetEnd::on_resume(Receivers& lanes) {
  if (runtime::shuts_out(state_)) {
    return false;
  }
  if (link_ != LinkState::kComparing) {
    world_.fail("the source goes on without having compared");
  }
  if (lanes.lost) {
    return false;
  }
  link_ = LinkState::kTied;
  if (state_ != TargetState::kCompleted) {
    step(TargetEvent::kResynced);
  }
  if (!world_.planted(Plant::kFaultNotAskedAgain)) {
    requests_.want_all();
    ask_due();
  }
  if (lanes.all_pushed()) {
    sweep_more(lanes);
  }
  progress();
  return true;
}

// ---- the source stays away: runtime/target/loss.cc ----------------------------------------------

void TargetEnd::give_up_source(bool poison) {
  if (state_ != TargetState::kRunningAlone || !step(TargetEvent::kSourceGivenUp)) {
    return;
  }
  world_.link_harmed = true;
  world_.source_given_up = true;
  for (Receivers& one : epochs_) {
    shut(one);
  }
  world_.add_actor(Process::kTarget, "target abandons", abandon(poison));
}

/// Begins when every thread of every epoch has ended.
Task TargetEnd::abandon(bool poison) {
  co_await until([this] {
    return std::all_of(epochs_.begin(), epochs_.end(),
                       [](const Receivers& one) { return one.control_ended && one.threads == 0; });
  });
  progress();
  if (state_ != TargetState::kAbandoning || map_.missing().value == 0) {
    co_return;
  }
  if (poison) {
    const auto poisoned = receiver_.poison_missing();
    if (!poisoned.ok()) {
      world_.fail("missing pages could not be poisoned");
    }
  }
  step(poison ? TargetEvent::kPagesPoisoned : TargetEvent::kGuestGivenUp);
}

// ---- the world ----------------------------------------------------------------------------------

bool TargetEnd::has_old_lane() const {
  const auto lanes = now_->all();
  return std::any_of(lanes.begin(), lanes.end(),
                     [this](const Connection* one) { return one->epoch != now_->epoch; });
}

bool TargetEnd::uneasy() const {
  if (now_->control_ended || state_ == TargetState::kListening) {
    return false;
  }
  if (world_.frozen(Process::kSource) || world_.dead(Process::kSource)) {
    return true;
  }
  for (const Connection* lane : now_->all()) {
    if (lane->held_up()) {
      return true;
    }
  }
  return false;
}

void TargetEnd::die(bool host) {
  world_.kill(Process::kTarget);
  world_.runs_there = false;
  for (Receivers& one : epochs_) {
    for (Connection* lane : one.all()) {
      lane->to_source.cut(world_.random);
      lane->to_source.freeze(host && !lane->to_source.over());
      lane->to_target.shut(world_.random);
    }
  }
}

}  // namespace towline::simulation
