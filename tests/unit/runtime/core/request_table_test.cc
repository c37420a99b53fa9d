#include "runtime/core/request_table.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <functional>
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
using Added = RequestTable::Added;

base::Instant at(int microseconds) {
  return base::Instant{} + std::chrono::microseconds(microseconds);
}

PageRange pages(std::uint64_t first, std::uint64_t count) {
  return {PageIndex{first}, PageCount{count}};
}

std::vector<std::byte> some_bytes() {
  return std::vector<std::byte>(4096, std::byte{7});
}

std::vector<std::uint64_t> due_in(const RequestTable& table) {
  std::array<PageIndex, 64> due;
  std::vector<std::uint64_t> numbers;
  for (const PageIndex page : std::span(due).first(table.next_due(due))) {
    numbers.push_back(page.value);
  }
  return numbers;
}

TEST_CASE("waiters of one page share one request and keep the first one's time") {
  RequestTable table(10);
  CHECK(table.add(PageIndex{3}, at(5)) == Added::kFirst);
  CHECK(table.add(PageIndex{3}, at(9)) == Added::kJoined);
  CHECK(table.size() == 1);
  CHECK(table.want(PageIndex{3}));
  CHECK_FALSE(table.want(PageIndex{3}));
  const auto finished = table.finish(PageIndex{3});
  REQUIRE(finished.has_value());
  CHECK(finished->page == PageIndex{3});
  CHECK(finished->since == at(5));
  CHECK(finished->waiters == 2);
  CHECK(finished->asked);
  CHECK(table.size() == 0);
}

TEST_CASE("a page that nobody waits for is neither asked for nor finished") {
  RequestTable table(10);
  CHECK_FALSE(table.want(PageIndex{3}));
  CHECK_FALSE(table.finish(PageIndex{3}).has_value());
  REQUIRE(table.add(PageIndex{4}, at(0)) == Added::kFirst);
  CHECK_FALSE(table.finish(PageIndex{3}).has_value());
}

TEST_CASE("a full table still lets a waiter join, and takes a new page once there is room") {
  RequestTable table(2);
  CHECK(table.add(PageIndex{1}, at(0)) == Added::kFirst);
  CHECK(table.add(PageIndex{2}, at(0)) == Added::kFirst);
  CHECK(table.add(PageIndex{3}, at(0)) == Added::kFull);
  CHECK(table.add(PageIndex{2}, at(0)) == Added::kJoined);
  (void)table.finish(PageIndex{1});
  CHECK(table.add(PageIndex{3}, at(0)) == Added::kFirst);
}

TEST_CASE("finishing a range finishes the pages in it and may call the table back") {
  RequestTable table(10);
  for (const std::uint64_t page : {9U, 10U, 12U, 20U}) {
    REQUIRE(table.add(PageIndex{page}, at(0)) == Added::kFirst);
  }
  std::vector<std::uint64_t> finished;
  table.finish_range(pages(10, 10), [&](const RequestTable::Finished& one) {
    finished.push_back(one.page.value);
    CHECK_FALSE(table.want(one.page));
  });
  CHECK(finished == std::vector<std::uint64_t>{10, 12});
  CHECK(table.size() == 2);
}

TEST_CASE("an answer can be parked on a waiting page and taken once") {
  RequestTable table(10);
  CHECK_FALSE(table.park(PageIndex{3}, some_bytes()));
  REQUIRE(table.add(PageIndex{3}, at(0)) == Added::kFirst);
  CHECK_FALSE(table.take_parked(PageIndex{3}).has_value());
  CHECK(table.park(PageIndex{3}, some_bytes()));
  CHECK(table.take_parked(PageIndex{3}) == some_bytes());
  CHECK_FALSE(table.take_parked(PageIndex{3}).has_value());
  CHECK(table.size() == 1);
}

TEST_CASE("finishing a page forgets what is parked on it") {
  RequestTable table(10);
  REQUIRE(table.add(PageIndex{3}, at(0)) == Added::kFirst);
  REQUIRE(table.park(PageIndex{3}, some_bytes()));
  CHECK(table.finish(PageIndex{3}).has_value());
  REQUIRE(table.add(PageIndex{3}, at(1)) == Added::kFirst);
  CHECK_FALSE(table.take_parked(PageIndex{3}).has_value());
}

TEST_CASE("who gives up a claim asks for the waiting pages that were not asked for") {
  RequestTable table(10);
  for (const std::uint64_t page : {1U, 2U, 3U, 8U}) {
    REQUIRE(table.add(PageIndex{page}, at(0)) == Added::kFirst);
  }
  REQUIRE(table.want(PageIndex{2}));
  CHECK(table.want_range(pages(0, 5)) == 2);
  CHECK(due_in(table) == std::vector<std::uint64_t>{2, 1, 3});
  CHECK(table.want_range(pages(0, 5)) == 0);
  CHECK_FALSE(table.want(PageIndex{1}));
  CHECK(table.want(PageIndex{8}));
}

