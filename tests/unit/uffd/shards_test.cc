#include "uffd/shards.h"

#include <array>

#include <doctest/doctest.h>

namespace towline::uffd {
namespace {

constexpr std::uint64_t kMiB = 1U << 20U;

Range range(std::uintptr_t start, std::uint64_t length, Bytes page_size = base::kSmallPage) {
  Range made;
  made.start = HostAddress{start};
  made.length = Bytes{length};
  made.page_size = page_size;
  return made;
}

TEST_CASE("a range is cut at multiples of the shard size and its rest is a shard too") {
  const std::array ranges{range(0x100000, 5 * kMiB)};
  const auto shards = plan_shards(ranges, {.shard_size = Bytes{2 * kMiB}, .most_shards = 16});
  REQUIRE(shards.size() == 3);
  CHECK(shards[0] == Shard{HostAddress{0x100000}, Bytes{2 * kMiB}, base::kSmallPage, 0});
  CHECK(shards[1] == Shard{HostAddress{0x300000}, Bytes{2 * kMiB}, base::kSmallPage, 0});
  CHECK(shards[2] == Shard{HostAddress{0x500000}, Bytes{kMiB}, base::kSmallPage, 0});
}

TEST_CASE("no shard spans two ranges, even when they touch") {
  const std::array ranges{range(0x100000, kMiB), range(0x200000, kMiB)};
  const auto shards = plan_shards(ranges, {.shard_size = Bytes{64 * kMiB}, .most_shards = 16});
  REQUIRE(shards.size() == 2);
  CHECK(shards[0].end() == shards[1].start.value);
  CHECK(shards[1].range == 1);
}

TEST_CASE("shards come sorted by address whatever the order of the ranges") {
  const std::array ranges{range(0x900000, kMiB), range(0x100000, kMiB)};
  const auto shards = plan_shards(ranges);
  REQUIRE(shards.size() == 2);
  CHECK(shards[0].range == 1);
  CHECK(shards[1].range == 0);
}

TEST_CASE("shards grow when there would be too many of them") {
  const std::array ranges{range(0x40000000, 64 * kMiB)};
  const auto shards = plan_shards(ranges, {.shard_size = Bytes{kMiB}, .most_shards = 16});
  REQUIRE(shards.size() == 16);
  CHECK(shards[0].length == Bytes{4 * kMiB});
}

TEST_CASE("more ranges than shards allowed still get one each") {
  const std::array ranges{range(0x100000, kMiB), range(0x300000, kMiB), range(0x500000, kMiB)};
  CHECK(plan_shards(ranges, {.shard_size = Bytes{kMiB}, .most_shards = 1}).size() == 3);
}

TEST_CASE("a shard of huge pages holds whole ones though the wanted size does not") {
  const std::array ranges{range(0x40000000, 12 * kMiB, base::kHugePage)};
  const auto shards = plan_shards(ranges, {.shard_size = Bytes{3 * kMiB}, .most_shards = 16});
  REQUIRE(shards.size() == 3);
  CHECK(shards[0].length == Bytes{4 * kMiB});
}

TEST_CASE("an empty range makes no shard") {
  const std::array ranges{range(0x100000, 0)};
  CHECK(plan_shards(ranges).empty());
}

TEST_CASE("every address finds the shard that contains it, and no other does") {
  const std::array ranges{range(0x100000, 2 * kMiB), range(0x500000, kMiB)};
  const auto shards = plan_shards(ranges, {.shard_size = Bytes{kMiB}, .most_shards = 16});
  REQUIRE(shards.size() == 3);
  CHECK_FALSE(find_shard(shards, HostAddress{0xfffff}));
  CHECK(find_shard(shards, HostAddress{0x100000}) == 0);
  CHECK(find_shard(shards, HostAddress{0x1fffff}) == 0);
  CHECK(find_shard(shards, HostAddress{0x200000}) == 1);
  CHECK_FALSE(find_shard(shards, HostAddress{0x300000}));
  CHECK_FALSE(find_shard(shards, HostAddress{0x4fffff}));
  CHECK(find_shard(shards, HostAddress{0x5fffff}) == 2);
  CHECK_FALSE(find_shard(shards, HostAddress{0x600000}));
  CHECK_FALSE(find_shard({}, HostAddress{0x100000}));
}

}  // namespace
}  // namespace towline::uffd
