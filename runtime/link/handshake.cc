#include "runtime/link/handshake.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include <fmt/format.h>

#include "base/log.h"
#include "base/thread.h"
#include "runtime/link/sockets.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail;
using wire::FrameHeader;
using wire::FrameType;

template <typename T>
void append(std::vector<std::byte>& into, const T& value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  into.insert(into.end(), bytes.begin(), bytes.end());
}

// The next frame, which must be of `wanted` type; a refusal becomes the error that it is.
Expected<std::vector<std::byte>> expect(Lane& lane, FrameType wanted, const Uri& target) {
  const auto received = lane.receive_header();
  if (!received.ok() && received.error().kind == ErrorKind::kCorrupt) {
    return fail(ErrorKind::kCorrupt, "handshake",
                fmt::format("'{}' does not answer as a Towline target does: {}", target.to_string(),
                            received.error().detail));
  }
  if (!received.ok() && received.error().errno_value == EAGAIN) {
    return fail(
        ErrorKind::kDisconnected, "handshake",
        fmt::format("'{}' took the connection and says nothing; is it a Towline target, and "
                    "alive?",
                    target.to_string()));
  }
  const auto header = TRY(received);
  if (!header.has_value()) {
    return fail(ErrorKind::kDisconnected, "handshake",
                fmt::format("'{}' closed the connection instead of answering; is it a Towline "
                            "target that waits for a migration?",
                            target.to_string()));
  }
  auto payload = TRY(lane.receive_payload(*header));
  if (header->type == FrameType::kRefuse) {
    return fail(ErrorKind::kRefused, "handshake", text_of(payload));
  }
  if (header->type != wanted) {
    return fail(ErrorKind::kCorrupt, "handshake",
                fmt::format("'{}' answered with {} where {} was due", target.to_string(),
                            wire::to_string(header->type), wire::to_string(wanted)));
  }
  return payload;
}

base::Outcome check_reply(const wire::HelloReply& reply, const wire::Hello& hello,
                          const LaneIdentity& identity, const Uri& target) {
  if (identity.secret.empty()) {
    if (reply.wants_proof) {
      return fail(ErrorKind::kRefused, "handshake",
                  fmt::format("'{}' was started with a secret; give the same one to the source "
                              "(--secret FILE)",
                              target.to_string()));
    }
    return base::Done{};
  }
  const Mac expected = lane_proof(identity.secret, Prover::kTarget, hello, reply.nonce);
  if (!equal_in_constant_time(expected, reply.proof)) {
    return fail(ErrorKind::kRefused, "handshake",
                fmt::format("'{}' does not know this migration's secret; give both sides the same "
                            "--secret FILE",
                            target.to_string()));
  }
  return base::Done{};
}

}  // namespace

Mac lane_proof(std::span<const std::byte> secret, Prover prover, const wire::Hello& hello,
               std::span<const std::byte> target_nonce) {
  std::vector<std::byte> message;
  const std::string_view word = prover == Prover::kSource ? "towline source" : "towline target";
  const auto word_bytes = bytes_of(word);
  message.insert(message.end(), word_bytes.begin(), word_bytes.end());
  message.insert(message.end(), hello.id.begin(), hello.id.end());
  append(message, hello.epoch);
  append(message, hello.role);
  append(message, hello.lane);
  message.insert(message.end(), hello.nonce.begin(), hello.nonce.end());
  message.insert(message.end(), target_nonce.begin(), target_nonce.end());
  if (hello.attempt != 0) {
    append(message, hello.attempt);
  }
  return hmac_sha256(secret, message);
}

Mac hello_proof(std::span<const std::byte> secret, const wire::Hello& hello) {
  std::vector<std::byte> message;
  const auto word = bytes_of("towline hello");
  message.insert(message.end(), word.begin(), word.end());
  message.insert(message.end(), hello.id.begin(), hello.id.end());
  append(message, hello.epoch);
  append(message, hello.role);
  append(message, hello.lane);
  append(message, hello.attempt);
  message.insert(message.end(), hello.nonce.begin(), hello.nonce.end());
  return hmac_sha256(secret, message);
}