TEST_CASE("a request stays due until it is sent, in the order in which requests became due") {
  RequestTable table(10);
  for (const std::uint64_t page : {5U, 7U, 6U}) {
    REQUIRE(table.add(PageIndex{page}, at(0)) == Added::kFirst);
  }
  CHECK(due_in(table).empty());
  REQUIRE(table.want(PageIndex{7}));
  REQUIRE(table.want(PageIndex{5}));
  CHECK(due_in(table) == std::vector<std::uint64_t>{7, 5});
  CHECK(due_in(table) == std::vector<std::uint64_t>{7, 5});
  table.sent(std::array{PageIndex{7}});
  CHECK(due_in(table) == std::vector<std::uint64_t>{5});
  CHECK_FALSE(table.want(PageIndex{7}));
  CHECK(table.finish(PageIndex{5})->asked);
  CHECK(due_in(table).empty());
  table.sent(std::array{PageIndex{5}, PageIndex{6}});  // One came meanwhile; one was not due.
  CHECK(table.want(PageIndex{6}));
}

TEST_CASE("no more is due than there is room for") {
  RequestTable table(10);
  for (const std::uint64_t page : {1U, 2U, 3U}) {
    REQUIRE(table.add(PageIndex{page}, at(0)) == Added::kFirst);
  }
  CHECK(table.want_all() == 3);
  std::array<PageIndex, 2> two;
  CHECK(table.next_due(two) == 2);
  CHECK(two[1] == PageIndex{2});
}

TEST_CASE("with a new lane every outstanding page is due again, the oldest first") {
  RequestTable table(10);
  for (const std::uint64_t page : {7U, 6U, 5U, 4U}) {
    REQUIRE(table.add(PageIndex{page}, at(0)) == Added::kFirst);
  }
  REQUIRE(table.want(PageIndex{5}));
  table.sent(std::array{PageIndex{5}});
  REQUIRE(table.want(PageIndex{6}));
  (void)table.finish(PageIndex{4});
  CHECK(table.want_all() == 3);
  CHECK(due_in(table) == std::vector<std::uint64_t>{7, 6, 5});
  CHECK_FALSE(table.want(PageIndex{7}));
}

/// What a table is to hold, in containers that nobody need trust.
struct PlainTable {
  struct Entry {
    std::uint64_t page = 0;
    std::uint32_t waiters = 0;
    bool asked = false;
  };

  [[nodiscard]] auto find(std::uint64_t page) {
    return std::find_if(entries.begin(), entries.end(),
                        [page](const Entry& entry) { return entry.page == page; });
  }

  void forget(std::uint64_t page) {
    entries.erase(find(page));
    std::erase(due, page);
  }

  std::vector<Entry> entries;  // The oldest first.
  std::vector<std::uint64_t> due;
};

