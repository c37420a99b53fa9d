// Every interleaving of both brains that ship, their gates, the frames between them and a link that
// may break at any moment and be tied again. What a brain asks for is performed, and every task
// ends in every way it can (switch_world.h); nothing is decided here.
//
// Bounded, so that the walk ends: the epochs (the last one's link holds); each word of a user once;
// one pass and one round of it, then the switch; data lanes do not break alone (tests/simulation).
#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
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
constexpr std::uint64_t kMostEpochs = 2;
#else
#define TOWLINE_WALKS_FEW 0
constexpr std::uint64_t kMostEpochs = 3;
#endif

MigrationOptions options() {
  MigrationOptions options;
  options.switch_policy = SwitchPolicy::kManual;
  options.passes = 1;
  return options;
}

/// Walks all worlds that can be reached and notes what was wrong with any of them.
class Walk {
 public:
  /// `enough`: the walk ends where this is broken.
  explicit Walk(Tables tables, Mistake mistake = Mistake::kNone,
                std::uint64_t most_epochs = kMostEpochs, const std::string& enough = {})
      : tables_(std::move(tables)),
        steps_(tables_, options(), mistake, {.epochs = most_epochs}, notes_) {
    steps_.first([this](World world) { visit(std::move(world), 0); });
    while (!todo_.empty() && !notes_.broken.contains(enough)) {
      const auto [number, world] = std::move(todo_.front());
      todo_.pop_front();
      steps_.follow(world, [this, number = number](World next) { visit(std::move(next), number); });
    }
  }

  [[nodiscard]] const std::set<std::string>& broken() const { return notes_.broken; }

  [[nodiscard]] std::size_t worlds() const { return ends_.size(); }

  [[nodiscard]] bool ends(SourceState source, TargetState target, Ownership here) const {
    return seen_ends_.contains({source, target, here});
  }

  /// Worlds from which no interleaving leads to the end of the migration at the source, though the
  /// target was not killed and has not given its source up.
  [[nodiscard]] std::size_t stuck() const {
    std::vector<bool> good(ends_.size());
    std::deque<std::size_t> todo;
    for (std::size_t i = 0; i < ends_.size(); ++i) {
      if (ends_[i] == End::kOver) {
        good[i] = true;
        todo.push_back(i);
      }
    }
    while (!todo.empty()) {
      for (const std::size_t before : reached_from_[todo.front()]) {
        if (!good[before]) {
          good[before] = true;
          todo.push_back(before);
        }
      }
      todo.pop_front();
    }
    std::size_t count = 0;
    for (std::size_t i = 0; i < ends_.size(); ++i) {
      count += !good[i] && ends_[i] != End::kHopeless ? 1 : 0;
    }
    return count;
  }

  /// Rules that no interleaving takes: the walk, or the rule, is not what it seems.
  [[nodiscard]] std::vector<std::string> never_taken() const {
    std::vector<std::string> names;
    const auto look = [&names](const auto& rules, const auto& taken) {
      for (const auto& rule : rules) {
        if (!taken.contains({rule.from, rule.on})) {
          names.push_back(std::string(to_string(rule.from)) + " + " +
                          std::string(to_string(rule.on)));
        }
      }
    };
    look(tables_.source, notes_.source_taken);
    look(tables_.target, notes_.target_taken);
    return names;
  }

 private:
  enum class End : std::uint8_t { kGoesOn, kOver, kHopeless };

  void visit(World world, std::size_t from) {
    const auto [at, first] = numbers_.try_emplace(world.key(), ends_.size());
    if (first) {
      const bool over = is_final(status_of(world.source.state()));
      ends_.push_back(over                             ? End::kOver
                      : world.killed || world.given_up ? End::kHopeless
                                                       : End::kGoesOn);
      reached_from_.emplace_back();
      seen_ends_.insert({world.source.state(), world.target.state(), world.here});
      todo_.emplace_back(at->second, std::move(world));
    }
    reached_from_[at->second].push_back(from);
  }

  Tables tables_;
  Notes notes_;
  Steps steps_;
  std::unordered_map<std::string, std::size_t> numbers_;
  std::vector<End> ends_;
  std::vector<std::vector<std::size_t>> reached_from_;
  std::set<std::tuple<SourceState, TargetState, Ownership>> seen_ends_;
  std::deque<std::pair<std::size_t, World>> todo_;
};

using Names = std::set<std::string>;

