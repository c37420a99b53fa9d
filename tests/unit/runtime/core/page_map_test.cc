#include "runtime/core/page_map.h"

#include <map>
#include <random>
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

using Ranges = std::vector<PageRange>;
using Indices = std::vector<PageIndex>;

Ranges mark(PageMap& map, PageRange range) {
  Ranges zapped;
  map.mark_stale(range, [&](PageRange run) { zapped.push_back(run); });
  return zapped;
}

void install(PageMap& map, PageRange range) {
  Indices stale;
  REQUIRE(map.claim_run(range) == range.count);
  map.finish_installed(range, stale);
  REQUIRE(stale.empty());
}

void make_zero(PageMap& map, PageRange range) {
  Indices stale;
  REQUIRE(map.claim_run(range) == range.count);
  map.finish_zero(range, stale);
  REQUIRE(stale.empty());
}

TEST_CASE("in the beginning every page is missing and nothing is claimed") {
  const PageMap map(PageCount{100});
  CHECK(map.missing() == PageCount{100});
  CHECK(map.claimed() == PageCount{0});
  CHECK(map.zero() == PageCount{0});
  CHECK(map.state(PageIndex{99}) == PageState::kMissing);
  CHECK(map.next_missing(PageIndex{0}, PageCount{1000}) == pages(0, 100));
}

TEST_CASE("a claimed page cannot be claimed again until its claim is given up") {
  PageMap map(PageCount{100});
  CHECK(map.claim_run(pages(10, 5)) == PageCount{5});
  CHECK(map.state(PageIndex{12}) == PageState::kClaimed);
  CHECK(map.claim_run(pages(12, 1)) == PageCount{0});
  CHECK(map.missing() == PageCount{100});
  CHECK(map.claimed() == PageCount{5});
  map.abandon(pages(10, 5));
  CHECK(map.claimed() == PageCount{0});
  CHECK(map.claim_run(pages(12, 1)) == PageCount{1});
}

TEST_CASE("a claim takes the head of a range up to the first page that is not missing") {
  PageMap map(PageCount{100});
  install(map, pages(40, 1));
  CHECK(map.claim_run(pages(3, 90)) == PageCount{37});
  CHECK(map.claim_run(pages(40, 10)) == PageCount{0});
  CHECK(map.claim_run(pages(41, 10)) == PageCount{10});
  CHECK(map.claimed() == PageCount{47});
}

TEST_CASE("an installed page and a zero page are not missing any more") {
  PageMap map(PageCount{64});
  install(map, pages(0, 20));
  make_zero(map, pages(20, 4));
  CHECK(map.state(PageIndex{19}) == PageState::kInstalled);
  CHECK(map.state(PageIndex{20}) == PageState::kZero);
  CHECK(map.missing() == PageCount{40});
  CHECK(map.zero() == PageCount{4});
  CHECK(map.claim_run(pages(0, 1)) == PageCount{0});
  CHECK(map.claim_run(pages(20, 1)) == PageCount{0});
}

TEST_CASE("stale installed pages are zapped in maximal runs, after they became missing") {
  PageMap map(PageCount{200});
  install(map, pages(10, 100));
  make_zero(map, pages(110, 3));
  install(map, pages(113, 2));
  Ranges zapped;
  map.mark_stale(pages(0, 200), [&](PageRange run) {
    CHECK(map.state(run.first) == PageState::kMissing);
    zapped.push_back(run);
  });
  CHECK(zapped == Ranges{pages(10, 100), pages(113, 2)});
  CHECK(map.missing() == PageCount{200});
  CHECK(map.zero() == PageCount{0});
}

TEST_CASE("a stale set touches nothing outside it") {
  PageMap map(PageCount{64});
  install(map, pages(0, 64));
  CHECK(mark(map, pages(5, 3)) == Ranges{pages(5, 3)});
  CHECK(map.state(PageIndex{4}) == PageState::kInstalled);
  CHECK(map.state(PageIndex{8}) == PageState::kInstalled);
  CHECK(map.missing() == PageCount{3});
}

TEST_CASE("a page that goes stale while it is claimed is missing at the end of the claim") {
  PageMap map(PageCount{64});
  Indices stale;
  REQUIRE(map.claim_run(pages(14, 4)) == PageCount{4});
  CHECK(mark(map, pages(15, 2)).empty());
  CHECK(map.state(PageIndex{15}) == PageState::kClaimedStale);
  CHECK(map.state(PageIndex{14}) == PageState::kClaimed);
  map.finish_installed(pages(14, 4), stale);
  CHECK(stale == Indices{PageIndex{15}, PageIndex{16}});
  CHECK(map.state(PageIndex{14}) == PageState::kInstalled);
  CHECK(map.state(PageIndex{15}) == PageState::kMissing);
  CHECK(map.state(PageIndex{17}) == PageState::kInstalled);
  CHECK(map.missing() == PageCount{62});
  CHECK(map.claimed() == PageCount{0});
}

