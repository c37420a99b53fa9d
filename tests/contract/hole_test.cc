// What counts as data and what as a hole when the source looks for something to send.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include "tests/contract/support.h"

namespace towline::contract {
namespace {

using uffd::Extent;
using uffd::next_data;

TEST_CASE("written pages are data, cut at the end that was asked for") {
  const TwoMappings memory(16);
  memory.fill(3, 1);
  memory.fill(4, 1);
  memory.fill(9, 1);
  const std::uint64_t end = 16 * kPage;
  const auto first = next_data(memory.fd.get(), 0, end);
  REQUIRE(first.ok());
  CHECK(first.value() == Extent{3 * kPage, 2 * kPage});
  const auto inside = next_data(memory.fd.get(), 4 * kPage, end);
  REQUIRE(inside.ok());
  CHECK(inside.value() == Extent{4 * kPage, kPage});
  const auto cut = next_data(memory.fd.get(), 0, 4 * kPage);
  REQUIRE(cut.ok());
  CHECK(cut.value() == Extent{3 * kPage, kPage});
  const auto before = next_data(memory.fd.get(), 5 * kPage, 9 * kPage);
  REQUIRE(before.ok());
  CHECK_FALSE(before.value());
  const auto behind = next_data(memory.fd.get(), 10 * kPage, end);
  REQUIRE(behind.ok());
  CHECK_FALSE(behind.value());
}

TEST_CASE("nothing is between an end and itself") {
  const TwoMappings memory(1);
  memory.fill(0, 1);
  const auto none = next_data(memory.fd.get(), kPage, kPage);
  REQUIRE(none.ok());
  CHECK_FALSE(none.value());
}

TEST_CASE("a page that was only allocated is a hole") {
  const TwoMappings memory(4);
  const auto allocated = uffd::allocate(memory.fd.get(), {0, 4 * kPage});
  REQUIRE(allocated.ok());
  const auto none = next_data(memory.fd.get(), 0, 4 * kPage);
  REQUIRE(none.ok());
  CHECK_FALSE(none.value());
}

TEST_CASE("reading a hole through a mapping makes it data, reading it with pread does not") {
  const TwoMappings memory(2);
  std::byte one{};
  REQUIRE(::pread(memory.fd.get(), &one, 1, 0) == 1);
  const auto still = next_data(memory.fd.get(), 0, 2 * kPage);
  REQUIRE(still.ok());
  CHECK_FALSE(still.value());
  (void)peek(memory.alias.bytes().data());
  const auto now = next_data(memory.fd.get(), 0, 2 * kPage);
  REQUIRE(now.ok());
  CHECK(now.value() == Extent{0, kPage});
}

TEST_CASE("allocating over a page that has bytes keeps them") {
  const TwoMappings memory(2);
  memory.fill(1, 8);
  REQUIRE(uffd::allocate(memory.fd.get(), {0, 2 * kPage}).ok());
  CHECK(all_bytes(memory.alias.bytes({kPage, kPage}).data(), kPage, 8));
}

// SourceMemory reads huge pages so: it would take pages, or die of one that is not free.
TEST_CASE("reading a hole of a hugetlb file with pread takes no huge page") {
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(kHuge, kHugeMemfd);
  std::vector<std::byte> read(kHuge, std::byte{1});
  CHECK(::pread(fd.get(), read.data(), read.size(), 0) == static_cast<ssize_t>(kHuge));
  CHECK(all_bytes(read.data(), read.size(), 0));

  struct stat file {};

  REQUIRE(::fstat(fd.get(), &file) == 0);
  CHECK(file.st_blocks == 0);
}

TEST_CASE("a hugetlb file shows no holes: every byte counts as data") {
  const HugePages pages(2);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(2 * kHuge, kHugeMemfd);
  const auto all = next_data(fd.get(), 0, 2 * kHuge);
  REQUIRE(all.ok());
  CHECK(all.value() == Extent{0, 2 * kHuge});
}

}  // namespace
}  // namespace towline::contract
