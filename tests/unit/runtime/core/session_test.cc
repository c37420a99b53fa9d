#include <set>

#include <doctest/doctest.h>

#include "runtime/core/source_session.h"
#include "runtime/core/target_session.h"

namespace towline::runtime {
namespace {

constexpr int kSourceStates = static_cast<int>(SourceState::kCancelled) + 1;
constexpr int kSourceEvents = static_cast<int>(SourceEvent::kTakeBack) + 1;
constexpr int kTargetStates = static_cast<int>(TargetState::kFailed) + 1;
constexpr int kTargetEvents = static_cast<int>(TargetEvent::kGuestGivenUp) + 1;

/// Steps every event in every state; each must give the one rule that lists it, or be refused.
template <typename State, typename Event, typename Rules>
void check_all_pairs(const Rules& rules, int states, int events) {
  std::size_t taken = 0;
  for (int i = 0; i < states; ++i) {
    for (int j = 0; j < events; ++j) {
      const auto state = static_cast<State>(i);
      const auto event = static_cast<Event>(j);
      const auto* listed = rules.data() + rules.size();
      int count = 0;
      for (const auto& rule : rules) {
        if (rule.from == state && rule.on == event) {
          listed = &rule;
          ++count;
        }
      }
      CAPTURE(to_string(state));
      CAPTURE(to_string(event));
      REQUIRE(count <= 1);
      const auto got = step(state, event);
      REQUIRE(got.ok() == (count == 1));
      if (got.ok()) {
        CHECK(got.value().to == listed->to);
        CHECK(got.value().act == listed->act);
        ++taken;
      } else {
        CHECK(got.error().kind == base::ErrorKind::kCorrupt);
        CHECK(got.error().detail.find(to_string(event)) != std::string::npos);
        CHECK(got.error().detail.find(to_string(state)) != std::string::npos);
      }
    }
  }
  CHECK(taken == rules.size());
}

template <typename State, typename Rules>
std::set<State> reachable_from(State first, const Rules& rules) {
  std::set<State> seen{first};
  for (std::size_t before = 0; before != seen.size();) {
    before = seen.size();
    for (const auto& rule : rules) {
      if (seen.contains(rule.from)) {
        seen.insert(rule.to);
      }
    }
  }
  return seen;
}

TEST_CASE("the source takes every listed step and refuses every other") {
  check_all_pairs<SourceState, SourceEvent>(kSourceRules, kSourceStates, kSourceEvents);
}

TEST_CASE("the target takes every listed step and refuses every other") {
  check_all_pairs<TargetState, TargetEvent>(kTargetRules, kTargetStates, kTargetEvents);
}

TEST_CASE("every state of both sessions can be reached") {
  CHECK(reachable_from(SourceState::kConnecting, kSourceRules).size() == kSourceStates);
  CHECK(reachable_from(TargetState::kListening, kTargetRules).size() == kTargetStates);
}

TEST_CASE("after the order only the target's never and the user resume the guest at the source") {
  for (const SourceState state : reachable_from(SourceState::kOrdered, kSourceRules)) {
    for (const SourceRule& rule : kSourceRules) {
      if (rule.from == state && rule.act == SourceAction::kResumeGuest) {
        const bool by_the_user =
            rule.on == SourceEvent::kTakeBack && state == SourceState::kOrderedPaused;
        CHECK((rule.on == SourceEvent::kTargetNever || by_the_user));
      }
    }
  }
}

TEST_CASE("a source that was told that the guest runs never resumes it") {
  for (const SourceState state : reachable_from(SourceState::kServing, kSourceRules)) {
    CHECK(state != SourceState::kFailed);
    CHECK_FALSE(step(state, SourceEvent::kTakeBack).ok());
    CHECK_FALSE(step(state, SourceEvent::kTargetNever).ok());
  }
}

TEST_CASE("every paused or recovering state leads on to the end of the migration") {
  for (int i = 0; i < kSourceStates; ++i) {
    const auto state = static_cast<SourceState>(i);
    if (!before_order(state)) {
      CAPTURE(to_string(state));
      CHECK(reachable_from(state, kSourceRules).contains(SourceState::kCompleted));
    }
  }
  for (const TargetState state : reachable_from(TargetState::kLoaded, kTargetRules)) {
    CAPTURE(to_string(state));
    const bool given_up = state == TargetState::kPoisoned || state == TargetState::kLost;
    CHECK(reachable_from(state, kTargetRules).contains(TargetState::kCompleted) == !given_up);
  }
}

TEST_CASE("a target that has given its source up lets nobody in, whatever comes") {
  for (const TargetState state : {TargetState::kPoisoned, TargetState::kLost}) {
    CHECK(shuts_out(state));
    CHECK(is_final(status_of(state)));
    CHECK(reachable_from(state, kTargetRules) == std::set{state});
  }
  CHECK(shuts_out(TargetState::kAbandoning));
  for (const TargetRule& rule : kTargetRules) {
    CHECK((rule.on != TargetEvent::kSourceGivenUp || rule.from == TargetState::kRunningAlone));
    CHECK((rule.to != TargetState::kPoisoned || rule.from == TargetState::kAbandoning));
    CHECK((rule.to != TargetState::kLost || rule.from == TargetState::kAbandoning));
    CHECK((!shuts_out(rule.from) || rule.on != TargetEvent::kReconnected));
  }
}

TEST_CASE("the order is sent from one state only, and nothing leads back before it but a failure") {
  for (const SourceRule& rule : kSourceRules) {
    CHECK((rule.on == SourceEvent::kOrderSent) == (rule.act == SourceAction::kOrder));
    if (!before_order(rule.from) && before_order(rule.to)) {
      CHECK(rule.to == SourceState::kFailed);
      CHECK((rule.on == SourceEvent::kTargetNever || rule.on == SourceEvent::kTakeBack));
    }
    if (before_order(rule.from) && !before_order(rule.to)) {
      CHECK(rule.from == SourceState::kSwitching);
      CHECK(rule.on == SourceEvent::kOrderSent);
    }
  }
}

TEST_CASE("a cancel is possible in every phase before the order and in none after it") {
  for (int i = 0; i < kSourceStates; ++i) {
    const auto state = static_cast<SourceState>(i);
    const bool ended = state == SourceState::kFailed || state == SourceState::kCancelled;
    CAPTURE(to_string(state));
    CHECK(step(state, SourceEvent::kCancel).ok() == (before_order(state) && !ended));
  }
}

TEST_CASE("a lost link before the order leaves the guest running at the source") {
  for (const SourceRule& rule : kSourceRules) {
    if (rule.on == SourceEvent::kLinkLost) {
      CAPTURE(to_string(rule.from));
      const bool parked = rule.from == SourceState::kSwitching;
      const SourceAction early = parked ? SourceAction::kResumeGuest : SourceAction::kNone;
      CHECK(rule.act == (before_order(rule.from) ? early : SourceAction::kStayParked));
    }
  }
}

TEST_CASE(
    "the target runs the guest by one rule only, and after it never fails or drops anything") {
  for (const TargetRule& rule : kTargetRules) {
    if (rule.act == TargetAction::kRun) {
      CHECK(rule.from == TargetState::kLoaded);
      CHECK(rule.on == TargetEvent::kRunOrdered);
    }
  }
  for (const TargetState state : reachable_from(TargetState::kRunning, kTargetRules)) {
    CHECK(state != TargetState::kFailed);
    CHECK_FALSE(step(state, TargetEvent::kRunOrdered).ok());
  }
}

TEST_CASE("a target that said never will not run") {
  CHECK(reachable_from(TargetState::kFailed, kTargetRules).size() == 1);
}

TEST_CASE("users see QEMU's names") {
  CHECK(status_of(SourceState::kConnecting) == MigrationStatus::kSetup);
  CHECK(status_of(SourceState::kPassing) == MigrationStatus::kActive);
  CHECK(status_of(SourceState::kSwitching) == MigrationStatus::kDevice);
  CHECK(status_of(SourceState::kServing) == MigrationStatus::kPostcopyActive);
  CHECK(status_of(SourceState::kOrderedPaused) == MigrationStatus::kPostcopyPaused);
  CHECK(status_of(SourceState::kServingReconnecting) == MigrationStatus::kPostcopyRecoverSetup);
  CHECK(status_of(SourceState::kServingRecovering) == MigrationStatus::kPostcopyRecover);
  CHECK(status_of(TargetState::kRunningRecovering) == MigrationStatus::kPostcopyRecover);
  CHECK(status_of(TargetState::kReceiving) == MigrationStatus::kActive);
  CHECK(status_of(TargetState::kLoadedAlone) == MigrationStatus::kPostcopyPaused);
  CHECK(status_of(TargetState::kCompleted) == MigrationStatus::kCompleted);
}

}  // namespace
}  // namespace towline::runtime
