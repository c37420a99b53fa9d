#include "runtime/source/bulk_sender.h"

#include <sys/socket.h>

#include <array>
#include <future>
#include <memory>
#include <string_view>
#include <utility>

#include <doctest/doctest.h>

#include "base/fd.h"
#include "runtime/core/push_order.h"

using namespace towline;
using namespace towline::runtime;

namespace {

struct Pair {
  base::OwnedFd near;
  base::OwnedFd far;
};

Pair connected() {
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  return Pair{base::OwnedFd(ends[0]), base::OwnedFd(ends[1])};
}

/// Two huge pages whose file cannot be read.
std::vector<Region> unreadable() {
  Region ram;
  ram.name = "ram.low";
  ram.size = base::Bytes{2 * base::kHugePage.value};
  ram.page_size = base::kHugePage;
  ram.backing = Backing::kHugetlb;
  return {ram};
}

}  // namespace

TEST_CASE("pages that the push cannot read are owed again, and the reason is told") {
  const std::vector<Region> regions = unreadable();
  const MemoryLayout layout(regions);
  const SourceMemory memory(regions, layout);
  OwedPages owed(layout.pages());
  owed.add(base::PageRange{base::PageIndex{0}, layout.pages()});
  SourceCounters counters;
  BulkSender sender(memory, owed, counters, 0);
  Pair lane = connected();
  sender.add_lane(std::make_unique<Lane>(std::move(lane.near), wire::LaneRole::kBulk,
                                         wire::Direction::kToSource));

  const auto order = make_address_order(layout.pages());
  std::promise<base::Error> reason;
  sender.start_push(*order, false, [&](std::uint8_t, std::uint32_t, const base::Error& error) {
    reason.set_value(error);
  });
  CHECK(std::string_view(reason.get_future().get().operation) == "pread");
  CHECK(owed.count() == layout.pages());
}
