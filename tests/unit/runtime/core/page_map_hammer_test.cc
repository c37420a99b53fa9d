#include <array>
#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/core/page_map.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;

constexpr std::uint64_t kPages = 203;  // Crosses words, and the last one is not full.

/// A tiny world around the map: versions at the source, contents at the target, and who holds what.
struct World {
  struct Page {
    std::atomic<int> holder{0};
    std::atomic<std::uint64_t> version{0};  ///< What the source has; grows before a mark.
    std::atomic<std::uint64_t> content{0};  ///< What the target has; written by the holder only.
    std::atomic<bool> mapped{false};        ///< The guest mapping's entry.
  };

  PageMap map{PageCount{kPages}};
  std::array<Page, kPages> pages;
  std::atomic<int> broken{0};  ///< doctest's checks are not for several threads.

  void zap(PageRange run) {
    for (std::uint64_t i = run.first.value; i < run.end().value; ++i) {
      pages[i].mapped = false;
    }
  }
};

/// Claims a run at random, brings its bytes, and ends the claim in one of its three ways.
void bring(World& world, std::mt19937_64& random, int me) {
  const std::uint64_t first = random() % kPages;
  const PageCount wanted{1 + random() % std::min<std::uint64_t>(40, kPages - first)};
  const PageRange claim{PageIndex{first}, world.map.claim_run({PageIndex{first}, wanted})};
  for (std::uint64_t i = first; i < claim.end().value; ++i) {
    World::Page& page = world.pages[i];
    world.broken += page.holder.exchange(me) != 0 ? 1 : 0;
    page.content = page.version.load();
  }
  const bool gives_up = random() % 4 == 0;
  const bool as_zero = random() % 3 == 0;
  for (std::uint64_t i = first; i < claim.end().value; ++i) {
    world.pages[i].mapped = !gives_up && !as_zero;
    world.broken += world.pages[i].holder.exchange(0) != me ? 1 : 0;
  }
  std::vector<PageIndex> stale;
  if (gives_up) {
    world.map.abandon(claim);
  } else if (as_zero) {
    world.map.finish_zero(claim, stale);
  } else {
    world.map.finish_installed(claim, stale);
  }
  for (const PageIndex page : stale) {
    world.zap({page, PageCount{1}});
  }
}

/// The source's guest writes; the stale set follows.
void make_stale(World& world, std::mt19937_64& random) {
  const std::uint64_t first = random() % kPages;
  const PageRange range{PageIndex{first},
                        PageCount{1 + random() % std::min<std::uint64_t>(20, kPages - first)}};
  for (std::uint64_t i = first; i < range.end().value; ++i) {
    ++world.pages[i].version;
  }
  world.map.mark_stale(range, [&](PageRange run) { world.zap(run); });
}

/// A guest access finds a zero page.
void touch_zero(World& world, std::mt19937_64& random, int me) {
  const PageIndex page{random() % kPages};
  if (!world.map.claim_zero(page)) {
    return;
  }
  world.broken += world.pages[page.value].holder.exchange(me) != 0 ? 1 : 0;
  const bool gives_up = random() % 4 == 0;
  world.pages[page.value].mapped = !gives_up;
  world.broken += world.pages[page.value].holder.exchange(0) != me ? 1 : 0;
  std::vector<PageIndex> stale;
  if (gives_up) {
    world.map.abandon({page, PageCount{1}});
  } else {
    world.map.finish_installed({page, PageCount{1}}, stale);
  }
  if (!stale.empty()) {
    world.zap({page, PageCount{1}});
  }
}

void check_settled(const World& world) {
  std::uint64_t missing = 0;
  std::uint64_t zero = 0;
  for (std::uint64_t i = 0; i < kPages; ++i) {
    const PageState state = world.map.state(PageIndex{i});
    const World::Page& page = world.pages[i];
    CAPTURE(i);
    REQUIRE_FALSE(is_claimed(state));
    if (state != PageState::kMissing) {
      REQUIRE(page.content == page.version);
    }
    missing += state == PageState::kMissing ? 1 : 0;
    zero += state == PageState::kZero ? 1 : 0;
  }
  REQUIRE(world.broken == 0);
  REQUIRE(world.map.missing().value == missing);
  REQUIRE(world.map.zero().value == zero);
  REQUIRE(world.map.claimed().value == 0);
}

TEST_CASE("claims are exclusive and no stale mark is lost, whatever races") {
  for (unsigned round = 0; round < 40; ++round) {
    const auto world = std::make_unique<World>();
    const auto bearer = [&](int me) {
      std::mt19937_64 random(round * 10 + static_cast<unsigned>(me));
      for (int i = 0; i < 1500; ++i) {
        bring(*world, random, me);
        touch_zero(*world, random, me);
      }
    };
    std::thread first(bearer, 1);
    std::thread second(bearer, 2);
    std::mt19937_64 random(round);
    for (int i = 0; i < 1500; ++i) {
      make_stale(*world, random);
    }
    first.join();
    second.join();
    CAPTURE(round);
    check_settled(*world);
  }
}

TEST_CASE("while claims come and go the counters are never smaller than the truth") {
  PageMap map(PageCount{kPages});
  std::vector<PageIndex> stale;
  REQUIRE(map.claim_run({PageIndex{0}, PageCount{100}}) == PageCount{100});
  std::atomic<bool> done{false};
  std::thread bearer([&] {
    std::vector<PageIndex> none;
    for (int i = 0; i < 20'000; ++i) {
      const PageRange claim{PageIndex{100}, map.claim_run({PageIndex{100}, PageCount{60}})};
      i % 2 == 0 ? map.abandon(claim) : map.finish_installed(claim, none);
      map.mark_stale(claim, [](PageRange) {});
    }
    done = true;
  });
  bool too_small = false;
  while (!done) {
    too_small = too_small || map.claimed().value < 100 || map.missing().value < kPages - 60;
  }
  bearer.join();
  CHECK_FALSE(too_small);
  CHECK(map.claimed() == PageCount{100});
  CHECK(map.missing() == PageCount{kPages});
}

}  // namespace
}  // namespace towline::runtime