TEST_CASE("a table that is filled and emptied for long is what it should be after every step") {
  constexpr std::size_t kBound = 24;
  RequestTable table(kBound);
  PlainTable plain;
  std::mt19937_64 random(11);
  for (int step = 0; step < 40'000; ++step) {
    // Few pages, some of them far apart: buckets are shared, places are used again and again.
    const std::uint64_t page = (random() % 40) << (random() % 2 * 20);
    const auto found = plain.find(page);
    switch (random() % 6) {
      case 0:
      case 1:
        if (found != plain.entries.end()) {
          ++found->waiters;
          CHECK(table.add(PageIndex{page}, at(0)) == Added::kJoined);
        } else if (plain.entries.size() == kBound) {
          CHECK(table.add(PageIndex{page}, at(0)) == Added::kFull);
        } else {
          plain.entries.push_back({page, 1, false});
          CHECK(table.add(PageIndex{page}, at(0)) == Added::kFirst);
        }
        break;
      case 2:
        if (const bool wanted = found != plain.entries.end() && !found->asked;
            table.want(PageIndex{page})) {
          CHECK(wanted);
          found->asked = true;
          plain.due.push_back(page);
        } else {
          CHECK_FALSE(wanted);
        }
        break;
      case 3:
        if (const auto finished = table.finish(PageIndex{page})) {
          REQUIRE(found != plain.entries.end());
          CHECK(finished->waiters == found->waiters);
          CHECK(finished->asked == found->asked);
          plain.forget(page);
        } else {
          CHECK(found == plain.entries.end());
        }
        break;
      case 4: {
        const std::size_t some = std::min<std::size_t>(random() % 4, plain.due.size());
        std::vector<PageIndex> sent;
        for (std::size_t i = 0; i < some; ++i) {
          sent.push_back(PageIndex{plain.due[i]});
        }
        table.sent(sent);
        plain.due.erase(plain.due.begin(), plain.due.begin() + static_cast<std::ptrdiff_t>(some));
        break;
      }
      default: {
        const std::uint64_t count = random() % 60;
        std::vector<std::uint64_t> expected;
        for (const PlainTable::Entry& entry : plain.entries) {
          if (pages(page, count).contains(PageIndex{entry.page})) {
            expected.push_back(entry.page);
          }
        }
        std::vector<std::uint64_t> finished;
        if (random() % 8 == 0) {
          table.finish_range(pages(page, count), [&](const RequestTable::Finished& one) {
            finished.push_back(one.page.value);
          });
          std::sort(finished.begin(), finished.end());
          std::sort(expected.begin(), expected.end());
          CHECK(finished == expected);
          for (const std::uint64_t one : expected) {
            plain.forget(one);
          }
        } else if (random() % 20 == 0) {
          CHECK(table.want_all() == plain.entries.size());
          plain.due.clear();
          for (PlainTable::Entry& entry : plain.entries) {
            entry.asked = true;
            plain.due.push_back(entry.page);
          }
        }
        break;
      }
    }
    REQUIRE(table.size() == plain.entries.size());
    REQUIRE(due_in(table) == plain.due);
  }
}

/// One page, a fault that wants it, a bulk lane that brings it or gives up, and the urgent answer:
/// the steps that the drivers take, each of them atomic.
class Duel {
 public:
  void claim_first() { (void)map_.claim_run(kClaim); }

  // The fault thread: adds first, then looks.

  void fault_adds() { (void)table_.add(kPage, at(0)); }

  void fault_looks() {
    switch (map_.state(kPage)) {
      case PageState::kInstalled:
      case PageState::kZero:
      case PageState::kPoisoned:
        wake();
        break;
      case PageState::kMissing:
        asked_ = table_.want(kPage) || asked_;
        break;
      case PageState::kClaimed:
      case PageState::kClaimedStale:
      case PageState::kClaimedZero:
        break;  // Whoever holds the claim sees the request when it ends.
    }
  }

  // The claim's holder: writes the map first, then looks.

  void claim_ends(bool gives_up) {
    if (gives_up) {
      map_.abandon(kClaim);
    } else {
      finish_claim();
    }
  }

  void holder_looks(bool gives_up) {
    if (!gives_up) {
      wake();
    } else if (table_.take_parked(kPage)) {
      install();
    } else if (table_.want_range(kClaim) != 0) {
      asked_again_ = true;
    }
  }

  // The urgent receiver: parks first, then looks once more.

  void answer_claims() {
    refused_ = map_.claim_run(kClaim).value == 0;
    if (!refused_) {
      finish_claim();
      wake();
    }
  }

  void answer_parks() { parked_ = refused_ && table_.park(kPage, some_bytes()); }

  void answer_looks() {
    if (parked_) {
      install();
    }
  }

  /// At the end: the network answers whatever was asked for. False: a waiter was lost.
  [[nodiscard]] bool settles(bool answered) {
    if ((asked_ && !answered) || asked_again_) {
      answer_claims();
      answer_parks();
      answer_looks();
    }
    return table_.size() == 0;
  }

 private:
  static constexpr PageIndex kPage{21};
  static constexpr PageRange kClaim{kPage, PageCount{1}};

  void wake() { (void)table_.finish(kPage); }

  void install() {
    if (map_.claim_run(kClaim).value == 1) {
      finish_claim();
      wake();
    } else if (map_.state(kPage) == PageState::kInstalled) {
      wake();
    }
  }

  void finish_claim() {
    std::vector<PageIndex> stale;
    map_.finish_installed(kClaim, stale);
  }

  PageMap map_{PageCount{40}};
  RequestTable table_{4};
  bool asked_ = false;
  bool asked_again_ = false;
  bool refused_ = false;
  bool parked_ = false;
};

using Step = std::function<void(Duel&)>;
using Steps = std::vector<Step>;

