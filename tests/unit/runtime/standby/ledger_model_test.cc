// Every interleaving of a source that leaves a ledger, its targets, the frames between them and a
// link that may break; and the source may die between any two words that it leaves. Whoever comes
// after it knows the ledger alone: it goes on as heir, keeps the guest, moves it to a further
// target, and may die as well. The brains of both sides are the shipped ones, and so is the order
// in which the guest changes hands (owner_changes.h) and what a phase means (ownership_left());
// written down here once more is only where the driver's other tasks write a word (switch_heir.cc).
//
// switch_model_test.cc walks the same switch with more epochs, users and rooms, and without deaths.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "tests/support/switch_world.h"

namespace towline::runtime::switch_model {
namespace {

// One thread walks: a sanitizer finds in few worlds what it finds in many.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TOWLINE_WALKS_FEW 1
#else
#define TOWLINE_WALKS_FEW 0
#endif

/// Without a pass: what it adds is in the other walk.
MigrationOptions straight_over() {
  MigrationOptions options;
  options.switch_policy = SwitchPolicy::kImmediate;
  return options;
}

/// A death or a break needs an epoch, and whoever keeps the guest begins with the first again.
Limits limits_of(int deaths, int breaks) {
  return {.epochs = 2 + static_cast<std::uint64_t>(deaths + breaks),
          .breaks = breaks,
          .deaths = deaths,
          .words = false,
          .watch = false,
          .refusals = false,
          .alone = false};
}

/// Walks all worlds that can be reached, or as far as the first one with which this is wrong.
class LedgerWalk {
 public:
  explicit LedgerWalk(Mistake mistake, int deaths, int breaks, const std::string& enough = {})
      : steps_(tables_, straight_over(), mistake, limits_of(deaths, breaks), notes_) {
    steps_.first([this](World world) { visit(std::move(world), 0); });
    while (!todo_.empty() && !notes_.broken.contains(enough)) {
      const auto [number, world] = std::move(todo_.front());
      todo_.pop_front();
      steps_.follow(world, [this, number = number](World next) { visit(std::move(next), number); });
    }
  }

  [[nodiscard]] const std::set<std::string>& broken() const { return notes_.broken; }

  [[nodiscard]] std::size_t worlds() const { return before_.size(); }

  [[nodiscard]] const std::set<std::string>& ends() const { return ends_; }

  /// Worlds whose guest nobody will ever have again, whatever happens.
  [[nodiscard]] std::size_t stuck() const {
    std::vector<bool> leads(before_.size());
    std::deque<std::size_t> todo(good_.begin(), good_.end());
    for (const std::size_t world : good_) {
      leads[world] = true;
    }
    while (!todo.empty()) {
      const std::size_t world = todo.front();
      todo.pop_front();
      for (const std::size_t before : before_[world]) {
        if (!leads[before]) {
          leads[before] = true;
          todo.push_back(before);
        }
      }
    }
    return static_cast<std::size_t>(std::count(leads.begin(), leads.end(), false));
  }

 private:
  void visit(World world, std::size_t from) {
    const auto [at, first] = numbers_.try_emplace(world.key(), before_.size());
    const std::size_t number = at->second;
    if (first) {
      before_.emplace_back();
      if (const auto end = end_of(world)) {
        ends_.insert(*end);
        good_.push_back(number);
      }
      todo_.emplace_back(number, std::move(world));
    }
    before_[number].push_back(from);
  }

  /// How the guest ended up; none: that is open.
  static std::optional<std::string> end_of(const World& world) {
    if (world.fate == Fate::kDiedWithSource) {
      return "died with its own process";
    }
    if (world.died_as_target || (world.other.has_value() && world.other->killed)) {
      return "died with its target, or was taken back from it";
    }
    if (world.fate == Fate::kForgotten) {
      return "forgotten";
    }
    if (world.source.state() == SourceState::kCompleted) {
      return std::string(world.which == 0 ? "moved" : "rescued") +
             (world.inherited ? " by an heir" : "");
    }
    const bool here = world.here == Ownership::kHere && is_final(world.source.shown());
    if (world.idle || here) {  // A rescue that came to nothing leaves it where it is.
      return world.kept ? "kept" : "runs on";
    }
    return std::nullopt;
  }

  Tables tables_;
  Notes notes_;
  Steps steps_;
  std::unordered_map<std::string, std::size_t> numbers_;
  std::vector<std::vector<std::size_t>> before_;  // By number: from which worlds it is reached.
  std::vector<std::size_t> good_;
  std::deque<std::pair<std::size_t, World>> todo_;
  std::set<std::string> ends_;
};

using Names = std::set<std::string>;

TEST_CASE("a death and a break, in any order: a guest has one owner, and an heir that goes on") {
  const LedgerWalk walk(Mistake::kNone, 1, TOWLINE_WALKS_FEW == 0 ? 1 : 0);
  CHECK(walk.broken() == Names{});
  CHECK(walk.stuck() == 0);
  CHECK(walk.worlds() > (TOWLINE_WALKS_FEW == 0 ? 150'000U : 5'000U));
}

#if !TOWLINE_WALKS_FEW

TEST_CASE("two deaths, at any place: the guest comes to every end that there is, and no other") {
  const LedgerWalk walk(Mistake::kNone, 2, 0);
  CHECK(walk.broken() == Names{});
  CHECK(walk.stuck() == 0);
  CHECK(walk.ends() == Names{"died with its own process",
                             "died with its target, or was taken back from it", "forgotten", "kept",
                             "moved", "moved by an heir", "rescued", "rescued by an heir",
                             "runs on"});
  CHECK(walk.worlds() > 300'000);
}

bool finds(const std::string& wrong, Mistake mistake) {
  return LedgerWalk(mistake, 2, 1, wrong).broken().contains(wrong);
}

TEST_CASE("the walk finds an order that is in the ledger only when it was sent") {
  CHECK(finds("two copies run", Mistake::kOrderedAfterSend));
}

TEST_CASE("the walk finds a ledger that says *serving* before the target has said it") {
  const LedgerWalk walk(Mistake::kServingBeforeWord, 1, 0);
  CHECK(walk.stuck() > 0);
}

TEST_CASE("the walk finds a guest that runs on before the ledger has released it") {
  CHECK(finds("an old guest is kept", Mistake::kReleasedAfterStart));
}

TEST_CASE("the walk finds an epoch that is in the ledger only when its greeting was sent") {
  CHECK(finds("an epoch is used twice", Mistake::kEpochAfterGreeting));
}

TEST_CASE("the walk finds a rescue that gives the kept guest up when it begins") {
  CHECK(finds("the last copy of the guest is dropped", Mistake::kOverBeforeRescue));
}

TEST_CASE("the walk finds an heir that releases a guest as if it could run it") {
  CHECK(finds("the last copy of the guest is dropped", Mistake::kReleasedAsSource));
}

TEST_CASE("the walk finds *running* that is noted only when what is missing was told") {
  CHECK(finds("the source runs a guest that it knows to run at the target",
              Mistake::kRunningWithheld));
}

TEST_CASE("the walk finds a rescue whose heir would ask the wrong target") {
  CHECK(finds("two copies run", Mistake::kRecordAfterOrder));
}

#endif

}  // namespace
}  // namespace towline::runtime::switch_model
