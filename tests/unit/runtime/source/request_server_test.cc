#include "runtime/source/request_server.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <future>
#include <memory>
#include <utility>

#include <doctest/doctest.h>

#include "base/fd.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;

/// An order that lets nobody tell it of a demand before the test allows it.
class BusyOrder final : public PushOrder {
 public:
  void on_demand(PageIndex page) override {
    told.set_value(page);
    allowed.get_future().wait();
  }

  void on_recently_dirty(std::span<const base::PageRange> /*round*/) override {}

  std::optional<base::PageRange> next(OwedPages& /*owed*/, PageCount /*limit*/) override {
    return std::nullopt;
  }

  std::promise<PageIndex> told;
  std::promise<void> allowed;
};

/// Eight pages in a file, the first of which is not zero.
struct Memory {
  Memory() {
    REQUIRE(fd.valid());
    REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(8 * base::kSmallPage.value)) == 0);
    REQUIRE(::pwrite(fd.get(), "x", 1, 0) == 1);
    Region ram;
    ram.name = "ram";
    ram.size = base::Bytes{8 * base::kSmallPage.value};
    ram.fd = fd.get();
    regions = {ram};
  }

  base::OwnedFd fd{::memfd_create("test", MFD_CLOEXEC)};
  std::vector<Region> regions;
};

TEST_CASE("a request is answered while whoever decides the push's order is busy") {
  const Memory ram;
  const MemoryLayout layout(ram.regions);
  const SourceMemory memory(ram.regions, layout);
  OwedPages owed(layout.pages());
  owed.add({PageIndex{0}, layout.pages()});
  BusyOrder order;
  SourceCounters counters;
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  Lane target(base::OwnedFd(ends[1]), wire::LaneRole::kUrgent, wire::Direction::kToTarget);
  RequestServer server(std::make_unique<Lane>(base::OwnedFd(ends[0]), wire::LaneRole::kUrgent,
                                              wire::Direction::kToSource),
                       memory, owed, order, counters, false, [](const base::Error& /*reason*/) {});
  server.open();

  wire::FrameHeader request;
  request.type = wire::FrameType::kRequest;
  request.count = 1;
  REQUIRE(target.send(request).ok());
  const auto answer = target.receive_header();
  REQUIRE(answer.ok());
  REQUIRE(answer.value().has_value());
  CHECK(answer.value()->type == wire::FrameType::kPages);
  CHECK_FALSE(owed.contains(PageIndex{0}));
  // Told all the same, and nothing else waits for that.
  CHECK(order.told.get_future().get() == PageIndex{0});
  order.allowed.set_value();
}

TEST_CASE("what was asked before the server began is answered, if that is open from the start") {
  const Memory ram;
  const MemoryLayout layout(ram.regions);
  const SourceMemory memory(ram.regions, layout);
  OwedPages owed(layout.pages());
  const auto order = make_window_order(layout.pages());
  SourceCounters counters;
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  Lane target(base::OwnedFd(ends[1]), wire::LaneRole::kUrgent, wire::Direction::kToTarget);
  wire::FrameHeader request;
  request.type = wire::FrameType::kRequest;
  request.count = 1;
  REQUIRE(target.send(request).ok());  // It is there when the thread begins.
  const RequestServer server(std::make_unique<Lane>(base::OwnedFd(ends[0]), wire::LaneRole::kUrgent,
                                                    wire::Direction::kToSource),
                             memory, owed, *order, counters, true,
                             [](const base::Error& /*reason*/) {});
  const auto answer = target.receive_header();
  REQUIRE(answer.ok());
  REQUIRE(answer.value().has_value());
}

}  // namespace
}  // namespace towline::runtime
