#include "runtime/core/page_receiver.h"

#include <array>
#include <vector>

#include <doctest/doctest.h>

#include "base/clock.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;

MemoryLayout one_region() {
  Region region;
  region.name = "ram";
  region.size = base::Bytes{16 * base::kSmallPage.value};
  return MemoryLayout({region});
}

/// Notes who is woken; everything succeeds.
class Pages final : public GuestPages {
 public:
  base::Outcome write(PageRange /*range*/, std::span<const std::byte> /*bytes*/) override {
    return base::Done{};
  }

  base::Outcome punch(PageRange /*range*/) override { return base::Done{}; }

  base::Outcome back_with_zeros(PageRange /*range*/) override {
    if (full) {
      return base::fail(base::ErrorKind::kOverloaded, "fallocate", "no space");
    }
    return base::Done{};
  }

  base::Outcome map(PageRange /*range*/) override { return base::Done{}; }

  void zap(PageRange /*range*/) override {}

  base::Outcome poison(PageRange range) override {
    if (full) {
      return base::fail(base::ErrorKind::kOverloaded, "UFFDIO_POISON", "no memory");
    }
    poisoned.push_back(range);
    return base::Done{};
  }

  void wake(PageRange range) override { woken.push_back(range); }

  bool full = false;  ///< There is no room for a page of zeros.
  std::vector<PageRange> woken;
  std::vector<PageRange> poisoned;
};

struct Target {
  explicit Target(std::size_t bound) : requests(bound) {}

  MemoryLayout layout = one_region();
  Pages pages;
  PageMap map{PageCount{16}};
  RequestTable requests;
  PageReceiver receiver{layout, pages, map, requests, base::system_clock(), [] {}};
};

TEST_CASE("a fault that finds the table full is woken to be tried again, not half remembered") {
  Target target(1);
  CHECK(target.receiver.on_fault(PageIndex{3}));
  CHECK_FALSE(target.receiver.on_fault(PageIndex{4}));
  CHECK(target.pages.woken == std::vector{PageRange{PageIndex{4}, PageCount{1}}});
  std::array<PageIndex, 2> due;
  REQUIRE(target.requests.next_due(due) == 1);
  CHECK(due[0] == PageIndex{3});
}

TEST_CASE("a fault is tried again with success once the table has room") {
  Target target(1);
  CHECK(target.receiver.on_fault(PageIndex{3}));
  CHECK_FALSE(target.receiver.on_fault(PageIndex{4}));
  REQUIRE(target.receiver.on_zeros({PageIndex{3}, PageCount{1}}).ok());
  CHECK(target.receiver.on_fault(PageIndex{4}));
  target.pages.woken.clear();
  REQUIRE(target.receiver.on_zeros({PageIndex{4}, PageCount{1}}).ok());
  CHECK(target.pages.woken == std::vector{PageRange{PageIndex{4}, PageCount{1}}});
}

TEST_CASE("a fault on zeros that finds no room is woken to be tried again, and succeeds later") {
  Target target(4);
  REQUIRE(target.receiver.on_zeros({PageIndex{3}, PageCount{1}}).ok());
  target.pages.full = true;
  CHECK_FALSE(target.receiver.on_fault(PageIndex{3}));
  CHECK(target.pages.woken == std::vector{PageRange{PageIndex{3}, PageCount{1}}});
  CHECK(target.requests.size() == 0);
  CHECK(target.map.state(PageIndex{3}) == PageState::kZero);
  target.pages.full = false;
  CHECK_FALSE(target.receiver.on_fault(PageIndex{3}));
  CHECK(target.map.state(PageIndex{3}) == PageState::kInstalled);
}

TEST_CASE("a lost source poisons what is missing, and nothing that is here") {
  Target target(4);
  const std::vector<std::byte> bytes(2 * base::kSmallPage.value, std::byte{7});
  REQUIRE(target.receiver.on_pages({PageIndex{4}, PageCount{2}}, bytes).ok());
  REQUIRE(target.receiver.on_zeros({PageIndex{9}, PageCount{1}}).ok());
  CHECK(target.receiver.on_fault(PageIndex{12}));
  target.pages.woken.clear();
  REQUIRE(target.receiver.poison_missing().ok());
  CHECK(target.pages.poisoned == std::vector{PageRange{PageIndex{0}, PageCount{4}},
                                             PageRange{PageIndex{6}, PageCount{3}},
                                             PageRange{PageIndex{10}, PageCount{6}}});
  CHECK(target.map.poisoned() == PageCount{13});
  CHECK(target.map.missing() == PageCount{0});
  CHECK(target.map.state(PageIndex{4}) == PageState::kInstalled);
  CHECK(target.map.state(PageIndex{9}) == PageState::kZero);
  CHECK(target.pages.woken == std::vector{PageRange{PageIndex{12}, PageCount{1}}});
}

TEST_CASE("what is poisoned is looked for once: a large memory in small pieces ends in time") {
  // Every second page of 4 GiB. Who begins at page 0 again for each looks at 10^10 words.
  constexpr std::uint64_t kPages = 1U << 20U;
  Region region;
  region.name = "ram";
  region.size = base::Bytes{kPages * base::kSmallPage.value};
  const MemoryLayout layout({region});
  Pages pages;
  PageMap map{PageCount{kPages}};
  std::vector<PageIndex> went_stale;
  for (std::uint64_t page = 0; page < kPages; page += 2) {
    const PageRange here{PageIndex{page}, PageCount{1}};
    REQUIRE(map.claim_run(here) == here.count);
    map.finish_installed(here, went_stale);
  }
  RequestTable requests(4);
  PageReceiver receiver(layout, pages, map, requests, base::system_clock(), [] {});
  REQUIRE(receiver.poison_missing().ok());
  CHECK(pages.poisoned.size() == kPages / 2);
  CHECK(map.poisoned() == PageCount{kPages / 2});
  CHECK(map.missing() == PageCount{0});
}

TEST_CASE("a frame that comes after the poison changes nothing") {
  Target target(4);
  REQUIRE(target.receiver.poison_missing().ok());
  const std::vector<std::byte> bytes(base::kSmallPage.value, std::byte{7});
  REQUIRE(target.receiver.on_pages({PageIndex{3}, PageCount{1}}, bytes).ok());
  REQUIRE(target.receiver.on_demanded({PageIndex{4}, PageCount{1}}, bytes).ok());
  REQUIRE(target.receiver.on_zeros({PageIndex{5}, PageCount{1}}).ok());
  for (const std::uint64_t page : {3U, 4U, 5U}) {
    CHECK(target.map.state(PageIndex{page}) == PageState::kPoisoned);
  }
  CHECK(target.receiver.counters().installed == 0);
  CHECK(target.receiver.counters().zeros == 0);
}

TEST_CASE("a fault on a poisoned page is an error, not a request") {
  Target target(4);
  REQUIRE(target.receiver.poison_missing().ok());
  target.pages.poisoned.clear();
  CHECK_FALSE(target.receiver.on_fault(PageIndex{3}));
  CHECK(target.pages.poisoned == std::vector{PageRange{PageIndex{3}, PageCount{1}}});
  CHECK(target.requests.size() == 0);
}

TEST_CASE("what could not be poisoned is missing still") {
  Target target(4);
  target.pages.full = true;
  CHECK_FALSE(target.receiver.poison_missing().ok());
  CHECK(target.map.missing() == PageCount{16});
  CHECK(target.map.claimed() == PageCount{0});
}

}  // namespace
}  // namespace towline::runtime
