#include "tests/support/sample_frames.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string_view>

#include "base/crc32c.h"
#include "base/ensure.h"

namespace towline::tests {
namespace {

using runtime::wire::Direction;
using runtime::wire::FrameHeader;
using runtime::wire::FrameType;
using runtime::wire::LaneRole;

using Payload = std::vector<std::byte>;

Payload text(std::string_view words) {
  const auto bytes = std::as_bytes(std::span(words));
  return {bytes.begin(), bytes.end()};
}

/// 64-bit numbers, little-endian.
Payload numbers(std::initializer_list<std::uint64_t> values) {
  Payload payload;
  for (const std::uint64_t value : values) {
    for (unsigned shift = 0; shift < 64; shift += 8) {
      payload.push_back(static_cast<std::byte>((value >> shift) & 0xffU));
    }
  }
  return payload;
}

/// `count` counting bytes, beginning with `first`.
template <std::size_t kSize>
std::array<std::byte, kSize> counting(unsigned first) {
  std::array<std::byte, kSize> bytes{};
  for (std::size_t i = 0; i < kSize; ++i) {
    bytes[i] = static_cast<std::byte>(first + i);
  }
  return bytes;
}

Payload guest_pages(std::size_t count) {
  Payload payload(count * 4096);
  for (std::size_t i = 0; i < payload.size(); ++i) {
    payload[i] = static_cast<std::byte>(i * 31 + i / 4096 + i / 256);
  }
  return payload;
}

SampleFrame frame(std::string name, LaneRole lane, Direction direction, FrameHeader header,
                  Payload payload = {}) {
  header.length = static_cast<std::uint32_t>(payload.size());
  header.payload_crc = base::crc32c(payload);
  return {std::move(name), lane, direction, header, std::move(payload)};
}

SampleFrame to_target(std::string name, FrameHeader header, Payload payload = {}) {
  return frame(std::move(name), LaneRole::kControl, Direction::kToTarget, header,
               std::move(payload));
}

SampleFrame to_source(std::string name, FrameHeader header, Payload payload = {}) {
  return frame(std::move(name), LaneRole::kControl, Direction::kToSource, header,
               std::move(payload));
}

template <std::size_t kSize>
Payload payload_of(const std::array<std::byte, kSize>& bytes) {
  return {bytes.begin(), bytes.end()};
}

SampleFrame stale_frame() {
  runtime::wire::RunsWriter writer;
  for (const auto& [first, count] :
       {std::pair{5U, 1U}, std::pair{7U, 2U}, std::pair{1000U, 300U}}) {
    ENSURE(writer.add({base::PageIndex{first}, base::PageCount{count}}), "a small set fits");
  }
  runtime::wire::RunsWriter::Frame runs = writer.take();
  runs.header.round = 1;
  return to_target("stale", runs.header, std::move(runs.payload));
}

void add_handshake(std::vector<SampleFrame>& frames) {
  frames.push_back(
      to_target("hello", {.type = FrameType::kHello}, runtime::wire::encode_hello(sample_hello())));
  frames.push_back(to_source("hello-reply", {.type = FrameType::kHelloReply},
                             payload_of(runtime::wire::encode_hello_reply(sample_hello_reply()))));
  frames.push_back(to_target("proof", {.type = FrameType::kProof}, payload_of(counting<32>(0xa0))));
  frames.push_back(to_source("lane-ready", {.type = FrameType::kLaneReady}));
  frames.push_back(to_source("refuse", {.type = FrameType::kRefuse},
                             text("the source speaks versions 2 to 3, this target 1 to 1")));
}

void add_control(std::vector<SampleFrame>& frames) {
  frames.push_back(
      to_target("describe", {.type = FrameType::kDescribe}, text("an encoded description")));
  frames.push_back(stale_frame());
  frames.push_back(
      to_target("round-end", {.type = FrameType::kRoundEnd, .count = 303, .round = 1}));
  frames.push_back(to_target(
      "round-end-final",
      {.type = FrameType::kRoundEnd, .flags = runtime::wire::kFlagFinal, .count = 12, .round = 1}));
  frames.push_back(to_target("state", {.type = FrameType::kState}, text("an encoded state")));
  frames.push_back(to_target("run", {.type = FrameType::kRun}));
  frames.push_back(
      to_target("cancel", {.type = FrameType::kCancel}, text("the user cancelled it")));
  frames.push_back(to_target("complete-ack", {.type = FrameType::kCompleteAck}));
  frames.push_back(to_target("ping", {.type = FrameType::kPing}, numbers({123'456'789'000})));
  frames.push_back(to_source("accept", {.type = FrameType::kAccept}));
  frames.push_back(
      to_source("stale-applied", {.type = FrameType::kStaleApplied, .count = 303, .round = 1}));
  frames.push_back(to_source("running", {.type = FrameType::kRunning}, numbers({987'654'321'000})));
  frames.push_back(
      to_source("never", {.type = FrameType::kNever}, text("vcpu[0] v1: field 'xcrs' is missing")));
  frames.push_back(to_source("complete", {.type = FrameType::kComplete, .count = 65'536}));
  frames.push_back(
      to_source("pong", {.type = FrameType::kPong}, numbers({123'456'789'000, 123'456'800'000})));
}

SampleFrame missing_frame(const char* name, std::vector<base::PageRange> missing) {
  const auto next = [&](base::PageIndex at, base::PageCount) -> std::optional<base::PageRange> {
    const auto found = std::find_if(missing.begin(), missing.end(),
                                    [&](const auto& run) { return run.first >= at; });
    return found == missing.end() ? std::nullopt : std::optional(*found);
  };
  auto encoded = runtime::wire::encode_missing(next, base::PageIndex{0}, base::PageCount{65'536});
  ENSURE(encoded.has_value(), "something is missing");
  return to_source(name, encoded->header, std::move(encoded->payload));
}

void add_recovery(std::vector<SampleFrame>& frames) {
  using base::PageCount;
  using base::PageIndex;
  frames.push_back(to_target("resume", {.type = FrameType::kResume}));
  frames.push_back(missing_frame(
      "missing", {{PageIndex{16}, PageCount{3}}, {PageIndex{4096}, PageCount{8192}}}));
  frames.push_back(missing_frame("missing-bitmap", {{PageIndex{16}, PageCount{1}},
                                                    {PageIndex{18}, PageCount{1}},
                                                    {PageIndex{20}, PageCount{2}},
                                                    {PageIndex{25}, PageCount{1}}}));
  frames.push_back(to_source("missing-end", {.type = FrameType::kMissingEnd, .count = 8195}));
  frames.push_back(to_source("beat", {.type = FrameType::kBeat}));
  frames.push_back(to_source("lane-lost",
                             {.type = FrameType::kLaneLost, .first = 0x0102, .round = 4},
                             text("a pages frame has the wrong checksum")));
  frames.push_back(to_source("no-room", {.type = FrameType::kNoRoom},
                             text("memory: the file system of '/ram/a' has 0 KiB free of 8 MiB")));
  frames.push_back(to_source("room-again", {.type = FrameType::kRoomAgain}));
  frames.push_back(
      to_source("missing-end-lane", {.type = FrameType::kMissingEnd, .count = 8195, .round = 5}));
  runtime::wire::Hello again = sample_hello();
  again.attempt = 5;
  frames.push_back(
      to_target("hello-again", {.type = FrameType::kHello}, runtime::wire::encode_hello(again)));
  again.proof = counting<32>(0xc0);
  frames.push_back(
      to_target("hello-proven", {.type = FrameType::kHello}, runtime::wire::encode_hello(again)));
}

void add_pages(std::vector<SampleFrame>& frames) {
  using runtime::wire::kPostcopyRound;
  frames.push_back(frame("pages", LaneRole::kBulk, Direction::kToTarget,
                         {.type = FrameType::kPages, .first = 0x1234, .count = 2, .round = 1},
                         guest_pages(2)));
  frames.push_back(frame("pages-demanded", LaneRole::kUrgent, Direction::kToTarget,
                         {.type = FrameType::kPages,
                          .flags = runtime::wire::kFlagDemanded,
                          .first = 77,
                          .count = 1,
                          .round = kPostcopyRound,
                          .service_ns = 8500},
                         guest_pages(1)));
  frames.push_back(
      frame("zeros", LaneRole::kBulk, Direction::kToTarget,
            {.type = FrameType::kZeros, .first = 4096, .count = 1U << 20U, .round = 1}));
  frames.push_back(frame("zeros-demanded", LaneRole::kUrgent, Direction::kToTarget,
                         {.type = FrameType::kZeros,
                          .flags = runtime::wire::kFlagDemanded,
                          .first = 78,
                          .count = 1,
                          .round = kPostcopyRound,
                          .service_ns = 4200}));
  frames.push_back(frame("zeros-sweep", LaneRole::kUrgent, Direction::kToTarget,
                         {.type = FrameType::kZeros,
                          .flags = runtime::wire::kFlagDemanded | runtime::wire::kFlagSweep,
                          .first = 4096,
                          .count = 16,
                          .round = kPostcopyRound}));
  frames.push_back(frame("marker", LaneRole::kBulk, Direction::kToTarget,
                         {.type = FrameType::kMarker, .round = 1}));
  frames.push_back(frame("request", LaneRole::kUrgent, Direction::kToSource,
                         {.type = FrameType::kRequest, .first = 77, .count = 1}));
  frames.push_back(frame("request-sweep", LaneRole::kUrgent, Direction::kToSource,
                         {.type = FrameType::kRequest,
                          .flags = runtime::wire::kFlagSweep,
                          .first = 4096,
                          .count = 16}));
}

}  // namespace

std::vector<std::byte> SampleFrame::bytes() const {
  const runtime::wire::HeaderBytes head = runtime::wire::encode_header(header);
  std::vector<std::byte> all(head.size() + payload.size());
  std::copy(payload.begin(), payload.end(), std::copy(head.begin(), head.end(), all.begin()));
  return all;
}

runtime::wire::Hello sample_hello() {
  return {.role = LaneRole::kBulk,
          .lane = 1,
          .has_secret = true,
          .features = 0x0102030405060708U,
          .id = counting<16>(0x10),
          .epoch = 3,
          .incarnation = 0x1122334455667788U,
          .nonce = counting<16>(0x30),
          .proof = std::nullopt};
}

runtime::wire::HelloReply sample_hello_reply() {
  return {.phase = runtime::wire::TargetPhase::kRunning,
          .wants_proof = true,
          .features = 0x0102U,
          .incarnation = 0x8877665544332211U,
          .nonce = counting<16>(0x50),
          .proof = counting<32>(0x70)};
}

const std::vector<SampleFrame>& sample_frames() {
  static const std::vector<SampleFrame> frames = [] {
    std::vector<SampleFrame> all;
    add_handshake(all);
    add_control(all);
    add_recovery(all);
    add_pages(all);
    return all;
  }();
  return frames;
}

const SampleFrame& sample_frame(const std::string& name) {
  const auto& frames = sample_frames();
  const auto found = std::find_if(frames.begin(), frames.end(),
                                  [&](const SampleFrame& one) { return one.name == name; });
  ENSURE(found != frames.end(), "a sample frame is asked for by its name");
  return *found;
}

}  // namespace towline::tests