TEST_CASE("no interleaving of the switch makes two copies run, and every one can come to an end") {
  const Walk walk{Tables{}};
  CHECK(walk.broken() == Names{});
  CHECK(walk.stuck() == 0);
  CHECK(walk.worlds() > 2000);
  if (kMostEpochs > 2) {
    // Nobody reads a control lane while the source is paused: its reader was joined before. The
    // table has the rule all the same (source_protocol_test.cc feeds it).
    CHECK(walk.never_taken() == std::vector<std::string>{"ordered-paused + target-running"});
  }
  CHECK(walk.ends(SourceState::kCompleted, TargetState::kCompleted, Ownership::kGone));
  CHECK(walk.ends(SourceState::kOrderedPaused, TargetState::kLoadedAlone, Ownership::kOrdered));
  CHECK(walk.ends(SourceState::kOrderedPaused, TargetState::kRunningAlone, Ownership::kOrdered));
  CHECK(walk.ends(SourceState::kFailed, TargetState::kFailed, Ownership::kHere));
  CHECK(walk.ends(SourceState::kCancelled, TargetState::kFailed, Ownership::kHere));
}

#if !TOWLINE_WALKS_FEW

// ---- mistakes: each is found --------------------------------------------------------------------

constexpr std::uint64_t kFewEpochs = 2;

bool finds(const std::string& wrong, const Tables& tables, Mistake mistake = Mistake::kNone) {
  return Walk(tables, mistake, kFewEpochs, wrong).broken().contains(wrong);
}

bool finds(const std::string& wrong, Mistake mistake) {
  return finds(wrong, Tables{}, mistake);
}

void change(Tables& tables, SourceState from, SourceEvent on, SourceState to, SourceAction act) {
  std::erase_if(tables.source,
                [&](const SourceRule& rule) { return rule.from == from && rule.on == on; });
  tables.source.push_back({from, on, to, act});
}

TEST_CASE("the walk finds a source that resumes when the link breaks after the order") {
  Tables tables;
  change(tables, SourceState::kOrdered, SourceEvent::kLinkLost, SourceState::kFailed,
         SourceAction::kResumeGuest);
  CHECK(finds("two copies run", tables));
}

TEST_CASE("the walk finds a source that can be cancelled after the order") {
  CHECK(finds("two copies run", Mistake::kCancelled));
}

TEST_CASE("the walk finds *running* that is noted only when it was told what is missing") {
  CHECK(finds("two copies run", Mistake::kRunningWithheld));
  CHECK(finds("the source runs a guest that it knows to run at the target",
              Mistake::kRunningWithheld));
}

TEST_CASE("the walk finds a source that does not read what had arrived before the link broke") {
  CHECK(finds("two copies run", Mistake::kRunningUnread));
}

TEST_CASE("the walk finds a target that runs without the order") {
  Tables tables;
  for (TargetRule& rule : tables.target) {
    if (rule.from == TargetState::kReceiving && rule.on == TargetEvent::kLinkLost) {
      rule.to = TargetState::kRunning;
      rule.act = TargetAction::kRun;
    }
  }
  CHECK(finds("two copies run", tables));
}

TEST_CASE("the walk finds a target that says never and can still be told to run") {
  Tables tables;
  for (TargetRule& rule : tables.target) {
    if (rule.on == TargetEvent::kLoadFailed) {
      rule.to = TargetState::kLoaded;
    }
  }
  CHECK(finds("a target runs that said never", tables));
}

TEST_CASE("the walk finds a gate that opens while the source's guest is gone") {
  Tables tables;
  for (OwnershipRule& rule : tables.gate) {
    if (rule.on == OwnershipEvent::kTargetRuns) {
      rule.to = Ownership::kHere;
    }
  }
  CHECK(finds("two copies run", tables));
}

TEST_CASE("the walk finds gates that are not told of the order, or that the target runs") {
  CHECK(finds("the gate refuses what a brain asks for", Mistake::kOrderUnnoted));
  CHECK(finds("the source knows that the guest runs there, and its gate does not",
              Mistake::kGateUntold));
}

TEST_CASE("the walk finds an epoch that begins before the old lane was read to its end") {
  CHECK(finds(
      "the target refuses what a source says: 'run-ordered' is impossible while the target is "
      "'running'",
      Mistake::kFencedEarly));
}

TEST_CASE("the walk finds words without which a source waits for ever") {
  CHECK(Walk(Tables{}, Mistake::kNone, kFewEpochs).stuck() == 0);
  CHECK(Walk(Tables{}, Mistake::kRunningUntold, kFewEpochs).stuck() != 0);
}

#endif

}  // namespace
}  // namespace towline::runtime::switch_model
