// How the source's connections become lanes: runtime/link/handshake.cc as tasks.
#include "tests/simulation/source_end.h"

namespace towline::simulation {

using runtime::Prover;
using runtime::wire::FrameType;
using runtime::wire::Hello;
using runtime::wire::LaneRole;

/// Connects, greets, proves. `opened` stays null when it comes to nothing: refused, silent, or
/// another incarnation.
Task SourceEnd::open_lane(LaneRole role, std::uint8_t number, Connection*& opened,
                          std::uint32_t attempt) {
  Connection& made = network_.connect(role);
  made.epoch = lanes().epoch;
  greeting_ = &made;
  waiting_ended_ = brain_.wants_no_lane();
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
  co_await until([this, &made] { return made.to_source.readable() || waiting_ended_; });
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
  const auto over = [this, &made] { return made.to_source.readable() || waiting_ended_; };
  if (!impatient) {
    co_await until(over);
  }
  for (std::uint64_t turns = world_.random.below(8); impatient && turns > 0 && !over(); --turns) {
    co_await simulation::step();
  }
}

/// The frame that came, if it is of the wanted type and the link was not given up meanwhile.
std::optional<Frame> SourceEnd::answer_of(Connection& made, FrameType wanted) {
  if (waiting_ended_ || !made.to_source.readable()) {
    return std::nullopt;
  }
  auto taken = made.to_source.take();
  const bool due = taken.ok() && taken.value().has_value() && taken.value()->header.type == wanted;
  return due ? std::move(taken).value() : std::nullopt;
}

/// False: it does not know the secret, or it answers for another process.
bool SourceEnd::prove(Connection& made, const Hello& hello, std::span<const std::byte> payload) {
  const auto reply = runtime::wire::decode_hello_reply(payload);
  if (!reply.ok() || reply.value().proof != runtime::lane_proof(identity_.secret, Prover::kTarget,
                                                                hello, reply.value().nonce)) {
    return false;
  }
  incarnation_ = reply.value().incarnation;
  if (incarnation_ != identity_.target_incarnation) {
    world_.saw("another incarnation answered");
    if (hello.role != LaneRole::kControl && !world_.planted(Plant::kOtherNeverBelieved)) {
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
