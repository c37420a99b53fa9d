#include "runtime/core/owed_pages.h"

#include <atomic>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;

PageRange pages(std::uint64_t first, std::uint64_t count) {
  return {PageIndex{first}, PageCount{count}};
}

TEST_CASE("a page that is owed can be taken once") {
  OwedPages owed(PageCount{100});
  CHECK_FALSE(owed.take(PageIndex{7}));
  owed.add(pages(7, 1));
  CHECK(owed.contains(PageIndex{7}));
  CHECK(owed.take(PageIndex{7}));
  CHECK_FALSE(owed.take(PageIndex{7}));
  CHECK_FALSE(owed.contains(PageIndex{7}));
  CHECK(owed.count() == PageCount{0});
}

TEST_CASE("adding what is owed already counts it once") {
  OwedPages owed(PageCount{1000});
  owed.add(pages(10, 500));
  owed.add(pages(400, 300));
  CHECK(owed.count() == PageCount{690});
  owed.clear();
  CHECK(owed.count() == PageCount{0});
  CHECK_FALSE(owed.take_run(PageIndex{0}, PageIndex{1000}, PageCount{1000}).has_value());
}

TEST_CASE("a run is the first one in the window, goes on over words and stops at its end") {
  OwedPages owed(PageCount{1000});
  owed.add(pages(60, 200));
  owed.add(pages(300, 5));
  CHECK(owed.take_run(PageIndex{0}, PageIndex{1000}, PageCount{1000}) == pages(60, 200));
  CHECK(owed.take_run(PageIndex{0}, PageIndex{1000}, PageCount{1000}) == pages(300, 5));
  CHECK_FALSE(owed.take_run(PageIndex{0}, PageIndex{1000}, PageCount{1000}).has_value());
}

TEST_CASE("a run is cut to its limit and to the end of the window, and the rest stays owed") {
  OwedPages owed(PageCount{1000});
  owed.add(pages(0, 1000));
  CHECK(owed.take_run(PageIndex{100}, PageIndex{1000}, PageCount{16}) == pages(100, 16));
  CHECK(owed.take_run(PageIndex{100}, PageIndex{1000}, PageCount{100}) == pages(116, 100));
  CHECK(owed.take_run(PageIndex{60}, PageIndex{70}, PageCount{64}) == pages(60, 10));
  CHECK(owed.take_run(PageIndex{990}, PageIndex{5000}, PageCount{64}) == pages(990, 10));
  CHECK_FALSE(owed.take_run(PageIndex{60}, PageIndex{70}, PageCount{64}).has_value());
  CHECK_FALSE(owed.take_run(PageIndex{0}, PageIndex{70}, PageCount{0}).has_value());
  CHECK_FALSE(owed.take_run(PageIndex{2000}, PageIndex{5000}, PageCount{64}).has_value());
  CHECK(owed.count() == PageCount{1000 - 136});
}

TEST_CASE("a run does not jump over a page that is not owed at a word's border") {
  OwedPages owed(PageCount{256});
  owed.add(pages(0, 64));
  owed.add(pages(65, 10));
  CHECK(owed.take_run(PageIndex{0}, PageIndex{256}, PageCount{256}) == pages(0, 64));
  CHECK(owed.take_run(PageIndex{0}, PageIndex{256}, PageCount{256}) == pages(65, 10));
}

TEST_CASE("taking runs at random takes what a set would hold") {
  std::mt19937_64 random(5);
  OwedPages owed(PageCount{700});
  std::set<std::uint64_t> model;
  for (int i = 0; i < 3000; ++i) {
    const std::uint64_t first = random() % 700;
    if (random() % 2 == 0) {
      const std::uint64_t count = 1 + random() % std::min<std::uint64_t>(90, 700 - first);
      owed.add(pages(first, count));
      for (std::uint64_t page = first; page < first + count; ++page) {
        model.insert(page);
      }
    } else if (const auto run = owed.take_run(PageIndex{first}, PageIndex{first + random() % 300},
                                              PageCount{1 + random() % 100})) {
      REQUIRE(run->first.value == *model.lower_bound(first));
      for (std::uint64_t page = run->first.value; page < run->end().value; ++page) {
        REQUIRE(model.erase(page) == 1);
      }
    }
    REQUIRE(owed.count().value == model.size());
  }
}

TEST_CASE("lanes that take at the same time share the pages out without taking one twice") {
  constexpr std::uint64_t kPages = 20'000;
  OwedPages owed(PageCount{kPages});
  owed.add(pages(0, kPages));
  std::vector<std::atomic<int>> taken(kPages);
  const auto lane = [&](unsigned seed) {
    std::mt19937_64 random(seed);
    while (owed.count().value != 0) {
      const PageIndex from{random() % 2 == 0 ? 0 : random() % kPages};
      if (random() % 4 == 0 && owed.take(from)) {
        ++taken[from.value];
      }
      const auto run = owed.take_run(from, PageIndex{kPages}, PageCount{1 + random() % 130});
      for (std::uint64_t i = 0; run && i < run->count.value; ++i) {
        ++taken[run->first.value + i];
      }
    }
  };
  std::thread first(lane, 1);
  std::thread second(lane, 2);
  lane(3);
  first.join();
  second.join();
  for (const std::atomic<int>& times : taken) {
    REQUIRE(times == 1);
  }
}

}  // namespace
}  // namespace towline::runtime