TEST_CASE("a zero range that goes stale while it is claimed is missing at the end of the claim") {
  PageMap map(PageCount{64});
  Indices stale;
  REQUIRE(map.claim_run(pages(0, 64)) == PageCount{64});
  mark(map, pages(63, 1));
  map.finish_zero(pages(0, 64), stale);
  CHECK(stale == Indices{PageIndex{63}});
  CHECK(map.zero() == PageCount{63});
  CHECK(map.missing() == PageCount{1});
}

TEST_CASE("an abandoned claim forgets that its page went stale: it is missing anyway") {
  PageMap map(PageCount{16});
  REQUIRE(map.claim_run(pages(3, 1)) == PageCount{1});
  mark(map, pages(3, 1));
  map.abandon(pages(3, 1));
  CHECK(map.state(PageIndex{3}) == PageState::kMissing);
  install(map, pages(3, 1));
  CHECK(map.state(PageIndex{3}) == PageState::kInstalled);
}

TEST_CASE("a zero page is claimed for a waiting access without counting as missing") {
  PageMap map(PageCount{16});
  Indices stale;
  make_zero(map, pages(0, 16));
  CHECK(map.claim_zero(PageIndex{5}));
  CHECK_FALSE(map.claim_zero(PageIndex{5}));
  CHECK(map.state(PageIndex{5}) == PageState::kClaimedZero);
  CHECK(map.missing() == PageCount{0});
  CHECK(map.zero() == PageCount{15});
  map.finish_installed(pages(5, 1), stale);
  CHECK(stale.empty());
  CHECK(map.missing() == PageCount{0});
  CHECK(map.state(PageIndex{5}) == PageState::kInstalled);
}

TEST_CASE("only a zero page can be claimed as one") {
  PageMap map(PageCount{16});
  install(map, pages(1, 1));
  CHECK_FALSE(map.claim_zero(PageIndex{0}));
  CHECK_FALSE(map.claim_zero(PageIndex{1}));
  CHECK(map.claimed() == PageCount{0});
}

TEST_CASE("a zero page whose claim is given up is zero again, not asked for at the source") {
  PageMap map(PageCount{16});
  make_zero(map, pages(5, 1));
  REQUIRE(map.claim_zero(PageIndex{5}));
  map.abandon(pages(5, 1));
  CHECK(map.state(PageIndex{5}) == PageState::kZero);
  CHECK(map.missing() == PageCount{15});
  CHECK(map.zero() == PageCount{1});
}

TEST_CASE("a claimed zero page that goes stale is missing, however its claim ends") {
  PageMap map(PageCount{16});
  Indices stale;
  make_zero(map, pages(5, 2));
  for (const std::uint64_t page : {5U, 6U}) {
    REQUIRE(map.claim_zero(PageIndex{page}));
    mark(map, pages(page, 1));
  }
  CHECK(map.missing() == PageCount{16});
  map.abandon(pages(5, 1));
  map.finish_installed(pages(6, 1), stale);
  CHECK(stale == Indices{PageIndex{6}});
  CHECK(map.state(PageIndex{5}) == PageState::kMissing);
  CHECK(map.state(PageIndex{6}) == PageState::kMissing);
  CHECK(map.missing() == PageCount{16});
}

TEST_CASE("the missing pages are found run by run, and claimed ones are not among them") {
  PageMap map(PageCount{100});
  install(map, pages(0, 10));
  install(map, pages(50, 1));
  REQUIRE(map.claim_run(pages(40, 2)) == PageCount{2});
  CHECK(map.next_missing(PageIndex{0}, PageCount{1000}) == pages(10, 30));
  CHECK(map.next_missing(PageIndex{20}, PageCount{5}) == pages(20, 5));
  CHECK(map.next_missing(PageIndex{40}, PageCount{1000}) == pages(42, 8));
  CHECK(map.next_missing(PageIndex{51}, PageCount{1000}) == pages(51, 49));
  CHECK_FALSE(map.next_missing(PageIndex{100}, PageCount{1}).has_value());
  CHECK_FALSE(map.next_missing(PageIndex{0}, PageCount{0}).has_value());
  install(map, pages(51, 49));
  CHECK_FALSE(map.next_missing(PageIndex{51}, PageCount{1000}).has_value());
}

TEST_CASE("ranges of 16 million pages pass through every state") {
  constexpr std::uint64_t kPages = (16U << 20U) + 5;
  PageMap map(PageCount{kPages});
  Indices stale;
  CHECK(map.claim_run(pages(0, kPages)) == PageCount{kPages});
  CHECK(map.claimed() == PageCount{kPages});
  map.finish_zero(pages(0, kPages), stale);
  CHECK(map.zero() == PageCount{kPages});
  CHECK(mark(map, pages(0, kPages)).empty());
  install(map, pages(0, kPages));
  CHECK(map.missing() == PageCount{0});
  CHECK(mark(map, pages(1, kPages - 2)) == Ranges{pages(1, kPages - 2)});
  CHECK(map.next_missing(PageIndex{0}, PageCount{kPages}) == pages(1, kPages - 2));
  CHECK(stale.empty());
}

