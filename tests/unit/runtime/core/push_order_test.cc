#include "runtime/core/push_order.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include "base/thread.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;

constexpr PageCount kPages{100'000};
constexpr PageCount kFrame{16};

PageRange pages(std::uint64_t first, std::uint64_t count) {
  return {PageIndex{first}, PageCount{count}};
}

struct AllOwed : OwedPages {
  AllOwed() : OwedPages(kPages) { add({PageIndex{0}, kPages}); }
};

/// The next `count` pages that the order would send.
std::vector<std::uint64_t> next_pages(PushOrder& order, OwedPages& owed, std::size_t count) {
  std::vector<std::uint64_t> sent;
  while (sent.size() < count) {
    const auto run = order.next(owed, PageCount{std::min(kFrame.value, count - sent.size())});
    if (!run) {
      break;
    }
    for (std::uint64_t page = run->first.value; page < run->end().value; ++page) {
      sent.push_back(page);
    }
  }
  return sent;
}

/// How many of the next pages lie in the window of the last demand: the rest goes from page 0 on.
std::size_t window_size(PushOrder& order, OwedPages& owed) {
  std::size_t size = 0;
  for (const std::uint64_t page : next_pages(order, owed, 5000)) {
    size += page >= 10'000 ? 1 : 0;
  }
  return size;
}

TEST_CASE("without demands the pages go in address order") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  CHECK(next_pages(*order, owed, 4) == std::vector<std::uint64_t>{0, 1, 2, 3});
  CHECK(next_pages(*order, owed, 2) == std::vector<std::uint64_t>{4, 5});
}

TEST_CASE("a demand brings the pages after it before all others") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  (void)next_pages(*order, owed, 3);
  order->on_demand(PageIndex{50'000});
  const auto sent = next_pages(*order, owed, 9);
  CHECK(sent == std::vector<std::uint64_t>{50'001, 50'002, 50'003, 50'004, 50'005, 50'006, 50'007,
                                           50'008, 3});
}

TEST_CASE("the window doubles while a sequential walk keeps hitting its edge") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  std::uint64_t demand = 20'000;
  std::size_t size = 8;
  for (int i = 0; i < 6; ++i, size *= 2) {
    order->on_demand(PageIndex{demand});
    (void)owed.take(PageIndex{demand});
    CHECK(next_pages(*order, owed, size).back() == demand + size);
    demand += size + 1;
  }
  CHECK(size == 512);
}

TEST_CASE("the window stops growing at 1024 pages") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  std::uint64_t demand = 20'000;
  for (const std::uint64_t size : {8U, 16U, 32U, 64U, 128U, 256U, 512U, 1024U, 1024U}) {
    order->on_demand(PageIndex{demand});
    CHECK(next_pages(*order, owed, size).back() == demand + size);
    demand += size + 1;
  }
  CHECK(next_pages(*order, owed, 1) == std::vector<std::uint64_t>{0});
}

TEST_CASE("a walk that is faster than the push is followed too") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  for (std::uint64_t demand = 20'000; demand < 20'005; ++demand) {
    order->on_demand(PageIndex{demand});
  }
  CHECK(window_size(*order, owed) == 128);
}

