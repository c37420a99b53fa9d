#include "runtime/wire/codec.h"

#include <algorithm>
#include <concepts>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/crc32c.h"
#include "runtime/wire/frame_rules.h"

namespace towline::runtime::wire {
namespace {

/// Writes values one after the other into bytes whose size is known.
class Writer {
 public:
  explicit Writer(std::span<std::byte> to) : to_(to) {}

  template <std::unsigned_integral T>
  void number(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      to_[i] = static_cast<std::byte>((value >> (8 * i)) & 0xffU);
    }
    to_ = to_.subspan(sizeof(T));
  }

  void bytes(std::span<const std::byte> value) {
    std::copy(value.begin(), value.end(), to_.begin());
    to_ = to_.subspan(value.size());
  }

  void skip(std::size_t count) { to_ = to_.subspan(count); }

 private:
  std::span<std::byte> to_;
};

/// Reads them back; the caller has checked the size.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> from) : from_(from) {}

  template <std::unsigned_integral T>
  T number() {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      value |= std::to_integer<std::uint64_t>(from_[i]) << (8 * i);
    }
    from_ = from_.subspan(sizeof(T));
    return static_cast<T>(value);
  }

  template <std::size_t kSize>
  void bytes(std::array<std::byte, kSize>& into) {
    std::copy_n(from_.begin(), kSize, into.begin());
    from_ = from_.subspan(kSize);
  }

  void skip(std::size_t count) { from_ = from_.subspan(count); }

 private:
  std::span<const std::byte> from_;
};

template <typename... Args>
base::Err<base::Error> corrupt(const char* what, fmt::format_string<Args...> format,
                               Args&&... args) {
  return base::fail(base::ErrorKind::kCorrupt, what,
                    fmt::format(format, std::forward<Args>(args)...));
}

constexpr const char* kHeaderStep = "read frame header";
constexpr const char* kHelloStep = "read hello";
constexpr const char* kReplyStep = "read hello reply";

constexpr std::uint8_t kHelloHasSecret = 1U << 0U;
constexpr std::uint8_t kReplyWantsProof = 1U << 0U;

/// kPages: every page of a frame has one size, 4 KiB or 2 MiB.
bool pages_fill_payload(const FrameHeader& header) {
  return header.length == header.count * base::kSmallPage.value ||
         header.length == header.count * base::kHugePage.value;
}

std::uint64_t max_count(const FrameRule& rule, const FrameHeader& header) {
  const bool bounded = header.type == FrameType::kPages && header.round == kPostcopyRound;
  return bounded ? kMaxPagesPerPostcopyFrame : rule.max_count;
}

base::Outcome check_limits(const FrameRule& rule, const FrameHeader& header) {
  if (header.length < rule.min_length || header.length > rule.max_length) {
    return corrupt(kHeaderStep, "a {} frame of {} payload bytes, where {} to {} are allowed",
                   to_string(header.type), header.length, rule.min_length, rule.max_length);
  }
  const std::uint64_t most = max_count(rule, header);
  if (header.count < rule.min_count || header.count > most) {
    return corrupt(kHeaderStep, "a {} frame of {} pages, where {} to {} are allowed",
                   to_string(header.type), header.count, rule.min_count, most);
  }
  if (header.type == FrameType::kPages && !pages_fill_payload(header)) {
    return corrupt(kHeaderStep, "a pages frame of {} bytes that says it holds {} pages",
                   header.length, header.count);
  }
  return base::Done{};
}

