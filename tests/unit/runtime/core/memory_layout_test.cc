#include "runtime/core/memory_layout.h"

#include <limits>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;

Region region(const char* name, std::uint64_t start, base::Bytes size, base::Bytes page_size) {
  Region one;
  one.name = name;
  one.start = base::GuestAddress{start};
  one.size = size;
  one.page_size = page_size;
  return one;
}

/// Three regions: pages 0..159, 160..163 (huge), 164..179.
MemoryLayout three_regions() {
  using base::operator""_KiB;
  using base::operator""_MiB;
  return MemoryLayout({region("ram.low", 0, 640_KiB, base::kSmallPage),
                       region("ram.huge", 1U << 30U, 8_MiB, base::kHugePage),
                       region("rom", 1U << 20U, 64_KiB, base::kSmallPage)});
}

PageRange pages(std::uint64_t first, std::uint64_t count) {
  return {PageIndex{first}, PageCount{count}};
}

constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

TEST_CASE("a page has its region's size, and a number of pages the mean of them") {
  const MemoryLayout layout = three_regions();
  CHECK(layout.page_size(PageIndex{159}) == base::kSmallPage);
  CHECK(layout.page_size(PageIndex{160}) == base::kHugePage);
  CHECK(layout.page_size(PageIndex{164}) == base::kSmallPage);
  CHECK(layout.largest_page() == base::kHugePage);
  CHECK(layout.mean_page() == base::Bytes{layout.bytes().value / 180});
  const MemoryLayout one({region("ram", 0, base::Bytes{8U << 20U}, base::kHugePage)});
  CHECK(one.mean_page() == base::kHugePage);
  CHECK(MemoryLayout().mean_page() == base::kSmallPage);
}

TEST_CASE("the page space is the regions one after the other, each in its own page size") {
  const MemoryLayout layout = three_regions();
  CHECK(layout.pages() == PageCount{180});
  CHECK(layout.bytes() == base::Bytes{(640U << 10U) + (8U << 20U) + (64U << 10U)});
  REQUIRE(layout.entries().size() == 3);
  CHECK(layout.entries()[1].first == PageIndex{160});
  CHECK(layout.entries()[1].count == PageCount{4});
  CHECK(layout.entries()[2].first == PageIndex{164});
  CHECK(layout.entries()[2].name == "rom");
}

TEST_CASE("a page is found in its region at the offset that its page size gives") {
  const MemoryLayout layout = three_regions();
  CHECK(layout.locate(PageIndex{0}).region == 0);
  CHECK(layout.locate(PageIndex{159}).region == 0);
  CHECK(layout.locate(PageIndex{159}).offset == 159U * 4096);
  CHECK(layout.locate(PageIndex{160}).region == 1);
  CHECK(layout.locate(PageIndex{160}).offset == 0);
  CHECK(layout.locate(PageIndex{163}).offset == 3U << 21U);
  CHECK(layout.locate(PageIndex{164}).region == 2);
  CHECK(layout.region_of(PageIndex{179}) == 2);
}

TEST_CASE("a range is valid only inside one region") {
  const MemoryLayout layout = three_regions();
  CHECK(layout.valid(pages(0, 160)));
  CHECK(layout.valid(pages(160, 4)));
  CHECK(layout.valid(pages(179, 1)));
  CHECK_FALSE(layout.valid(pages(0, 161)));
  CHECK_FALSE(layout.valid(pages(159, 2)));
  CHECK_FALSE(layout.valid(pages(164, 17)));
}

TEST_CASE("an empty range, one behind the end and one that would overflow are not valid") {
  const MemoryLayout layout = three_regions();
  CHECK_FALSE(layout.valid(pages(3, 0)));
  CHECK_FALSE(layout.valid(pages(180, 1)));
  CHECK_FALSE(layout.valid(pages(kMost, 1)));
  CHECK_FALSE(layout.valid(pages(3, kMost)));
  CHECK_FALSE(layout.valid(pages(kMost, kMost)));
  CHECK_FALSE(MemoryLayout().valid(pages(0, 1)));
}

TEST_CASE("a range is clipped where its region ends") {
  const MemoryLayout layout = three_regions();
  CHECK(layout.clip(pages(150, 100)) == pages(150, 10));
  CHECK(layout.clip(pages(160, kMost)) == pages(160, 4));
  CHECK(layout.clip(pages(170, 2)) == pages(170, 2));
}

}  // namespace
}  // namespace towline::runtime
