#include "runtime/wire/codec.h"

#include <functional>
#include <set>
#include <string>

#include <doctest/doctest.h>

#include "base/crc32c.h"
#include "runtime/core/description.h"
#include "runtime/link/handshake.h"
#include "runtime/wire/frame_rules.h"
#include "runtime/wire/lane_name.h"
#include "tests/support/sample_frames.h"

namespace towline::runtime::wire {
namespace {

using tests::sample_frame;
using tests::sample_frames;

base::Expected<FrameHeader> decode(const FrameHeader& header, LaneRole lane, Direction direction) {
  return decode_header(encode_header(header), lane, direction);
}

/// Decodes a good sample after `damage`; it must be refused, with words that hold `expected`.
void check_damage(const std::string& sample, const std::function<void(FrameHeader&)>& damage,
                  const std::string& expected) {
  const tests::SampleFrame& good = sample_frame(sample);
  REQUIRE(decode(good.header, good.lane, good.direction).ok());
  FrameHeader bad = good.header;
  damage(bad);
  const auto got = decode(bad, good.lane, good.direction);
  REQUIRE_FALSE(got.ok());
  CHECK(got.error().kind == base::ErrorKind::kCorrupt);
  CHECK(got.error().detail == expected);
}

TEST_CASE("every header comes back as it was sent, on its lane and in its direction") {
  for (const tests::SampleFrame& frame : sample_frames()) {
    CAPTURE(frame.name);
    const auto got = decode(frame.header, frame.lane, frame.direction);
    REQUIRE(got.ok());
    CHECK(got.value() == frame.header);
  }
}

TEST_CASE("there is a sample of every frame type and a rule for each") {
  std::set<FrameType> sampled;
  for (const tests::SampleFrame& frame : sample_frames()) {
    sampled.insert(frame.header.type);
  }
  CHECK(sampled.size() == kFrameRules.size());
  for (const FrameRule& rule : kFrameRules) {
    CHECK(sampled.contains(rule.type));
    CHECK(find_rule(rule.type) == &rule);
    CHECK(to_string(rule.type) != "unknown");
  }
}

TEST_CASE("one flipped bit anywhere in a header is found") {
  const tests::SampleFrame& frame = sample_frame("pages");
  const HeaderBytes good = encode_header(frame.header);
  for (std::size_t bit = 0; bit < 8 * kHeaderBytes; ++bit) {
    HeaderBytes bad = good;
    bad[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    const auto got = decode_header(bad, frame.lane, frame.direction);
    REQUIRE_FALSE(got.ok());
    REQUIRE(got.error().kind == base::ErrorKind::kCorrupt);
    REQUIRE(got.error().detail.find("checksum") != std::string::npos);
  }
}

TEST_CASE("a header of zeros is refused by its checksum") {
  CHECK_FALSE(decode_header(HeaderBytes{}, LaneRole::kControl, Direction::kToTarget).ok());
}

TEST_CASE("an unknown frame type is refused") {
  check_damage(
      "ping", [](FrameHeader& header) { header.type = static_cast<FrameType>(999); },
      "frame type 999 is unknown");
}

TEST_CASE("a frame on a lane where it does not belong is refused") {
  for (const tests::SampleFrame& frame : sample_frames()) {
    for (const LaneRole lane : {LaneRole::kControl, LaneRole::kUrgent, LaneRole::kBulk}) {
      const FrameRule* rule = find_rule(frame.header.type);
      const bool allowed = ((rule->lanes >> static_cast<unsigned>(lane)) & 1U) != 0;
      CAPTURE(frame.name);
      CAPTURE(to_string(lane));
      CHECK(decode(frame.header, lane, frame.direction).ok() == allowed);
    }
  }
  const auto got = decode(sample_frame("run").header, LaneRole::kBulk, Direction::kToTarget);
  REQUIRE_FALSE(got.ok());
  CHECK(got.error().detail == "a run frame does not belong on the bulk lane");
}

TEST_CASE("a frame that goes the wrong way is refused") {
  for (const tests::SampleFrame& frame : sample_frames()) {
    const Direction wrong =
        frame.direction == Direction::kToTarget ? Direction::kToSource : Direction::kToTarget;
    CAPTURE(frame.name);
    CHECK_FALSE(decode(frame.header, frame.lane, wrong).ok());
  }
  const auto got = decode(sample_frame("run").header, LaneRole::kControl, Direction::kToSource);
  REQUIRE_FALSE(got.ok());
  CHECK(got.error().detail == "a run frame goes to-target, this one came to-source");
}

TEST_CASE("a length over the limit of its type is refused, and one below as well") {
  check_damage(
      "stale", [](FrameHeader& header) { header.length = kMaxRunsPayload + 1; },
      "a stale frame of 65537 payload bytes, where 2 to 65536 are allowed");
  check_damage(
      "pages", [](FrameHeader& header) { header.length = kMaxPagesPayload + 4096; },
      "a pages frame of 2101248 payload bytes, where 4096 to 2097152 are allowed");
  check_damage(
      "state", [](FrameHeader& header) { header.length = kMaxStatePayload + 1; },
      "a state frame of 16777217 payload bytes, where 1 to 16777216 are allowed");
  check_damage(
      "hello", [](FrameHeader& header) { header.length = kHelloBytes - 1; },
      "a hello frame of 79 payload bytes, where 80 to 256 are allowed");
  check_damage(
      "run", [](FrameHeader& header) { header.length = 1; },
      "a run frame of 1 payload bytes, where 0 to 0 are allowed");
  check_damage(
      "ping", [](FrameHeader& header) { header.length = 0xffffffffU; },
      "a ping frame of 4294967295 payload bytes, where 8 to 8 are allowed");
}

TEST_CASE("a count over the limit of its type is refused, and one below as well") {
  check_damage(
      "pages", [](FrameHeader& header) { header.count = kMaxPagesPerFrame + 1; },
      "a pages frame of 65 pages, where 1 to 64 are allowed");
  check_damage(
      "pages", [](FrameHeader& header) { header.count = 0; },
      "a pages frame of 0 pages, where 1 to 64 are allowed");
  check_damage(
      "request", [](FrameHeader& header) { header.count = kMaxPagesPerRequest + 1; },
      "a request frame of 17 pages, where 1 to 16 are allowed");
  check_damage(
      "zeros", [](FrameHeader& header) { header.count = 0; },
      "a zeros frame of 0 pages, where 1 to 18446744073709551615 are allowed");
  check_damage(
      "run", [](FrameHeader& header) { header.count = 1; },
      "a run frame of 1 pages, where 0 to 0 are allowed");
}

TEST_CASE("frames of pages are shorter once the guest runs at the target") {
  FrameHeader header = sample_frame("pages").header;
  header.count = kMaxPagesPerPostcopyFrame + 1;
  header.length = static_cast<std::uint32_t>(header.count * 4096);
  CHECK(decode(header, LaneRole::kBulk, Direction::kToTarget).ok());
  header.round = kPostcopyRound;
  const auto got = decode(header, LaneRole::kBulk, Direction::kToTarget);
  REQUIRE_FALSE(got.ok());
  CHECK(got.error().detail == "a pages frame of 17 pages, where 1 to 16 are allowed");
}

TEST_CASE("a payload that is not as long as its pages is refused") {
  check_damage(
      "pages", [](FrameHeader& header) { header.length = 3 * 4096; },
      "a pages frame of 12288 bytes that says it holds 2 pages");
  check_damage(
      "pages", [](FrameHeader& header) { header.length = 2 * 4096 + 1; },
      "a pages frame of 8193 bytes that says it holds 2 pages");
}

TEST_CASE("a huge page fills a frame of its own, before and after the switch") {
  FrameHeader header = sample_frame("pages").header;
  header.count = 1;
  header.length = kMaxPagesPayload;
  CHECK(decode(header, LaneRole::kBulk, Direction::kToTarget).ok());
  header.round = kPostcopyRound;
  CHECK(decode(header, LaneRole::kBulk, Direction::kToTarget).ok());
  header.count = 2;
  header.length = 2 * kMaxPagesPayload;
  CHECK_FALSE(decode(header, LaneRole::kBulk, Direction::kToTarget).ok());
}

TEST_CASE("a frame has as many pages as its payload and its kind allow") {
  CHECK(pages_in_frame(base::kSmallPage.value, kMaxPagesPerFrame) == kMaxPagesPerFrame);
  CHECK(pages_in_frame(base::kSmallPage.value, kMaxPagesPerRequest) == kMaxPagesPerRequest);
  CHECK(pages_in_frame(base::kHugePage.value, kMaxPagesPerFrame) == 1);
}

TEST_CASE("an unknown flag is refused, and so is one that belongs to another type") {
  check_damage(
      "pages", [](FrameHeader& header) { header.flags = 0x8000; },
      "a pages frame with flags 0x8000, where 0x5 are allowed");
  check_damage(
      "request", [](FrameHeader& header) { header.flags = kFlagDemanded; },
      "a request frame with flags 0x1, where 0x4 are allowed");
  check_damage(
      "run", [](FrameHeader& header) { header.flags = kFlagFinal; },
      "a run frame with flags 0x2, where 0x0 are allowed");
}

TEST_CASE("an answer to a sweep says so") {
  FrameHeader header = sample_frame("pages-demanded").header;
  header.flags = kFlagDemanded | kFlagSweep;
  CHECK(decode(header, LaneRole::kUrgent, Direction::kToTarget).ok());
}

TEST_CASE("an empty frame with a payload checksum is refused") {
  check_damage(
      "run", [](FrameHeader& header) { header.payload_crc = 0x12; },
      "an empty run frame with payload checksum 0x00000012, not 0");
}

// ---- hello --------------------------------------------------------------------------------------

std::vector<std::byte> hello_bytes() {
  return sample_frame("hello").payload;
}

std::vector<std::byte> reply_bytes() {
  return sample_frame("hello-reply").payload;
}

template <typename T>
void check_corrupt(const base::Expected<T>& got, const std::string& expected) {
  REQUIRE_FALSE(got.ok());
  CHECK(got.error().kind == base::ErrorKind::kCorrupt);
  CHECK(got.error().detail == expected);
}

TEST_CASE("a hello and its reply come back as they were sent") {
  const auto hello = decode_hello(hello_bytes());
  REQUIRE(hello.ok());
  CHECK(hello.value() == tests::sample_hello());
  const auto reply = decode_hello_reply(reply_bytes());
  REQUIRE(reply.ok());
  CHECK(reply.value() == tests::sample_hello_reply());
}

TEST_CASE("a truncated hello is refused at every length") {
  const auto whole = hello_bytes();
  for (std::size_t length = 0; length < kHelloBytes; ++length) {
    REQUIRE_FALSE(decode_hello(std::span(whole).first(length)).ok());
  }
  check_corrupt(decode_hello(std::span(whole).first(79)), "79 bytes, where 80 to 256 are allowed");
  const auto reply = reply_bytes();
  for (std::size_t length = 0; length < kHelloReplyBytes; ++length) {
    REQUIRE_FALSE(decode_hello_reply(std::span(reply).first(length)).ok());
  }
}

TEST_CASE("a hello that has grown in a later version is understood, one over the limit is not") {
  auto longer = hello_bytes();
  longer.resize(kProvenHelloBytes, std::byte{0});  // Zeros where a proof might be: there is none.
  longer.resize(kMaxHandshakePayload, std::byte{0xee});
  REQUIRE(decode_hello(longer).ok());
  CHECK(decode_hello(longer).value() == tests::sample_hello());
  longer.push_back(std::byte{0});
  check_corrupt(decode_hello(longer), "257 bytes, where 80 to 256 are allowed");
}

TEST_CASE("a hello or reply with a bad magic is refused") {
  auto hello = hello_bytes();
  hello[0] ^= std::byte{1};
  check_corrupt(decode_hello(hello), "it does not begin with the magic of this protocol");
  auto reply = reply_bytes();
  reply[7] = std::byte{'\r'};
  check_corrupt(decode_hello_reply(reply), "it does not begin with the magic of this protocol");
}

TEST_CASE("a lane role, a lane number and a target phase out of range are refused") {
  auto hello = hello_bytes();
  hello[13] = std::byte{16};
  check_corrupt(decode_hello(hello), "bulk lane number 16, where fewer than 16 exist");
  hello[12] = std::byte{1};
  hello[13] = std::byte{1};
  check_corrupt(decode_hello(hello), "urgent lane number 1, where fewer than 1 exist");
  hello[12] = std::byte{3};
  check_corrupt(decode_hello(hello), "lane role 3, where 0 to 2 are known");
  auto reply = reply_bytes();
  reply[10] = std::byte{5};
  check_corrupt(decode_hello_reply(reply), "target phase 5, where 0 to 4 are known");
}

TEST_CASE("a reply in a version that was not offered is refused, whatever else it says") {
  for (const unsigned version : {0U, kVersionHigh + 1U, 99U, 0xffffU}) {
    auto reply = reply_bytes();
    reply[8] = static_cast<std::byte>(version & 0xff);
    reply[9] = static_cast<std::byte>(version >> 8);
    reply[10] = std::byte{77};  // A phase that this version does not have.
    check_corrupt(decode_hello_reply(reply),
                  "wire version " + std::to_string(version) + ", where 1 to 1 were offered");
  }
}

TEST_CASE("a hello says which attempt at its lane it is, behind what earlier ones said") {
  Hello first = tests::sample_hello();
  Hello again = first;
  again.attempt = 0x01020304;
  const auto before = encode_hello(first);
  const auto after = encode_hello(again);
  CHECK(std::equal(before.begin(), before.begin() + 72, after.begin()));
  CHECK(before[72] == std::byte{0});
  CHECK(after[72] == std::byte{4});
  CHECK(after[75] == std::byte{1});
  const auto decoded = decode_hello(after);
  REQUIRE(decoded.ok());
  CHECK(decoded.value() == again);
}

TEST_CASE("a hello's own proof stands behind all that earlier ones said, whole or not at all") {
  Hello proven = tests::sample_hello();
  proven.proof = Mac{std::byte{7}};
  const auto before = encode_hello(tests::sample_hello());
  const auto after = encode_hello(proven);
  REQUIRE(after.size() == 112);
  CHECK(std::equal(before.begin(), before.end(), after.begin()));
  CHECK(after[80] == std::byte{7});
  REQUIRE(decode_hello(after).ok());
  CHECK(decode_hello(after).value() == proven);
  for (std::size_t length = before.size(); length < after.size(); ++length) {
    const auto half = decode_hello(std::span(after).first(length));
    REQUIRE(half.ok());
    CHECK(half.value() == tests::sample_hello());
  }
}

TEST_CASE(
    "a hello's own proof is of that lane, attempt, epoch and nonce alone, and no other proof") {
  const std::array<std::byte, kSecretBytes> secret{};
  const Hello hello = tests::sample_hello();
  const Mac proof = hello_proof(secret, hello);
  CHECK(proof == hello_proof(secret, hello));
  CHECK(proof != lane_proof(secret, Prover::kSource, hello, std::array<std::byte, kNonceBytes>{}));
  const auto differs = [&](const auto& change) {
    Hello other = hello;
    change(other);
    return hello_proof(secret, other) != proof;
  };
  CHECK(differs([](Hello& other) { other.lane = 2; }));
  CHECK(differs([](Hello& other) { other.role = LaneRole::kUrgent; }));
  CHECK(differs([](Hello& other) { other.attempt = 1; }));
  CHECK(differs([](Hello& other) { other.epoch += 1; }));
  CHECK(differs([](Hello& other) { other.id[15] ^= std::byte{1}; }));
  CHECK(differs([](Hello& other) { other.nonce[0] ^= std::byte{1}; }));
}

TEST_CASE("the proof of one attempt at a lane is none of another") {
  const std::array<std::byte, kNonceBytes> nonce{};
  const std::array<std::byte, kSecretBytes> secret{};
  Hello hello = tests::sample_hello();
  const Mac first = lane_proof(secret, Prover::kSource, hello, nonce);
  hello.attempt = 1;
  const Mac second = lane_proof(secret, Prover::kSource, hello, nonce);
  hello.attempt = 2;
  CHECK(first != second);
  CHECK(second != lane_proof(secret, Prover::kSource, hello, nonce));
}

TEST_CASE("a lane's code names a data lane and no other") {
  for (std::uint8_t number = 0; number < kMaxBulkLanes; ++number) {
    const LaneName lane{LaneRole::kBulk, number};
    CHECK(lane_of_code(lane_code(lane)) == lane);
  }
  const LaneName urgent{LaneRole::kUrgent, 0};
  CHECK(lane_of_code(lane_code(urgent)) == urgent);
  for (const std::uint64_t code : {0x0ULL, 0x3ULL, 0x101ULL, 0x1002ULL, ~0ULL}) {
    CAPTURE(code);
    CHECK_FALSE(lane_of_code(code).has_value());
  }
}

TEST_CASE("the newest version that both speak is chosen, and none when the ranges do not meet") {
  const auto range = [](std::uint16_t low, std::uint16_t high) {
    Hello hello;
    hello.version_low = low;
    hello.version_high = high;
    return common_version(hello);
  };
  CHECK(range(1, 1) == 1);
  CHECK(range(0, 9) == 1);
  CHECK_FALSE(range(2, 9).has_value());
  CHECK_FALSE(range(0, 0).has_value());
  CHECK_FALSE(range(9, 0).has_value());
}

TEST_CASE("a version range that does not meet ours still makes a hello that can be answered") {
  Hello hello = tests::sample_hello();
  hello.version_low = 40;
  hello.version_high = 50;
  const auto got = decode_hello(encode_hello(hello));
  REQUIRE(got.ok());
  CHECK(got.value().version_low == 40);
}

}  // namespace
}  // namespace towline::runtime::wire