base::Outcome check_header(const FrameHeader& header, LaneRole lane, Direction direction) {
  const FrameRule* rule = find_rule(header.type);
  if (rule == nullptr) {
    return corrupt(kHeaderStep, "frame type {} is unknown",
                   static_cast<std::uint16_t>(header.type));
  }
  if (((rule->lanes >> static_cast<unsigned>(lane)) & 1U) == 0) {
    return corrupt(kHeaderStep, "a {} frame does not belong on the {} lane", to_string(header.type),
                   to_string(lane));
  }
  if (rule->direction != direction) {
    return corrupt(kHeaderStep, "a {} frame goes {}, this one came {}", to_string(header.type),
                   to_string(rule->direction), to_string(direction));
  }
  TRY(check_limits(*rule, header));
  if ((header.flags & ~rule->flags) != 0) {
    return corrupt(kHeaderStep, "a {} frame with flags {:#x}, where {:#x} are allowed",
                   to_string(header.type), header.flags, rule->flags);
  }
  if (header.length == 0 && header.payload_crc != 0) {
    return corrupt(kHeaderStep, "an empty {} frame with payload checksum {:#010x}, not 0",
                   to_string(header.type), header.payload_crc);
  }
  return base::Done{};
}

base::Outcome check_magic(const char* step, std::span<const std::byte> payload, std::size_t least) {
  if (payload.size() < least || payload.size() > kMaxHandshakePayload) {
    return corrupt(step, "{} bytes, where {} to {} are allowed", payload.size(), least,
                   kMaxHandshakePayload);
  }
  if (std::memcmp(payload.data(), kMagic.data(), kMagic.size()) != 0) {
    return corrupt(step, "it does not begin with the magic of this protocol");
  }
  return base::Done{};
}

}  // namespace

HeaderBytes encode_header(const FrameHeader& header) {
  HeaderBytes bytes{};
  Writer writer(bytes);
  writer.number(static_cast<std::uint16_t>(header.type));
  writer.number(header.flags);
  writer.number(header.length);
  writer.number(header.first);
  writer.number(header.count);
  writer.number(header.round);
  writer.number(header.service_ns);
  writer.number(header.payload_crc);
  writer.number(base::crc32c(std::span(bytes).first(kOffsetHeaderCrc)));
  return bytes;
}

base::Expected<FrameHeader> decode_header(std::span<const std::byte, kHeaderBytes> bytes,
                                          LaneRole lane, Direction direction) {
  Reader reader(bytes);
  FrameHeader header;
  header.type = static_cast<FrameType>(reader.number<std::uint16_t>());
  header.flags = reader.number<std::uint16_t>();
  header.length = reader.number<std::uint32_t>();
  header.first = reader.number<std::uint64_t>();
  header.count = reader.number<std::uint64_t>();
  header.round = reader.number<std::uint32_t>();
  header.service_ns = reader.number<std::uint32_t>();
  header.payload_crc = reader.number<std::uint32_t>();
  const auto said = reader.number<std::uint32_t>();
  const std::uint32_t found = base::crc32c(bytes.first<kOffsetHeaderCrc>());
  if (said != found) {
    return corrupt(kHeaderStep, "the header's checksum is {:#010x}, its bytes give {:#010x}", said,
                   found);
  }
  TRY(check_header(header, lane, direction));
  return header;
}

std::vector<std::byte> encode_hello(const Hello& hello) {
  std::vector<std::byte> bytes(hello.proof.has_value() ? kProvenHelloBytes : kHelloBytes);
  Writer writer(bytes);
  writer.bytes(std::as_bytes(std::span(kMagic)));
  writer.number(hello.version_low);
  writer.number(hello.version_high);
  writer.number(static_cast<std::uint8_t>(hello.role));
  writer.number(hello.lane);
  writer.number(hello.has_secret ? kHelloHasSecret : std::uint8_t{0});
  writer.skip(1);
  writer.number(hello.features);
  writer.bytes(hello.id);
  writer.number(hello.epoch);
  writer.number(hello.incarnation);
  writer.bytes(hello.nonce);
  writer.number(hello.attempt);
  if (hello.proof.has_value()) {
    writer.skip(4);
    writer.bytes(*hello.proof);
  }
  return bytes;
}

