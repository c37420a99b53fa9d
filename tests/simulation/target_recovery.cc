// How a source that comes back is met: runtime/target/recovery.cc and the listener as tasks.
#include <algorithm>
#include <string>
#include <vector>

#include "tests/simulation/target_end.h"

namespace towline::simulation {

using base::PageCount;
using base::PageIndex;
using runtime::LaneName;
using runtime::PageState;
using runtime::Prover;
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
  if (hello.ok()) {
    hello.value().features = runtime::kFeatures;  // Both ends are of this version.
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
  co_await until([this] { return !delivering_; });
  delivering_ = true;
  deliver(connection, hello.value());
  delivering_ = false;
}

bool TargetEnd::admits(const Hello& hello) const {
  const bool forgot = state() == TargetState::kFailed && !tombstone_;
  const bool given_up = runtime::shuts_out(state()) && hello.id == identity_.id;
  return (!forgot && brain_.admit(hello, base::Done{}).refusal.empty()) ||
         (given_up && world_.planted(Plant::kGivenUpLetIn));
}

void TargetEnd::deliver(Connection& connection, const Hello& hello) {
  arrived_ = &connection;
  if (hello.role != LaneRole::kControl) {
    return deliver_lane(connection, hello);
  }
  if (feed({.kind = Input::Kind::kControlProven, .hello = hello}).ok()) {
    return;
  }
  const bool given_up = runtime::shuts_out(state());
  world_.saw(given_up ? "a source that was given up came back"
                      : "a control lane that was overtaken");
  if (world_.planted(given_up ? Plant::kGivenUpLetIn : Plant::kOldEpochAccepted)) {
    newest_ = hello.epoch;
    shut(epochs_.back());
    return begin_epoch(hello.epoch);
  }
  refuse(connection);
}

void TargetEnd::refuse(Connection& connection) {
  connection.to_source.close();
  connection.to_target.shut(world_.random);
}

void TargetEnd::deliver_lane(Connection& connection, const Hello& hello) {
  Receivers& lanes = *now_;
  const LaneName name{hello.role, hello.lane};
  const bool of_the_epoch = hello.epoch == lanes.epoch;
  if (!of_the_epoch) {
    world_.saw("a lane that was overtaken");
  }
  const bool overtaken = hello.attempt != 0 && of_the_epoch && !lanes.lost &&
                         hello.attempt <= lanes.fate(name).attempt;
  if (overtaken) {
    world_.saw("an attempt that was overtaken");
  }
  if (feed({.kind = Input::Kind::kLaneProven, .hello = hello}).ok()) {
    return;
  }
  if (hello.attempt == 0 && world_.planted(Plant::kOldLaneAccepted)) {
    attach(name, connection);
  } else if (overtaken && world_.planted(Plant::kOldAttemptAccepted)) {
    replace(name, connection, hello.attempt);
  } else {
    refuse(connection);
  }
}

// ---- a new epoch --------------------------------------------------------------------------------

void TargetEnd::shut_control(Receivers& lanes) {
  lanes.control->to_source.close();
  lanes.control->to_target.shut(world_.random);
}

void TargetEnd::shut_data(Receivers& lanes) {
  lanes.lost = true;
  for (Connection* lane : lanes.all()) {
    if (lane != lanes.control) {
      refuse(*lane);
    }
  }
}

/// Ends every lane at once, in both directions.
void TargetEnd::shut(Receivers& lanes) {
  shut_control(lanes);
  shut_data(lanes);
}

void TargetEnd::begin_epoch(std::uint64_t epoch) {
  Receivers& before = epochs_.back();
  Receivers& fresh = epochs_.emplace_back(epoch, before.bulk.size());
  fresh.control = arrived_;
  world_.add_actor(Process::kTarget, "target control again", control_again(fresh, before));
}

/// Begins when every thread of the epoch before has ended: each claim of theirs is released or
/// installed.
Task TargetEnd::control_again(Receivers& lanes, Receivers& before) {
  const bool joins =
      !world_.planted(Plant::kOldFrameInstalled) && !world_.planted(Plant::kClaimsResetEarly);
  co_await until(
      [&before, joins] { return before.control_ended && (before.threads == 0 || !joins); });
  if (world_.planted(Plant::kClaimsResetEarly) && brain_.epoch() == lanes.epoch) {
    reset_claims();
  }
  next_ = &lanes;
  base::Outcome answered = base::Done{};
  const Input fenced{.kind = Input::Kind::kFenced, .epoch = lanes.epoch};
  co_await obey(lanes, fenced, answered);
  if (now_ != &lanes && runtime::shuts_out(state()) && world_.planted(Plant::kGivenUpLetIn)) {
    use_lanes(lanes);
    tell_missing(0);
  }
  if (now_ != &lanes) {
    if (brain_.epoch() != lanes.epoch) {
      world_.saw("an epoch that was overtaken before it began");
    }
    shut(lanes);
    lanes.control_ended = true;
    co_return;
  }
  co_await read_control(lanes);
}

void TargetEnd::use_lanes(Receivers& lanes) {
  if (runtime::shuts_out(state())) {
    world_.fail("a source that was given up is let in");
  }
  now_ = &lanes;
  asked_.clear();
  attached_.clear();
}

void TargetEnd::reset_claims() {
  for (PageIndex page{0}; page.value < map_.pages().value; ++page.value) {
    if (is_claimed(map_.state(page))) {
      map_.abandon({page, PageCount{1}});
    }
  }
}

void TargetEnd::tell_missing(std::uint32_t attempt) {
  Receivers& lanes = *now_;
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
  if (brain_.entered_at().has_value() && attempt == 0 && !world_.planted(Plant::kRunningUntold)) {
    tell(FrameType::kRunning, std::vector<std::byte>(8));
  }
  world_.preempt();
  lanes.control->to_source.send({.type = FrameType::kMissingEnd, .count = told, .round = attempt});
}

/// Behind a new epoch, or in the place of a lost urgent lane, which may have been sweeping.
void TargetEnd::ask_again(const Job& task) {
  Receivers& lanes = *now_;
  if (!world_.planted(task.flag ? Plant::kLaneNotAsked : Plant::kFaultNotAskedAgain)) {
    requests_.want_all();
    ask_due();
  }
  if (task.flag) {
    lanes.sweep_at = PageIndex{0};
    lanes.sweep_outstanding = 0;
  }
  if (lanes.all_pushed()) {
    sweep_more(lanes);
  }
  progress();
}

// ---- the source stays away ----------------------------------------------------------------------

void TargetEnd::give_up_source(bool poison) {
  (void)feed({.kind = Input::Kind::kGiveUpSource,
              .policy = poison ? runtime::SourceLoss::kPoison : runtime::SourceLoss::kGiveUp});
}

/// Begins when every thread of every epoch has ended.
Task TargetEnd::abandon() {
  co_await until([this] {
    return std::all_of(epochs_.begin(), epochs_.end(),
                       [](const Receivers& one) { return one.control_ended && one.threads == 0; });
  });
  (void)feed({.kind = Input::Kind::kNothingArrives, .number = map_.missing().value});
}

// ---- the world ----------------------------------------------------------------------------------

bool TargetEnd::has_old_lane() const {
  const auto lanes = now_->all();
  return std::any_of(lanes.begin(), lanes.end(),
                     [this](const Connection* one) { return one->epoch != now_->epoch; });
}

bool TargetEnd::uneasy() const {
  if (now_->control_ended || state() == TargetState::kListening) {
    return false;
  }
  if (world_.frozen(Process::kSource) || world_.dead(Process::kSource) || misses_a_marker()) {
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
