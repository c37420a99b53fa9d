// A header comes from a foreign host, on any lane, either way. What is accepted keeps its limits
// and is encoded to the very bytes that came.
#include <algorithm>
#include <cstdint>

#include "base/crc32c.h"
#include "base/ensure.h"
#include "runtime/wire/codec.h"
#include "runtime/wire/frame_rules.h"

namespace wire = towline::runtime::wire;

namespace {

void check_accepted(const wire::FrameHeader& header, const wire::HeaderBytes& bytes,
                    wire::LaneRole lane, wire::Direction direction) {
  const wire::FrameRule* rule = wire::find_rule(header.type);
  ENSURE(rule != nullptr, "an accepted header has a known type");
  ENSURE(rule->direction == direction, "it goes the right way");
  ENSURE(((rule->lanes >> static_cast<unsigned>(lane)) & 1U) != 0, "on the right lane");
  ENSURE(header.length >= rule->min_length && header.length <= rule->max_length, "length");
  ENSURE(header.count >= rule->min_count && header.count <= rule->max_count, "count");
  ENSURE((header.flags & ~rule->flags) == 0, "flags");
  ENSURE(header.length != 0 || header.payload_crc == 0, "an empty payload has no checksum");
  ENSURE(wire::encode_header(header) == bytes, "an accepted header has one encoding");
}

void decode_everywhere(const wire::HeaderBytes& bytes) {
  for (const auto lane :
       {wire::LaneRole::kControl, wire::LaneRole::kUrgent, wire::LaneRole::kBulk}) {
    for (const auto direction : {wire::Direction::kToTarget, wire::Direction::kToSource}) {
      const auto header = wire::decode_header(bytes, lane, direction);
      if (header.ok()) {
        check_accepted(header.value(), bytes, lane, direction);
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  wire::HeaderBytes bytes{};
  const auto input = std::as_bytes(std::span(data, std::min(size, wire::kHeaderBytes)));
  std::copy(input.begin(), input.end(), bytes.begin());
  decode_everywhere(bytes);
  // Once more with a good checksum, or nothing behind it would ever be reached.
  const std::uint32_t crc = towline::base::crc32c(std::span(bytes).first(wire::kOffsetHeaderCrc));
  for (std::size_t i = 0; i < 4; ++i) {
    bytes[wire::kOffsetHeaderCrc + i] = static_cast<std::byte>((crc >> (8 * i)) & 0xffU);
  }
  decode_everywhere(bytes);
  return 0;
}