TEST_CASE("a descending walk is followed downwards from its third demand on") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  for (const std::uint64_t demand : {30'000U, 29'999U, 29'998U}) {
    order->on_demand(PageIndex{demand});
    (void)owed.take(PageIndex{demand});
  }
  const auto sent = next_pages(*order, owed, 16);
  CHECK(std::set<std::uint64_t>(sent.begin(), sent.end()).size() == 16);
  CHECK(*std::min_element(sent.begin(), sent.end()) == 29'982);
  CHECK(*std::max_element(sent.begin(), sent.end()) == 29'997);
  order->on_demand(PageIndex{29'981});
  CHECK(*std::min_element(sent.begin(), sent.end()) == 29'982);
  const auto later = next_pages(*order, owed, 32);
  CHECK(*std::min_element(later.begin(), later.end()) == 29'949);
}

TEST_CASE("a strided walk is followed by its stride, page by page, and its window doubles") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  for (std::uint64_t i = 0; i < 3; ++i) {
    order->on_demand(PageIndex{20'000 + 64 * i});
  }
  std::vector<std::uint64_t> expected;
  for (std::uint64_t i = 3; i < 19; ++i) {
    expected.push_back(20'000 + 64 * i);
  }
  CHECK(next_pages(*order, owed, 16) == expected);
  order->on_demand(PageIndex{20'000 + 64 * 19});
  expected.clear();
  for (std::uint64_t i = 20; i < 52; ++i) {
    expected.push_back(20'000 + 64 * i);
  }
  CHECK(next_pages(*order, owed, 32) == expected);
}

TEST_CASE("a stride is followed downwards as well") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  for (std::uint64_t i = 0; i < 3; ++i) {
    order->on_demand(PageIndex{20'000 - 7 * i});
  }
  CHECK(next_pages(*order, owed, 3) == std::vector<std::uint64_t>{19'979, 19'972, 19'965});
}

TEST_CASE("a miss near by collapses the window to its smallest size") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  for (std::uint64_t demand = 20'000; demand < 20'006; ++demand) {
    order->on_demand(PageIndex{demand});
  }
  order->on_demand(PageIndex{22'000});
  // Eight for the stream that begins and eight for the one that has to earn its size again.
  CHECK(window_size(*order, owed) == 16);
}

TEST_CASE("two streams near each other grow side by side") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  for (std::uint64_t i = 0; i < 6; ++i) {
    order->on_demand(PageIndex{20'000 + i});
    order->on_demand(PageIndex{21'500 + i});
  }
  CHECK(window_size(*order, owed) >= 256);
}

TEST_CASE("a second waiter for the same page changes nothing") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  for (int i = 0; i < 5; ++i) {
    order->on_demand(PageIndex{20'000});
  }
  CHECK(window_size(*order, owed) == 8);
}

TEST_CASE("of nine streams the one that was quiet longest is forgotten") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  for (std::uint64_t stream = 0; stream < 9; ++stream) {
    order->on_demand(PageIndex{10'000 + 10'000 * stream});
  }
  const auto sent = next_pages(*order, owed, 8 * 8 + 1);
  CHECK(sent.front() == 90'001);
  CHECK(sent.back() == 0);
  CHECK(std::find(sent.begin(), sent.end(), 10'001) == sent.end());
  CHECK(std::find(sent.begin(), sent.end(), 20'001) != sent.end());
}

TEST_CASE("recently dirtied pages go after the demanded ones and before the rest") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  order->on_recently_dirty(std::vector{pages(600, 1), pages(700, 2)});
  order->on_demand(PageIndex{50'000});
  const auto sent = next_pages(*order, owed, 12);
  CHECK(sent[7] == 50'008);
  CHECK(std::vector<std::uint64_t>(sent.begin() + 8, sent.end()) ==
        std::vector<std::uint64_t>{600, 700, 701, 0});
}

TEST_CASE("the last dirtied pages go before those of earlier rounds, each round in its order") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  order->on_recently_dirty(std::vector{pages(100, 1), pages(200, 1)});
  order->on_recently_dirty(std::vector{pages(50, 1), pages(200, 2)});
  order->on_recently_dirty(std::vector{pages(300, 1)});
  CHECK(next_pages(*order, owed, 6) == std::vector<std::uint64_t>{300, 50, 200, 201, 100, 0});
}

TEST_CASE("however much was dirtied before, the last delta is remembered, and first") {
  constexpr PageCount kMany{1U << 20U};
  const auto order = make_window_order(kMany);
  OwedPages owed(kMany);
  owed.add({PageIndex{0}, kMany});
  std::vector<PageRange> every_second;
  for (std::uint64_t page = 0; page < kMany.value / 2; page += 2) {
    every_second.push_back(pages(page, 1));
  }
  order->on_recently_dirty(every_second);
  order->on_recently_dirty(every_second);
  order->on_recently_dirty(std::vector{pages(900'000, 1), pages(1'000'000, 2)});
  CHECK(next_pages(*order, owed, 3) == std::vector<std::uint64_t>{900'000, 1'000'000, 1'000'001});
}

TEST_CASE("a delta of any size is remembered as a whole") {
  constexpr PageCount kMany{1U << 20U};
  const auto order = make_window_order(kMany);
  OwedPages owed(kMany);
  std::vector<PageRange> delta;
  for (std::uint64_t page = 1000; page < kMany.value; page += 4) {
    delta.push_back(pages(page, 1));
    owed.add(delta.back());
  }
  owed.add(pages(0, 1000));  // The rest, which address order would send first.
  order->on_recently_dirty(delta);
  const auto sent = next_pages(*order, owed, delta.size());
  CHECK(sent.size() == delta.size());
  CHECK(*std::min_element(sent.begin(), sent.end()) == 1000);
  CHECK(next_pages(*order, owed, 1) == std::vector<std::uint64_t>{0});
}

TEST_CASE("lanes beside each other, and demands beside them, send every page once") {
  constexpr PageCount kMany{1U << 20U};
  const auto order = make_window_order(kMany);
  OwedPages owed(kMany);
  for (std::uint64_t page = 0; page < kMany.value; page += 37) {
    owed.add(pages(page, 1 + page % 5));
  }
  const std::uint64_t wanted = owed.count().value;
  std::atomic<bool> over{false};
  std::atomic<std::uint64_t> sent{0};
  base::NamedThread server("server", [&] {
    std::mt19937_64 random(1);
    while (!over) {
      order->on_demand(PageIndex{random() % kMany.value});
    }
  });
  std::vector<base::NamedThread> lanes;
  lanes.reserve(2);
  for (int i = 0; i < 2; ++i) {
    lanes.emplace_back("lane", [&] {
      while (const auto run = order->next(owed, kFrame)) {
        sent += run->count.value;
      }
    });
  }
  for (base::NamedThread& lane : lanes) {
    lane.join();
  }
  over = true;
  server.join();
  CHECK(sent == wanted);
  CHECK(owed.count().value == 0);
}

TEST_CASE("windows at both ends of memory stay inside it") {
  const auto order = make_window_order(kPages);
  AllOwed owed;
  order->on_demand(PageIndex{kPages.value - 3});
  CHECK(next_pages(*order, owed, 3) ==
        std::vector<std::uint64_t>{kPages.value - 2, kPages.value - 1, 0});
  for (const std::uint64_t demand : {12U, 11U, 10U}) {
    order->on_demand(PageIndex{demand});
  }
  const auto sent = next_pages(*order, owed, 30);
  CHECK(std::set<std::uint64_t>(sent.begin(), sent.end()).size() == 30);
}

TEST_CASE("pages that become owed behind the cursor are found again") {
  const auto order = make_window_order(kPages);
  OwedPages owed(kPages);
  owed.add(pages(90'000, 1));
  CHECK(next_pages(*order, owed, 1) == std::vector<std::uint64_t>{90'000});
  CHECK_FALSE(order->next(owed, kFrame).has_value());
  owed.add(pages(5, 1));
  CHECK(next_pages(*order, owed, 1) == std::vector<std::uint64_t>{5});
}

void every_page_goes_once(PushOrder& order, unsigned seed) {
  std::mt19937_64 random(seed);
  OwedPages owed(PageCount{3000});
  std::vector<int> sent(3000, 0);
  std::size_t wanted = 0;
  for (std::uint64_t page = 0; page < 3000; ++page) {
    if (random() % 4 != 0) {
      owed.add(pages(page, 1));
      ++wanted;
    }
  }
  std::uint64_t walk = 0;
  std::size_t total = 0;
  while (total < wanted) {
    if (random() % 3 == 0) {
      order.on_demand(
          PageIndex{random() % 2 == 0 ? random() % 3000 : (walk += 1 + random() % 9) % 3000});
    }
    if (random() % 8 == 0) {
      order.on_recently_dirty(std::vector{pages(random() % 2900, 1 + random() % 100)});
    }
    if (const PageIndex direct{random() % 3000}; random() % 8 == 0 && owed.take(direct)) {
      ++sent[direct.value];
      ++total;
    }
    const PageCount limit{1 + random() % 16};
    if (const auto run = order.next(owed, limit)) {
      REQUIRE(run->count.value <= limit.value);
      for (std::uint64_t page = run->first.value; page < run->end().value; ++page, ++total) {
        ++sent[page];
      }
    } else {
      REQUIRE(total == wanted);
    }
  }
  CHECK(owed.count().value == 0);
  CHECK(*std::max_element(sent.begin(), sent.end()) == 1);
  CHECK_FALSE(order.next(owed, kFrame).has_value());
}

TEST_CASE("every owed page is sent exactly once, whatever is demanded meanwhile") {
  for (unsigned seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    every_page_goes_once(*make_window_order(PageCount{3000}), seed);
    every_page_goes_once(*make_address_order(PageCount{3000}), seed);
  }
}

}  // namespace
}  // namespace towline::runtime
