// docs/state-machines.md shows what each call does to a page in each state: every pair is tried.
#include <algorithm>
#include <array>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/core/page_map.h"
#include "source_root.h"

namespace towline::runtime {
namespace {

constexpr base::PageIndex kPage{3};
constexpr base::PageRange kRange{kPage, base::PageCount{1}};

/// One page and what was done to it.
class Trial {
 public:
  void claim() { (void)map_.claim_run(kRange); }

  void claim_zero() { of_zero_ = map_.claim_zero(kPage) || of_zero_; }

  void finish(bool zero) {
    std::vector<base::PageIndex> stale;
    zero ? map_.finish_zero(kRange, stale) : map_.finish_installed(kRange, stale);
  }

  void abandon() { map_.abandon(kRange); }

  void poison() { map_.finish_poisoned(kRange); }

  void mark_stale() {
    map_.mark_stale(kRange, [&](base::PageRange) { zapped_ = true; });
  }

  [[nodiscard]] bool claimed() const { return map_.state(kPage) == PageState::kClaimed; }

  [[nodiscard]] bool of_missing() const { return claimed() && !of_zero_ && !map_.stale(kPage); }

  [[nodiscard]] std::string state() const {
    const std::string name(to_string(map_.state(kPage)));
    if (claimed()) {
      return name + (map_.stale(kPage) ? ", stale" : of_zero_ ? " of zero" : "");
    }
    return name + (zapped_ ? ", zapped" : "");
  }

 private:
  PageMap map_{base::PageCount{4}};
  bool of_zero_ = false;
  bool zapped_ = false;
};

using Step = std::function<void(Trial&)>;

const Step kClaim = [](Trial& trial) { trial.claim(); };
const Step kClaimZero = [](Trial& trial) { trial.claim_zero(); };
const Step kInstalled = [](Trial& trial) { trial.finish(false); };
const Step kZero = [](Trial& trial) { trial.finish(true); };
const Step kAbandon = [](Trial& trial) { trial.abandon(); };
const Step kStale = [](Trial& trial) { trial.mark_stale(); };
const Step kPoison = [](Trial& trial) { trial.poison(); };

/// Each state, by a way that leads to it from missing.
const std::vector<std::vector<Step>>& ways() {
  static const std::vector<std::vector<Step>> all{
      {},
      {kClaim},
      {kClaim, kStale},
      {kClaim, kInstalled},
      {kClaim, kZero},
      {kClaim, kZero, kClaimZero},
      {kClaim, kPoison},
  };
  return all;
}

std::set<std::string> rows_of_map() {
  const std::array calls{
      std::pair<std::string, Step>{"claim_run", kClaim},
      std::pair<std::string, Step>{"claim_zero", kClaimZero},
      std::pair<std::string, Step>{"finish_installed", kInstalled},
      std::pair<std::string, Step>{"finish_zero", kZero},
      std::pair<std::string, Step>{"abandon", kAbandon},
      std::pair<std::string, Step>{"mark_stale", kStale},
      std::pair<std::string, Step>{"finish_poisoned", kPoison},
  };
  std::set<std::string> rows;
  for (const auto& way : ways()) {
    for (const auto& [name, call] : calls) {
      Trial trial;
      std::for_each(way.begin(), way.end(), [&](const Step& step) { step(trial); });
      const std::string before = trial.state();
      const bool ends_claim = name.rfind("finish", 0) == 0 || name == "abandon";
      if (ends_claim && !trial.claimed()) {
        continue;  // Breaks an invariant.
      }
      if (name == "finish_poisoned" && !trial.of_missing()) {
        continue;  // Likewise.
      }
      call(trial);
      if (trial.state() != before) {
        rows.insert("| " + before + " | " + name + " | " + trial.state() + " |");
      }
    }
  }
  return rows;
}

std::set<std::string> rows_of_document() {
  std::ifstream file(TOWLINE_SOURCE_ROOT "/docs/state-machines.md");
  std::set<std::string> rows;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("| state | call |", 0) == 0) {
      inside = true;
      std::getline(file, line);
    } else if (inside && line.empty()) {
      inside = false;
    } else if (inside) {
      rows.insert(line);
    }
  }
  return rows;
}

TEST_CASE("the document says what every call does to a page in every state") {
  CHECK(rows_of_map() == rows_of_document());
}

}  // namespace
}  // namespace towline::runtime