namespace {

// The handshake on a lane that is connected.
Expected<wire::HelloReply> shake_hands(Lane& lane, const Uri& target, const LaneIdentity& identity,
                                       std::uint8_t number) {
  wire::Hello hello;
  hello.role = lane.role();
  hello.lane = number;
  hello.has_secret = !identity.secret.empty();
  hello.features = kFeatures;
  hello.id = identity.id;
  hello.epoch = identity.epoch;
  hello.incarnation = identity.incarnation;
  hello.attempt = identity.attempt;
  random_bytes(hello.nonce);
  if (hello.has_secret) {
    hello.proof = hello_proof(identity.secret, hello);
  }
  FrameHeader header;
  header.type = FrameType::kHello;
  TRY(lane.send(header, wire::encode_hello(hello)));

  const auto answer = TRY(expect(lane, FrameType::kHelloReply, target));
  const auto decoded = wire::decode_hello_reply(answer);
  if (!decoded.ok()) {
    return fail(ErrorKind::kCorrupt, "handshake",
                fmt::format("'{}' answers otherwise than a target of this version, which speaks "
                            "wire versions {} to {}: {}; start the same version of Towline at both "
                            "ends",
                            target.to_string(), wire::kVersionLow, wire::kVersionHigh,
                            decoded.error().detail));
  }
  const wire::HelloReply& reply = decoded.value();
  TRY(check_reply(reply, hello, identity, target));
  if (identity.target_incarnation != 0 && reply.incarnation != identity.target_incarnation) {
    return fail(ErrorKind::kRefused, "handshake",
                fmt::format("'{}' is another process than the one that holds the guest",
                            target.to_string()));
  }
  if (hello.role == wire::LaneRole::kControl) {
    base::log(base::LogLevel::kInfo, "target.answers epoch={} phase={}", hello.epoch,
              to_string(reply.phase));
  }
  if (reply.wants_proof) {
    header.type = FrameType::kProof;
    TRY(lane.send(header, lane_proof(identity.secret, Prover::kSource, hello, reply.nonce)));
  }
  TRY(expect(lane, FrameType::kLaneReady, target));
  return reply;
}

}  // namespace

Expected<OpenedLane> open_lane(const Uri& target, const MigrationOptions& options,
                               const LaneIdentity& identity, wire::LaneRole role,
                               std::uint8_t number, const WaitingOn& waiting_on) {
  auto fd = TRY(connect_to(target, options.connect_timeout, waiting_on));
  set_receive_timeout(fd.get(), options.handshake_timeout);
  auto lane = std::make_unique<Lane>(std::move(fd), role, wire::Direction::kToSource);
  const auto reply = TRY([&] {
    const WaitingNote note(waiting_on, lane->fd());
    return shake_hands(*lane, target, identity, number);
  }());
  set_receive_timeout(lane->fd(), std::chrono::milliseconds(0));
  if (role == wire::LaneRole::kControl && (reply.features & wire::kFeatureCountFrames) != 0) {
    lane->count_frames();
  }
  if (role == wire::LaneRole::kBulk) {
    tune_bulk(lane->fd());
  }
  return OpenedLane{std::move(lane), reply};
}

Expected<DataLanes> open_data_lanes(const Uri& target, const MigrationOptions& options,
                                    const LaneIdentity& identity, std::uint32_t bulk_lanes,
                                    const WaitingOn& waiting_on,
                                    const std::function<base::Outcome()>& meanwhile) {
  // The urgent lane is the first of them.
  std::vector<std::optional<Expected<OpenedLane>>> opened(1 + bulk_lanes);
  std::vector<base::NamedThread> threads;
  threads.reserve(opened.size());
  for (std::size_t i = 0; i < opened.size(); ++i) {
    threads.emplace_back("tl-open", [&, i] {
      opened[i] = i == 0
                      ? open_lane(target, options, identity, wire::LaneRole::kUrgent, 0, waiting_on)
                      : open_lane(target, options, identity, wire::LaneRole::kBulk,
                                  static_cast<std::uint8_t>(i - 1), waiting_on);
    });
  }
  const auto done = meanwhile ? meanwhile() : base::Outcome(base::Done{});
  for (base::NamedThread& thread : threads) {
    thread.join();
  }
  TRY(base::Outcome(done));
  DataLanes lanes;
  for (std::size_t i = 0; i < opened.size(); ++i) {
    auto one = TRY(*std::move(opened[i]));
    if (i == 0) {
      lanes.urgent = std::move(one.lane);
    } else {
      lanes.bulk.push_back(std::move(one.lane));
    }
  }
  return lanes;
}

}  // namespace towline::runtime
