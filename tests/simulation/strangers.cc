// Those who have no right to be heard, and those who are heard in another's place.
#include <vector>

#include "tests/simulation/trouble.h"

namespace towline::simulation {

using runtime::Prover;
using runtime::wire::FrameType;
using runtime::wire::Hello;
using runtime::wire::LaneRole;

/// Says something that it has no right to say. Nothing of it may change anything.
void Troublemaker::send_stranger() {
  Connection& connection = network_.connect(LaneRole::kControl, true);
  Pipe& pipe = connection.to_target;
  switch (world_.random.below(4)) {
    case 0: {
      std::vector<std::byte> garbage(world_.random.between(1, 200));
      fill_randomly(world_.random, garbage);
      pipe.send_bytes(garbage);
      return pipe.close();
    }
    case 1:
      return;  // Half open, and silent.
    default:
      world_.add_actor(Process::kOutside, "a stranger", replay(connection));
  }
}

/// Greets as the source did once, or in an epoch to come, and proves with what it has heard.
Task Troublemaker::replay(Connection& connection) {
  Hello hello;
  if (!network_.heard_hello.empty()) {
    hello = runtime::wire::decode_hello(network_.heard_hello).value();
  }
  hello.has_secret = true;
  hello.id = identity_.id;
  if (world_.random.once_in(2)) {
    hello.role = LaneRole::kControl;
    hello.lane = 0;
    hello.epoch += world_.random.between(1, 1000);
  }
  connection.to_target.send({.type = FrameType::kHello}, runtime::wire::encode_hello(hello));
  std::vector<std::byte> proof(runtime::wire::kMacBytes);
  if (network_.heard_proof.empty()) {
    fill_randomly(world_.random, proof);
  } else {
    proof = network_.heard_proof;
  }
  co_await step();
  connection.to_target.send({.type = FrameType::kProof}, proof);
  co_await until([&connection] { return connection.to_source.readable(); });
  connection.to_target.close();
}

/// Another process at the target's address, which even knows the secret: it never had this guest,
/// and says so.
Task Troublemaker::answer_elsewhere(Connection& connection) {
  Pipe& pipe = connection.to_target;
  co_await until([&pipe] { return pipe.readable(); });
  const auto greeting = pipe.take();
  if (!greeting.ok() || !greeting.value().has_value()) {
    co_return connection.to_source.close();
  }
  const auto hello = runtime::wire::decode_hello(greeting.value()->payload);
  if (!hello.ok()) {
    co_return connection.to_source.close();
  }
  runtime::wire::HelloReply reply;
  reply.wants_proof = true;
  reply.incarnation = identity_.target_incarnation + 1;
  fill_randomly(world_.random, reply.nonce);
  reply.proof = runtime::lane_proof(identity_.secret, Prover::kTarget, hello.value(), reply.nonce);
  connection.to_source.send({.type = FrameType::kHelloReply},
                            runtime::wire::encode_hello_reply(reply));
  connection.to_source.send({.type = FrameType::kLaneReady});
  connection.to_source.send({.type = FrameType::kNever});
  co_await until([&pipe] { return pipe.readable(); });
  connection.to_source.close();
}

}  // namespace towline::simulation