/// Runs every merge of two step lists on a fresh duel; returns how many lose a waiter.
int merges_that_lose(const Steps& before, const Steps& left, const Steps& right, bool answered) {
  int lost = 0;
  for (unsigned order = 0; order < 1U << (left.size() + right.size()); ++order) {
    if (static_cast<std::size_t>(std::popcount(order)) != right.size()) {
      continue;
    }
    Duel duel;
    for (const Step& step : before) {
      step(duel);
    }
    std::size_t from_left = 0;
    std::size_t from_right = 0;
    for (std::size_t i = 0; i < left.size() + right.size(); ++i) {
      ((order >> i) & 1U) != 0 ? right[from_right++](duel) : left[from_left++](duel);
    }
    lost += duel.settles(answered) ? 0 : 1;
  }
  return lost;
}

const Step kClaimFirst = [](Duel& duel) { duel.claim_first(); };
const Step kFaultAdds = [](Duel& duel) { duel.fault_adds(); };
const Step kFaultLooks = [](Duel& duel) { duel.fault_looks(); };
const Step kAnswerClaims = [](Duel& duel) { duel.answer_claims(); };
const Step kAnswerParks = [](Duel& duel) { duel.answer_parks(); };
const Step kAnswerLooks = [](Duel& duel) { duel.answer_looks(); };

Steps end_of_claim(bool gives_up) {
  return {[=](Duel& duel) { duel.claim_ends(gives_up); },
          [=](Duel& duel) { duel.holder_looks(gives_up); }};
}

TEST_CASE("in every order of steps a fault and the end of a claim lose no waiter") {
  for (const bool gives_up : {false, true}) {
    CHECK(merges_that_lose({kClaimFirst}, {kFaultAdds, kFaultLooks}, end_of_claim(gives_up),
                           false) == 0);
  }
}

TEST_CASE("in every order of steps an answer and the end of a claim lose no waiter") {
  for (const bool gives_up : {false, true}) {
    CHECK(merges_that_lose({kFaultAdds, kFaultLooks, kClaimFirst},
                           {kAnswerClaims, kAnswerParks, kAnswerLooks}, end_of_claim(gives_up),
                           true) == 0);
  }
}

TEST_CASE("looking before adding, or waking before the map is written, would lose waiters") {
  Steps wrong_way = end_of_claim(false);
  std::reverse(wrong_way.begin(), wrong_way.end());
  CHECK(merges_that_lose({kClaimFirst}, {kFaultLooks, kFaultAdds}, end_of_claim(false), false) > 0);
  CHECK(merges_that_lose({kClaimFirst}, {kFaultAdds, kFaultLooks}, wrong_way, false) > 0);
  CHECK(merges_that_lose({kFaultAdds, kFaultLooks, kClaimFirst}, {kAnswerClaims, kAnswerParks},
                         end_of_claim(true), true) > 0);
}

/// Lets two threads go at nearly the same moment, each after a short wait of its own choosing: a
/// futex would wake them microseconds apart and the race would never be close.
class Start {
 public:
  void meet(std::mt19937_64& random) {
    const int mine = ++arrived_;
    const int wanted = mine + mine % 2;
    for (int spins = 0; arrived_.load() < wanted; ++spins) {
      if (spins > 2000) {
        std::this_thread::yield();
      }
    }
    for (std::uint64_t wait = random() % 500; wait > 0; --wait) {
      (void)arrived_.load();
    }
  }

 private:
  std::atomic<int> arrived_{0};
};

/// Runs both step lists on each of many duels at the same time; returns how many lose a waiter.
int races_that_lose(const Steps& before, const Steps& left, const Steps& right, bool answered) {
  constexpr int kRounds = 3000;
  std::vector<Duel> duels(kRounds);
  Start start;
  std::thread other([&] {
    std::mt19937_64 random(1);
    for (Duel& duel : duels) {
      start.meet(random);
      for (const Step& step : right) {
        step(duel);
      }
      start.meet(random);
    }
  });
  std::mt19937_64 random(2);
  int lost = 0;
  for (Duel& duel : duels) {
    for (const Step& step : before) {
      step(duel);
    }
    start.meet(random);
    for (const Step& step : left) {
      step(duel);
    }
    start.meet(random);
    lost += duel.settles(answered) ? 0 : 1;
  }
  other.join();
  return lost;
}

TEST_CASE("no waiter is lost when a fault races the end of the claim") {
  for (const bool gives_up : {false, true}) {
    CHECK(races_that_lose({kClaimFirst}, {kFaultAdds, kFaultLooks}, end_of_claim(gives_up),
                          false) == 0);
  }
}

TEST_CASE("no waiter is lost when its parked answer races the end of the claim") {
  for (const bool gives_up : {false, true}) {
    CHECK(races_that_lose({kFaultAdds, kFaultLooks, kClaimFirst},
                          {kAnswerClaims, kAnswerParks, kAnswerLooks}, end_of_claim(gives_up),
                          true) == 0);
  }
}

}  // namespace
}  // namespace towline::runtime