/// The same map, page by page and obvious.
class Model {
 public:
  struct Page {
    PageState state = PageState::kMissing;
    bool stale = false;
    bool from_zero = false;

    [[nodiscard]] PageState named() const {
      if (state != PageState::kClaimed) {
        return state;
      }
      return stale ? PageState::kClaimedStale
                   : (from_zero ? PageState::kClaimedZero : PageState::kClaimed);
    }
  };

  explicit Model(std::size_t count) : pages_(count) {}

  std::uint64_t claim(PageRange range) {
    std::uint64_t got = 0;
    for (; got < range.count.value; ++got) {
      Page& page = pages_[range.first.value + got];
      if (page.state != PageState::kMissing) {
        break;
      }
      page.state = PageState::kClaimed;
    }
    return got;
  }

  bool claim_zero(PageIndex index) {
    Page& page = pages_[index.value];
    if (page.state != PageState::kZero) {
      return false;
    }
    page = {PageState::kClaimed, false, true};
    return true;
  }

  Indices finish(PageRange range, PageState as) {
    Indices stale;
    for (std::uint64_t i = range.first.value; i < range.end().value; ++i) {
      if (pages_[i].stale) {
        stale.push_back(PageIndex{i});
      }
      pages_[i] = {pages_[i].stale ? PageState::kMissing : as, false, false};
    }
    return stale;
  }

  void abandon(PageRange range) {
    for (std::uint64_t i = range.first.value; i < range.end().value; ++i) {
      pages_[i] = {pages_[i].from_zero ? PageState::kZero : PageState::kMissing, false, false};
    }
  }

  Ranges mark_stale(PageRange range) {
    Ranges zapped;
    for (std::uint64_t i = range.first.value; i < range.end().value; ++i) {
      Page& page = pages_[i];
      if (page.state == PageState::kInstalled) {
        if (zapped.empty() || zapped.back().end().value != i) {
          zapped.push_back(pages(i, 0));
        }
        ++zapped.back().count.value;
      }
      page = page.state == PageState::kClaimed ? Page{PageState::kClaimed, true, false} : Page{};
    }
    return zapped;
  }

  void check_equal(const PageMap& map) const {
    std::uint64_t missing = 0;
    std::uint64_t claimed = 0;
    std::uint64_t zero = 0;
    for (std::uint64_t i = 0; i < pages_.size(); ++i) {
      const Page& page = pages_[i];
      REQUIRE(map.state(PageIndex{i}) == page.named());
      claimed += page.state == PageState::kClaimed ? 1 : 0;
      zero += page.state == PageState::kZero ? 1 : 0;
      missing += page.state == PageState::kMissing ||
                         (page.state == PageState::kClaimed && !page.from_zero)
                     ? 1
                     : 0;
    }
    REQUIRE(map.missing().value == missing);
    REQUIRE(map.claimed().value == claimed);
    REQUIRE(map.zero().value == zero);
  }

 private:
  std::vector<Page> pages_;
};

TEST_CASE("word by word and page by page give the same map, whatever the calls") {
  constexpr std::uint64_t kPages = 150;
  std::mt19937_64 random(11);
  PageMap map(PageCount{kPages});
  Model model(kPages);
  std::vector<PageRange> claims;
  for (int i = 0; i < 5000; ++i) {
    const std::uint64_t first = random() % kPages;
    const PageRange range =
        pages(first, 1 + random() % std::min<std::uint64_t>(50, kPages - first));
    switch (random() % 4) {
      case 0: {
        const PageCount got = map.claim_run(range);
        REQUIRE(got.value == model.claim(range));
        claims.push_back({range.first, got});
        break;
      }
      case 1: {
        const bool got = map.claim_zero(range.first);
        REQUIRE(got == model.claim_zero(range.first));
        claims.push_back({range.first, PageCount{got ? 1U : 0U}});
        break;
      }
      case 2:
        REQUIRE(mark(map, range) == model.mark_stale(range));
        break;
      default:
        if (!claims.empty()) {
          const PageRange claim = claims[random() % claims.size()];
          std::erase(claims, claim);
          Indices stale;
          if (random() % 3 == 0) {
            map.abandon(claim);
            model.abandon(claim);
          } else if (random() % 2 == 0) {
            map.finish_zero(claim, stale);
            REQUIRE(stale == model.finish(claim, PageState::kZero));
          } else {
            map.finish_installed(claim, stale);
            REQUIRE(stale == model.finish(claim, PageState::kInstalled));
          }
        }
    }
    model.check_equal(map);
  }
}

}  // namespace
}  // namespace towline::runtime
