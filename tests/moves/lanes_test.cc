// How the lanes for pages are opened, against a target that is played by the test.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "base/thread.h"
#include "runtime/link/handshake.h"
#include "runtime/link/sockets.h"
#include "runtime/wire/codec.h"

namespace towline::tests {
namespace {

using runtime::Lane;
using runtime::wire::Direction;
using runtime::wire::FrameHeader;
using runtime::wire::FrameType;
using runtime::wire::LaneRole;

constexpr std::uint32_t kBulkLanes = 3;

/// A target that answers nobody before all lanes have greeted.
class PatientTarget {
 public:
  PatientTarget() {
    auto uri = runtime::Uri::parse("tcp:127.0.0.1:0");
    REQUIRE(uri.ok());
    auto listening = runtime::listen_at(uri.value());
    REQUIRE(listening.ok());
    listening_ = std::move(listening).value();
  }

  [[nodiscard]] const runtime::Uri& at() const { return listening_.at; }

  [[nodiscard]] std::vector<runtime::wire::Hello> take(std::size_t lanes) {
    std::vector<runtime::wire::Hello> greetings;
    std::vector<std::unique_ptr<Lane>> greeted;
    while (greeted.size() < lanes) {
      pollfd wait{.fd = listening_.fd.get(), .events = POLLIN, .revents = 0};
      REQUIRE(::poll(&wait, 1, -1) == 1);
      base::OwnedFd fd(::accept4(listening_.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
      REQUIRE(fd.valid());
      greeted.push_back(
          std::make_unique<Lane>(std::move(fd), LaneRole::kControl, Direction::kToTarget));
      greetings.push_back(read_hello(*greeted.back()));
    }
    for (const auto& lane : greeted) {
      answer(*lane);
    }
    kept_ = std::move(greeted);
    return greetings;
  }

 private:
  static runtime::wire::Hello read_hello(Lane& lane) {
    const auto header = lane.receive_header();
    REQUIRE(header.ok());
    REQUIRE(header.value().has_value());
    const auto payload = lane.receive_payload(*header.value());
    REQUIRE(payload.ok());
    const auto hello = runtime::wire::decode_hello(payload.value());
    REQUIRE(hello.ok());
    return hello.value();
  }

  static void answer(Lane& lane) {
    FrameHeader header;
    header.type = FrameType::kHelloReply;
    const runtime::wire::HelloReply reply;
    REQUIRE(lane.send(header, runtime::wire::encode_hello_reply(reply)).ok());
    header.type = FrameType::kLaneReady;
    REQUIRE(lane.send(header).ok());
  }

  runtime::Listening listening_;
  std::vector<std::unique_ptr<Lane>> kept_;
};

TEST_CASE("the lanes for pages greet all at once: one does not wait for another's answer") {
  PatientTarget target;
  std::vector<runtime::wire::Hello> greetings;
  bool meanwhile = false;
  const runtime::LaneIdentity identity;
  const runtime::MigrationOptions options;
  const auto opened = runtime::open_data_lanes(target.at(), options, identity, kBulkLanes, {}, [&] {
    greetings = target.take(1 + kBulkLanes);
    meanwhile = true;
    return base::Outcome(base::Done{});
  });
  REQUIRE(opened.ok());
  CHECK(meanwhile);
  CHECK(opened.value().urgent->role() == LaneRole::kUrgent);
  CHECK(opened.value().bulk.size() == kBulkLanes);
  std::vector<std::string> names;
  for (const auto& hello : greetings) {
    names.push_back(hello.role == LaneRole::kUrgent ? "urgent" : std::to_string(hello.lane));
  }
  std::sort(names.begin(), names.end());
  CHECK(names == std::vector<std::string>{"0", "1", "2", "urgent"});
}

TEST_CASE("a lane that another process answers is of no use, whatever it can prove") {
  PatientTarget target;  // Of incarnation 0.
  runtime::LaneIdentity identity;
  identity.target_incarnation = 7;
  const auto opened = runtime::open_data_lanes(target.at(), runtime::MigrationOptions{}, identity,
                                               kBulkLanes, {}, [&] {
                                                 const auto greetings = target.take(1 + kBulkLanes);
                                                 CHECK(greetings.size() == 1 + kBulkLanes);
                                                 return base::Outcome(base::Done{});
                                               });
  REQUIRE_FALSE(opened.ok());
  CHECK(base::to_string(opened.error()).find("another process") != std::string::npos);
}

TEST_CASE("one lane that is refused fails them all, and its reason is told") {
  auto uri = runtime::Uri::parse("tcp:127.0.0.1:0");
  REQUIRE(uri.ok());
  auto listening = runtime::listen_at(uri.value());
  REQUIRE(listening.ok());
  const runtime::Uri gone = listening.value().at;
  listening.value().fd.reset();  // Nobody listens there any more.
  const auto opened = runtime::open_data_lanes(gone, runtime::MigrationOptions{},
                                               runtime::LaneIdentity{}, kBulkLanes, {});
  REQUIRE_FALSE(opened.ok());
  CHECK(base::to_string(opened.error()).find(gone.to_string()) != std::string::npos);
}

}  // namespace
}  // namespace towline::tests
