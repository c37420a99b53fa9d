// The page map moves sixteen pages at a time. What its table says, which docs/state-machines.md
// shows (tests/lint/state_tables.py), is compared with what becomes of one page: every pair of a
// state and a call is tried.
#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/core/page_map.h"

namespace towline::runtime {
namespace {

constexpr std::array kStates{
    PageState::kMissing, PageState::kInstalled,    PageState::kZero,        PageState::kPoisoned,
    PageState::kClaimed, PageState::kClaimedStale, PageState::kClaimedZero,
};
constexpr std::array kEvents{
    PageEvent::kClaim,   PageEvent::kClaimZero, PageEvent::kFinishInstalled, PageEvent::kFinishZero,
    PageEvent::kAbandon, PageEvent::kMarkStale, PageEvent::kFinishPoisoned,
};

/// A page among others that are in another state, and must stay so.
class Trial {
 public:
  void take(PageEvent event) {
    std::vector<base::PageIndex> stale;
    switch (event) {
      case PageEvent::kClaim:
        (void)map_.claim_run(kRange);
        break;
      case PageEvent::kClaimZero:
        (void)map_.claim_zero(kRange.first);
        break;
      case PageEvent::kFinishInstalled:
        map_.finish_installed(kRange, stale);
        break;
      case PageEvent::kFinishZero:
        map_.finish_zero(kRange, stale);
        break;
      case PageEvent::kFinishPoisoned:
        map_.finish_poisoned(kRange);
        break;
      case PageEvent::kAbandon:
        map_.abandon(kRange);
        break;
      case PageEvent::kMarkStale:
        map_.mark_stale(kRange, [this](base::PageRange zapped) {
          CHECK(zapped == kRange);
          zapped_ = true;
        });
        break;
    }
    CHECK(stale.empty() ==
          (before_ != PageState::kClaimedStale ||
           (event != PageEvent::kFinishInstalled && event != PageEvent::kFinishZero)));
    CHECK(zapped_ == (before_ == PageState::kInstalled && event == PageEvent::kMarkStale));
    zapped_ = false;
    before_ = state();
    for (const std::uint64_t other : {kRange.first.value - 1, kRange.first.value + 1}) {
      CHECK(map_.state(base::PageIndex{other}) == PageState::kMissing);
    }
  }

  [[nodiscard]] PageState state() const { return map_.state(kRange.first); }

 private:
  static constexpr base::PageRange kRange{base::PageIndex{19}, base::PageCount{1}};

  PageMap map_{base::PageCount{40}};
  PageState before_ = PageState::kMissing;
  bool zapped_ = false;
};

std::optional<PageState> by_table(PageState from, PageEvent event) {
  const auto* const rule =
      std::find_if(kPageRules.begin(), kPageRules.end(),
                   [&](const PageRule& one) { return one.from == from && one.on == event; });
  return rule == kPageRules.end() ? std::nullopt : std::optional(rule->to);
}

/// Calls that lead from missing to `state`, by the table.
std::vector<PageEvent> way_to(PageState state) {
  struct Found {
    PageState state;
    std::vector<PageEvent> way;
  };

  std::vector<Found> found{{PageState::kMissing, {}}};
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (found[i].state == state) {
      return found[i].way;
    }
    for (const PageRule& rule : kPageRules) {
      const bool known = std::any_of(found.begin(), found.end(),
                                     [&](const Found& one) { return one.state == rule.to; });
      if (rule.from == found[i].state && !known) {
        Found next{rule.to, found[i].way};
        next.way.push_back(rule.on);
        found.push_back(std::move(next));
      }
    }
  }
  FAIL("no rule leads to ", to_string(state));
  return {};
}

// Without a rule it breaks an invariant.
bool ends_a_claim(PageEvent event) {
  return event == PageEvent::kFinishInstalled || event == PageEvent::kFinishZero ||
         event == PageEvent::kFinishPoisoned || event == PageEvent::kAbandon;
}

TEST_CASE("every call does to a page in every state what the table says, and nothing else") {
  for (const PageState from : kStates) {
    for (const PageEvent event : kEvents) {
      const auto to = by_table(from, event);
      if (!to.has_value() && ends_a_claim(event)) {
        continue;
      }
      Trial trial;
      for (const PageEvent step : way_to(from)) {
        trial.take(step);
      }
      REQUIRE(trial.state() == from);
      trial.take(event);
      CAPTURE(to_string(from));
      CAPTURE(static_cast<int>(event));
      CHECK(trial.state() == to.value_or(from));
    }
  }
}

TEST_CASE("no state and call have two rules, and only claims are ended") {
  for (const PageRule& rule : kPageRules) {
    CHECK(by_table(rule.from, rule.on) == rule.to);
    CHECK(std::count_if(kPageRules.begin(), kPageRules.end(), [&](const PageRule& other) {
            return other.from == rule.from && other.on == rule.on;
          }) == 1);
    CHECK((!ends_a_claim(rule.on) || is_claimed(rule.from)));
    CHECK(is_claimed(rule.to) ==
          (rule.on == PageEvent::kClaim || rule.on == PageEvent::kClaimZero ||
           (rule.on == PageEvent::kMarkStale && is_claimed(rule.from))));
  }
}

}  // namespace
}  // namespace towline::runtime
