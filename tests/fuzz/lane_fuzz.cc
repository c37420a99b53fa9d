// Whole frames, as they come on a connection: cut anywhere, with any payload. Input: one byte for
// the lane and the direction, then the stream. Once as it is, and once with the checksums of its
// headers and payloads set right, or nothing behind them would ever be reached.
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <vector>

#include "base/ensure.h"
#include "base/fd.h"
#include "runtime/link/lane.h"
#include "runtime/wire/frame_rules.h"
#include "tests/fuzz/frames.h"

namespace base = towline::base;
namespace runtime = towline::runtime;
namespace wire = towline::runtime::wire;

namespace {

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
  towline::fuzz::set_checksums(bytes);
  read_all(bytes, role, way);
  return 0;
}