base::Expected<Hello> decode_hello(std::span<const std::byte> payload) {
  TRY(check_magic(kHelloStep, payload, kHelloBytes));
  Reader reader(payload.subspan(kMagic.size()));
  Hello hello;
  hello.version_low = reader.number<std::uint16_t>();
  hello.version_high = reader.number<std::uint16_t>();
  const auto role = reader.number<std::uint8_t>();
  if (role > static_cast<std::uint8_t>(LaneRole::kBulk)) {
    return corrupt(kHelloStep, "lane role {}, where 0 to {} are known", role,
                   static_cast<std::uint8_t>(LaneRole::kBulk));
  }
  hello.role = static_cast<LaneRole>(role);
  hello.lane = reader.number<std::uint8_t>();
  const std::size_t lanes = hello.role == LaneRole::kBulk ? kMaxBulkLanes : 1;
  if (hello.lane >= lanes) {
    return corrupt(kHelloStep, "{} lane number {}, where fewer than {} exist",
                   to_string(hello.role), hello.lane, lanes);
  }
  hello.has_secret = (reader.number<std::uint8_t>() & kHelloHasSecret) != 0;
  reader.skip(1);
  hello.features = reader.number<std::uint64_t>();
  reader.bytes(hello.id);
  hello.epoch = reader.number<std::uint64_t>();
  hello.incarnation = reader.number<std::uint64_t>();
  reader.bytes(hello.nonce);
  hello.attempt = reader.number<std::uint32_t>();
  if (payload.size() >= kProvenHelloBytes) {
    std::array<std::byte, kMacBytes> proof{};
    Reader behind(payload.subspan(kHelloBytes));
    behind.bytes(proof);
    if (proof != std::array<std::byte, kMacBytes>{}) {
      hello.proof = proof;
    }
  }
  return hello;
}

std::array<std::byte, kHelloReplyBytes> encode_hello_reply(const HelloReply& reply) {
  std::array<std::byte, kHelloReplyBytes> bytes{};
  Writer writer(bytes);
  writer.bytes(std::as_bytes(std::span(kMagic)));
  writer.number(reply.version);
  writer.number(static_cast<std::uint8_t>(reply.phase));
  writer.number(reply.wants_proof ? kReplyWantsProof : std::uint8_t{0});
  writer.skip(4);
  writer.number(reply.features);
  writer.number(reply.incarnation);
  writer.bytes(reply.nonce);
  writer.bytes(reply.proof);
  return bytes;
}

base::Expected<HelloReply> decode_hello_reply(std::span<const std::byte> payload) {
  TRY(check_magic(kReplyStep, payload, kHelloReplyBytes));
  Reader reader(payload.subspan(kMagic.size()));
  HelloReply reply;
  reply.version = reader.number<std::uint16_t>();
  if (reply.version < kVersionLow || reply.version > kVersionHigh) {
    // What stands behind it is that version's business.
    return corrupt(kReplyStep, "wire version {}, where {} to {} were offered", reply.version,
                   kVersionLow, kVersionHigh);
  }
  const auto phase = reader.number<std::uint8_t>();
  if (phase > static_cast<std::uint8_t>(TargetPhase::kComplete)) {
    return corrupt(kReplyStep, "target phase {}, where 0 to {} are known", phase,
                   static_cast<std::uint8_t>(TargetPhase::kComplete));
  }
  reply.phase = static_cast<TargetPhase>(phase);
  reply.wants_proof = (reader.number<std::uint8_t>() & kReplyWantsProof) != 0;
  reader.skip(4);
  reply.features = reader.number<std::uint64_t>();
  reply.incarnation = reader.number<std::uint64_t>();
  reader.bytes(reply.nonce);
  reader.bytes(reply.proof);
  return reply;
}

std::optional<std::uint16_t> common_version(const Hello& hello) {
  const std::uint16_t low = std::max(hello.version_low, kVersionLow);
  const std::uint16_t high = std::min(hello.version_high, kVersionHigh);
  return low <= high ? std::optional(high) : std::nullopt;
}

}  // namespace towline::runtime::wire
