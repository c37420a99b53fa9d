// Whole frames, as they come on a connection: cut anywhere, with any payload. Input: one byte for
// the lane and the direction, then the stream. Once as it is, and once with the checksums of its
// headers and payloads set right, or nothing behind them would ever be reached.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/ensure.h"
#include "base/fd.h"
#include "runtime/crc32c.h"
#include "runtime/lane.h"
#include "runtime/wire/frame_rules.h"

namespace base = towline::base;
namespace runtime = towline::runtime;
namespace wire = towline::runtime::wire;

namespace {

void put_number(std::vector<std::byte>& bytes, std::size_t at, std::uint32_t value) {
  for (std::size_t i = 0; i < 4; ++i) {
    bytes[at + i] = static_cast<std::byte>((value >> (8 * i)) & 0xffU);
  }
}

std::uint32_t number_at(std::span<const std::byte> bytes, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    value |= std::to_integer<std::uint32_t>(bytes[at + i]) << (8 * i);
  }
  return value;
}

void set_right(std::vector<std::byte>& bytes) {
  for (std::size_t at = 0; bytes.size() - at >= wire::kHeaderBytes;) {
    const std::size_t behind = at + wire::kHeaderBytes;
    const std::size_t length =
        std::min<std::size_t>(number_at(bytes, at + wire::kOffsetLength), bytes.size() - behind);
    const auto payload = std::span(bytes).subspan(behind, length);
    put_number(bytes, at + wire::kOffsetPayloadCrc, length == 0 ? 0 : runtime::crc32c(payload));
    put_number(bytes, at + wire::kOffsetHeaderCrc,
               runtime::crc32c(std::span(bytes).subspan(at, wire::kOffsetHeaderCrc)));
    at = behind + length;
  }
}

void read_all(const std::vector<std::byte>& bytes, wire::LaneRole role, wire::Direction way) {
  std::array<int, 2> ends{};
  ENSURE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0, "a connection");
  base::OwnedFd peer(ends[0]);
  runtime::Lane lane(base::OwnedFd(ends[1]), role, way);
  ENSURE(::write(peer.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()),
         "it takes the whole stream");
  peer.reset();
  while (true) {
    const auto header = lane.receive_header();
    if (!header.ok() || !header.value().has_value()) {
      return;
    }
    const wire::FrameRule* rule = wire::find_rule(header.value()->type);
    ENSURE(rule != nullptr && header.value()->length <= rule->max_length, "within the limits");
    const auto payload = lane.view_payload(*header.value());
    if (!payload.ok()) {
      return;
    }
    ENSURE(payload.value().size() == header.value()->length, "all of the payload");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0 || size > 66'000) {
    return 0;
  }
  const auto role = static_cast<wire::LaneRole>(data[0] % 3);
  const auto way = (data[0] & 4U) != 0 ? wire::Direction::kToSource : wire::Direction::kToTarget;
  const auto input = std::as_bytes(std::span(data + 1, size - 1));
  std::vector<std::byte> bytes(input.begin(), input.end());
  read_all(bytes, role, way);
  set_right(bytes);
  read_all(bytes, role, way);
  return 0;
}
