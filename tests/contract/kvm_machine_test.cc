#include "tests/contract/kvm_support.h"
#include "vmm/machine.h"

// Relied on: KVM on this kernel takes back the state that it gave, in the order of vcpu_state.cc.
// Who would break: every migrated guest.

namespace towline::vmm {
namespace {

TEST_CASE_FIXTURE(Fixture, "a guest goes on in another machine where it was parked") {
  const auto source = parked_source();
  const std::uint32_t before = counter(*source);
  const MachineState state = saved_and_sent(*source);
  CHECK(counter(*source) == before);

  const auto target = machine(true);
  target->start();
  CHECK(target->run_state() == RunState::kInmigrate);
  hand_over(*source, *target, state);
  CHECK(target->run_state() == RunState::kRunning);
  CHECK(source->run_state() == RunState::kFinishMigrate);
  CHECK(eventually([&] { return counter(*target) > before + 100; }));
  CHECK(counter(*source) == before);
}

TEST_CASE_FIXTURE(Fixture, "both vCPUs of a guest go on in another machine") {
  const auto source = machine(false, 2);
  source->start();
  REQUIRE(eventually([&] {
    return counter(*source) > 100 && peek<std::uint32_t>(*source, tests::kSecondCounterAt) > 100;
  }));
  REQUIRE(source->gate().step(OwnershipEvent::kHold).ok());
  park_and_wait(*source);
  const auto first = counter(*source);
  const auto second = peek<std::uint32_t>(*source, tests::kSecondCounterAt);
  const MachineState state = saved_and_sent(*source);
  const auto target = machine(true, 2);
  target->start();
  hand_over(*source, *target, state);
  CHECK(eventually([&] {
    return counter(*target) > first + 100 &&
           peek<std::uint32_t>(*target, tests::kSecondCounterAt) > second + 100;
  }));
}

}  // namespace
}  // namespace towline::vmm
