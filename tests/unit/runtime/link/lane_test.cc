#include "runtime/link/lane.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

using wire::Direction;
using wire::FrameHeader;
using wire::FrameType;
using wire::HeaderBytes;
using wire::LaneRole;

/// A target's urgent lane and its source's end. The socket between them takes few frames.
struct NarrowLane {
  NarrowLane() {
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    // No multiple of a frame fits in a piece of this buffer: some frame is cut.
    constexpr int kFewBytes = 2500;
    REQUIRE(::setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &kFewBytes, sizeof kFewBytes) == 0);
    target =
        std::make_unique<Lane>(base::OwnedFd(ends[0]), LaneRole::kUrgent, Direction::kToTarget);
    source =
        std::make_unique<Lane>(base::OwnedFd(ends[1]), LaneRole::kUrgent, Direction::kToSource);
  }

  /// Sends requests for pages [first, first + count) at once, as many as go.
  Lane::SentAtOnce send_some(std::uint64_t first, std::uint64_t count) const {
    std::vector<HeaderBytes> frames;
    for (std::uint64_t page = first; page < first + count; ++page) {
      frames.push_back(wire::encode_header(request(page)));
    }
    const auto sent = target->send_at_once(frames);
    REQUIRE(sent.ok());
    return sent.value();
  }

  static FrameHeader request(std::uint64_t page) {
    FrameHeader header;
    header.type = FrameType::kRequest;
    header.first = page;
    header.count = 1;
    return header;
  }

  [[nodiscard]] std::uint64_t receive() const {
    const auto header = source->receive_header();
    REQUIRE(header.ok());
    REQUIRE(header.value().has_value());
    REQUIRE(header.value()->type == FrameType::kRequest);
    return header.value()->first;
  }

  std::unique_ptr<Lane> target;
  std::unique_ptr<Lane> source;
};

/// Sends until one frame has left in part, and reads those before it. Returns the next page.
std::uint64_t cut_a_frame(const NarrowLane& lane) {
  std::uint64_t next = 0;
  std::uint64_t read = 0;
  // The kernel takes pieces of some size while there is room: another number of frames in front of
  // them, another end.
  for (std::uint64_t before = 1; lane.target->bytes_sent() % wire::kHeaderBytes == 0; ++before) {
    REQUIRE(before < 100);
    for (; read < next; ++read) {
      REQUIRE(lane.receive() == read);
    }
    next += lane.send_some(next, before).frames;
    next += lane.send_some(next, 64).frames;
  }
  for (; read < next - 1; ++read) {
    REQUIRE(lane.receive() == read);
  }
  return next;
}

TEST_CASE("a frame that left in part is whole before another one follows") {
  const NarrowLane lane;
  const std::uint64_t next = cut_a_frame(lane);
  SUBCASE("by frames that are sent at once") {
    CHECK(lane.send_some(next, 64).frames > 0);
  }
  SUBCASE("by one that waits until it is sent") {
    REQUIRE(lane.target->send(NarrowLane::request(next)).ok());
  }
  SUBCASE("by none: the rest goes alone") {
    const auto rest = lane.target->send_at_once({});
    REQUIRE(rest.ok());
    CHECK(rest.value().frames == 0);
    CHECK(rest.value().complete);
    REQUIRE(lane.target->send(NarrowLane::request(next)).ok());
  }
  CHECK(lane.receive() == next - 1);
  CHECK(lane.receive() == next);
}

TEST_CASE("frames that are sent at once arrive whole, each once and in their order") {
  constexpr std::uint64_t kRequests = 5000;
  const NarrowLane lane;
  std::uint64_t arrived = 0;
  std::thread reader([&] {
    while (arrived < kRequests) {
      const auto header = lane.source->receive_header();
      if (!header.ok() || !header.value().has_value() || header.value()->first != arrived) {
        return lane.source->shutdown();
      }
      ++arrived;
    }
  });
  std::uint64_t sent = 0;
  bool complete = false;
  while (sent < kRequests || !complete) {
    std::vector<HeaderBytes> frames;
    for (std::uint64_t page = sent; page < std::min(sent + 64, kRequests); ++page) {
      frames.push_back(wire::encode_header(NarrowLane::request(page)));
    }
    const auto put = lane.target->send_at_once(frames);
    if (!put.ok()) {
      break;
    }
    sent += put.value().frames;
    complete = put.value().complete;
    std::this_thread::yield();
  }
  reader.join();
  CHECK(arrived == kRequests);
  CHECK(lane.target->bytes_sent() == kRequests * wire::kHeaderBytes);
}

TEST_CASE("who sends at once does not wait for another sender") {
  const NarrowLane lane;
  const std::vector<std::byte> much(200'000);
  std::thread other([&] {
    FrameHeader header;
    header.type = FrameType::kPages;
    [[maybe_unused]] const auto sent = lane.target->send(header, much);
  });
  pollfd first{.fd = lane.source->fd(), .events = POLLIN, .revents = 0};
  REQUIRE(::poll(&first, 1, -1) == 1);      // It has begun, and cannot end before this is read.
  CHECK(lane.send_some(0, 1).frames == 0);  // It would hang here.
  lane.target->shutdown();
  other.join();
}

TEST_CASE("a lane that broke says so to who sends at once") {
  const NarrowLane lane;
  lane.source->shutdown();
  const std::array<HeaderBytes, 1> frames = {wire::encode_header(NarrowLane::request(1))};
  const auto sent = lane.target->send_at_once(frames);
  REQUIRE_FALSE(sent.ok());
  CHECK(sent.error().kind == base::ErrorKind::kDisconnected);
}

}  // namespace
}  // namespace towline::runtime
