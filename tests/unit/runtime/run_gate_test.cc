#include "runtime/run_gate.h"

#include <array>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

constexpr std::array kOwnerships{Ownership::kHere, Ownership::kIncoming, Ownership::kHeld,
                                 Ownership::kOrdered, Ownership::kGone};
constexpr std::array kEvents{OwnershipEvent::kHold,          OwnershipEvent::kRelease,
                             OwnershipEvent::kOrder,         OwnershipEvent::kTargetRuns,
                             OwnershipEvent::kTargetRefused, OwnershipEvent::kTakeBack,
                             OwnershipEvent::kTake};

TEST_CASE("the guest may run only where it belongs") {
  for (const Ownership ownership : kOwnerships) {
    CHECK(RunGate(ownership).may_run() == (ownership == Ownership::kHere));
  }
}

TEST_CASE("the gate takes the listed steps and refuses all others, and a refusal changes nothing") {
  int taken = 0;
  for (const Ownership from : kOwnerships) {
    for (const OwnershipEvent event : kEvents) {
      RunGate gate(from);
      const OwnershipRule* rule = nullptr;
      for (const OwnershipRule& one : kOwnershipRules) {
        rule = one.from == from && one.on == event ? &one : rule;
      }
      const base::Outcome outcome = gate.step(event);
      REQUIRE(outcome.ok() == (rule != nullptr));
      CHECK(gate.ownership() == (rule != nullptr ? rule->to : from));
      taken += rule != nullptr ? 1 : 0;
    }
  }
  CHECK(taken == kOwnershipRules.size());
}

TEST_CASE("a refused step names the state and the event") {
  RunGate gate(Ownership::kGone);
  const base::Outcome outcome = gate.step(OwnershipEvent::kRelease);
  REQUIRE_FALSE(outcome.ok());
  CHECK(outcome.error().kind == base::ErrorKind::kRefused);
  CHECK(outcome.error().detail == "'release' is impossible while the guest's ownership is 'gone'");
}

TEST_CASE("once the order was sent only the target's or the user's word opens the gate again") {
  for (const OwnershipEvent event : kEvents) {
    RunGate gate(Ownership::kOrdered);
    (void)gate.step(event);
    CHECK(gate.may_run() ==
          (event == OwnershipEvent::kTargetRefused || event == OwnershipEvent::kTakeBack));
  }
}

TEST_CASE("a guest that is gone never comes back") {
  for (const OwnershipEvent event : kEvents) {
    CHECK_FALSE(RunGate(Ownership::kGone).step(event).ok());
  }
}

TEST_CASE("the run order is obeyed once") {
  RunGate gate(Ownership::kIncoming);
  CHECK(gate.step(OwnershipEvent::kTake).ok());
  CHECK_FALSE(gate.step(OwnershipEvent::kTake).ok());
}

}  // namespace
}  // namespace towline::runtime
