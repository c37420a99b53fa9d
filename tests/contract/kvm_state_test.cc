#include <poll.h>
#include <x86intrin.h>

#include <array>

#include "tests/contract/kvm_support.h"
#include "tests/contract/support.h"
#include "vmm/kvm/guest_clock.h"
#include "vmm/kvm/kvm.h"

// What of a guest's state survives a move, and what a bad state is answered with.

namespace towline::vmm {
namespace {

using runtime::Section;

Section& section(MachineState& state, const std::string& device) {
  const auto found = std::find_if(state.sections.begin(), state.sections.end(),
                                  [&](const Section& one) { return one.device == device; });
  REQUIRE(found != state.sections.end());
  return *found;
}

std::vector<std::byte>& field(MachineState& state, const std::string& device,
                              const std::string& name) {
  Section& where = section(state, device);
  const auto found = std::find_if(where.fields.begin(), where.fields.end(),
                                  [&](const runtime::Field& one) { return one.name == name; });
  REQUIRE(found != where.fields.end());
  return found->bytes;
}

void set_number(MachineState& state, const std::string& device, const std::string& name,
                std::uint64_t value) {
  std::memcpy(field(state, device, name).data(), &value, sizeof value);
}

std::string load_error(runtime::Machine& target, const MachineState& state) {
  const auto loaded = target.load(state);
  REQUIRE_FALSE(loaded.ok());
  return to_string(loaded.error());
}

TEST_CASE_FIXTURE(Fixture, "floating point and vector registers survive a move") {
  const auto source = parked_source();
  MachineState state = saved_and_sent(*source);
  // The tiny guest uses neither; so they are put in here and must come out there.
  auto& xsave = field(state, "vcpu", "xsave");
  const auto fill = [&](std::size_t at, std::size_t size, int first) {
    for (std::size_t i = 0; i < size; ++i) {
      xsave[at + i] = static_cast<std::byte>(first + static_cast<int>(i));
    }
  };
  constexpr std::size_t kTagWord = 4;
  constexpr std::size_t kFirstRegister = 32;
  constexpr std::size_t kFirstVector = 160;
  constexpr std::size_t kPresent = 512;  // XSTATE_BV: x87 and SSE.
  xsave[kTagWord] = std::byte{1};
  fill(kFirstRegister, 10, 0x11);
  fill(kFirstVector, 256, 0x40);
  xsave[kPresent] |= std::byte{3};
  const std::vector<std::byte> sent = xsave;

  const auto target = machine(true);
  hand_over(*source, *target, state);
  const auto before = counter(*source);
  REQUIRE(eventually([&] { return counter(*target) > before + 100; }));
  REQUIRE(target->gate().step(OwnershipEvent::kHold).ok());
  park_and_wait(*target);
  MachineState again = saved_and_sent(*target);
  const auto& back = field(again, "vcpu", "xsave");
  CHECK(std::equal(sent.begin() + kFirstRegister, sent.begin() + kFirstRegister + 10,
                   back.begin() + kFirstRegister));
  CHECK(std::equal(sent.begin() + kFirstVector, sent.begin() + kFirstVector + 256,
                   back.begin() + kFirstVector));
}

struct TscRun {
  std::uint64_t parked_at = 0;   ///< What the guest last read at the source.
  std::uint64_t resumed_at = 0;  ///< What it read soon after at the target.
  std::uint64_t most = 0;        ///< Ticks of this host around both.
  std::uint64_t pause = 0;       ///< Ticks of the artificial pause.
};

/// Moves a guest with a pause of 50 ms in between: the pause is what is being tested.
TscRun move_with_pause(Fixture& fixture, const std::function<void(MachineState&)>& change) {
  TscRun run;
  const std::uint64_t begin = __rdtsc();
  const auto source = fixture.parked_source();
  run.parked_at = peek<std::uint64_t>(*source, tests::kTscAt);
  const auto counted = counter(*source);
  MachineState state = saved_and_sent(*source);
  change(state);
  const std::uint64_t pause_begin = __rdtsc();
  ::poll(nullptr, 0, 50);
  run.pause = __rdtsc() - pause_begin;
  const auto target = fixture.machine(true);
  hand_over(*source, *target, state);
  REQUIRE(eventually([&] { return counter(*target) > counted + 2; }));
  run.resumed_at = peek<std::uint64_t>(*target, tests::kTscAt);
  run.most = __rdtsc() - begin;
  return run;
}

TEST_CASE_FIXTURE(Fixture, "the guest's TSC counts through the pause, on one host") {
  const TscRun run = move_with_pause(*this, [](MachineState&) {});
  CHECK(run.resumed_at > run.parked_at);
  CHECK(run.resumed_at - run.parked_at >= run.pause);
  CHECK(run.resumed_at - run.parked_at <= run.most);
}

/// Whether this KVM can give a guest another TSC than the host's. Some cannot, and do not say so:
/// they take the offset and do not keep it.
bool keeps_tsc_offset() {
  const auto kvm = Kvm::open();
  REQUIRE(kvm.ok());
  const auto vm = kvm.value().create_vm();
  REQUIRE(vm.ok());
  REQUIRE(vm.value().create_irqchip().ok());
  const auto vcpu = vm.value().create_vcpu(0);
  REQUIRE(vcpu.ok());
  REQUIRE(vcpu.value().set_tsc_offset(12345).ok());
  const auto kept = vcpu.value().get_tsc_offset();
  REQUIRE(kept.ok());
  return kept.value() == 12345;
}

void from_another_host(MachineState& state, std::uint64_t tsc_ahead) {
  set_number(state, "host-clock", "tsc",
             section(state, "host-clock").get("tsc").value() + tsc_ahead);
  field(state, "host-clock", "boot-id")[0] ^= std::byte{1};
}

TEST_CASE_FIXTURE(Fixture, "a guest from another host goes on with its TSC, or with this host's") {
  // As if the source's TSC had been this much ahead when the guest was parked there.
  constexpr std::uint64_t kAhead = 1'000'000'000'000;
  const TscRun run =
      move_with_pause(*this, [](MachineState& state) { from_another_host(state, kAhead); });
  // Where the offset is kept it counts on from what the guest last read. Where it is not, this
  // host's TSC is what there is, and the guest's own clock is kvm-clock: the next case.
  const std::uint64_t ahead = keeps_tsc_offset() ? kAhead : 0;
  CHECK(run.resumed_at > run.parked_at + ahead);
  const std::uint64_t gap = run.resumed_at - run.parked_at - ahead;
  // The wall clock counted it: off by its slewing, a thousandth.
  CHECK(gap + gap / 1000 >= run.pause);
  CHECK(gap <= run.most + run.most / 1000);
}

TEST_CASE_FIXTURE(Fixture, "kvm-clock counts through the pause, also from another host") {
  const auto source = parked_source();
  MachineState state = saved_and_sent(*source);
  const auto ns = section(state, "kvm-clock").get("ns").value();
  const auto begin = section(state, "host-clock").get("realtime-ns").value();
  from_another_host(state, 1'000'000'000'000);
  ::poll(nullptr, 0, 50);
  const auto target = machine(true);
  REQUIRE(target->load(state).ok());
  MachineState again = saved_and_sent(*target);
  const auto gap = section(again, "kvm-clock").get("ns").value() - ns;
  const auto host_gap = section(again, "host-clock").get("realtime-ns").value() - begin;
  CHECK(gap + gap / 1000 >= 50'000'000);
  CHECK(gap <= host_gap + host_gap / 1000 + 1'000'000);
}

TEST_CASE_FIXTURE(Fixture, "kvm-clock counts through the pause") {
  const auto source = parked_source();
  MachineState state = saved_and_sent(*source);
  const auto ns = section(state, "kvm-clock").get("ns").value();
  const auto begin = section(state, "host-clock").get("monotonic-ns").value();
  ::poll(nullptr, 0, 50);
  const auto target = machine(true);
  REQUIRE(target->load(state).ok());
  MachineState again = saved_and_sent(*target);
  const auto gap = section(again, "kvm-clock").get("ns").value() - ns;
  const auto host_gap = section(again, "host-clock").get("monotonic-ns").value() - begin;
  CHECK(gap >= 50'000'000);
  CHECK(gap <= host_gap + host_gap / 1000 + 1'000'000);
}

TEST_CASE_FIXTURE(Fixture, "what was saved, loaded and saved again is the same but for the time") {
  const auto source = parked_source(2);
  const MachineState state = saved_and_sent(*source);
  const auto target = machine(true, 2);
  copy_memory(*source, *target);
  REQUIRE(target->load(state).ok());
  MachineState again = saved_and_sent(*target);
  for (const Section& before : state.sections) {
    if (before.device == "host-clock" || before.device == "kvm-clock" ||
        before.device == "machine") {
      continue;
    }
    const Section* after = again.find(before.device, before.instance);
    REQUIRE(after != nullptr);
    REQUIRE(after->fields.size() == before.fields.size());
    for (std::size_t i = 0; i < before.fields.size(); ++i) {
      CAPTURE(before.device);
      CAPTURE(before.instance);
      CAPTURE(before.fields[i].name);
      CHECK(after->fields[i].bytes == before.fields[i].bytes);
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "a state without one of its sections names the one") {
  const auto source = parked_source();
  const MachineState state = saved_and_sent(*source);
  const auto target = machine(true);
  for (std::size_t i = 0; i < state.sections.size(); ++i) {
    MachineState damaged = state;
    const std::string name = damaged.sections[i].device;
    damaged.sections.erase(damaged.sections.begin() + static_cast<long>(i));
    CAPTURE(name);
    CHECK(mentions(load_error(*target, damaged), name));
  }
  CHECK(target->run_state() == RunState::kInmigrate);
  CHECK(target->load(state).ok());
}

TEST_CASE_FIXTURE(Fixture, "a vCPU without one of its fields names vCPU and field") {
  const auto source = parked_source();
  const MachineState state = saved_and_sent(*source);
  const auto target = machine(true);
  for (const char* name : {"rip", "cr3", "cs", "xsave", "lapic", "msrs", "events", "mp-state",
                           "debugregs", "tsc-offset"}) {
    MachineState damaged = state;
    auto& fields = section(damaged, "vcpu").fields;
    fields.erase(std::find_if(fields.begin(), fields.end(),
                              [&](const runtime::Field& one) { return one.name == name; }));
    CAPTURE(name);
    const std::string error = load_error(*target, damaged);
    CHECK(mentions(error, "vcpu[0]"));
    CHECK(mentions(error, std::string("'") + name + "'"));
  }
}

TEST_CASE_FIXTURE(Fixture, "a vCPU's state of another version names both versions") {
  const auto source = parked_source();
  MachineState state = saved_and_sent(*source);
  section(state, "vcpu").version = 7;
  const auto target = machine(true);
  CHECK(mentions(load_error(*target, state), "version 7; this program reads version 1"));
}

TEST_CASE_FIXTURE(Fixture, "a register area of the wrong size names both sizes") {
  const auto source = parked_source();
  MachineState state = saved_and_sent(*source);
  field(state, "vcpu", "lapic").pop_back();
  const auto target = machine(true);
  CHECK(mentions(load_error(*target, state), "'lapic' has 1023 bytes, expected 1024"));
}

void add_msr(MachineState& state, std::uint64_t index, std::uint64_t value) {
  const std::array pair{index, value};
  const auto bytes = std::as_bytes(std::span(pair));
  auto& msrs = field(state, "vcpu", "msrs");
  msrs.insert(msrs.begin(), bytes.begin(), bytes.end());
}

TEST_CASE_FIXTURE(Fixture, "an MSR that this KVM does not take is named, unless it holds nothing") {
  const auto source = parked_source();
  const MachineState state = saved_and_sent(*source);
  const auto target = machine(true);
  MachineState damaged = state;
  add_msr(damaged, 0xdeadbeef, 1);
  CHECK(mentions(load_error(*target, damaged), "MSR 0xdeadbeef = 0x1"));
  MachineState empty = state;
  add_msr(empty, 0xdeadbeef, 0);
  CHECK(target->load(empty).ok());
}

TEST_CASE_FIXTURE(Fixture,
                  "extended registers beyond this host's are refused if they hold anything") {
  const auto source = parked_source();
  MachineState state = saved_and_sent(*source);
  const auto target = machine(true);
  field(state, "vcpu", "xsave").resize(20000);
  CHECK(target->load(state).ok());
  field(state, "vcpu", "xsave").back() = std::byte{1};
  CHECK(mentions(load_error(*target, state), "'xsave' of 20000 bytes"));
}

TEST_CASE_FIXTURE(Fixture, "a guest that its user stopped stays stopped at the target") {
  const auto source = machine(false);
  source->start();
  REQUIRE(eventually([&] { return counter(*source) > 100; }));
  REQUIRE(source->stop().ok());
  CHECK_FALSE(source->wants_to_run());
  REQUIRE(source->gate().step(OwnershipEvent::kHold).ok());
  park_and_wait(*source);
  const MachineState state = saved_and_sent(*source);
  const auto target = machine(true);
  copy_memory(*source, *target);
  REQUIRE(target->load(state).ok());
  REQUIRE(target->gate().step(OwnershipEvent::kTake).ok());
  bool told = false;
  target->start_here([&] { told = true; });
  CHECK(told);  // It is ours, though it does not run.
  CHECK(target->run_state() == RunState::kPaused);
  const auto before = counter(*target);
  REQUIRE(target->cont().ok());
  CHECK(eventually([&] { return counter(*target) > before + 100; }));
}

TEST_CASE_FIXTURE(Fixture, "the first pages hold the code that runs next") {
  const auto source = parked_source();
  REQUIRE(source->save().ok());
  const auto pages = source->first_pages();
  REQUIRE_FALSE(pages.empty());
  CHECK(std::find(pages.begin(), pages.end(), base::PageIndex{0x100}) != pages.end());
  CHECK(pages.size() <= 64);
}

TEST_CASE_FIXTURE(Fixture, "a machine is not saved while it runs") {
  const auto source = machine(false);
  source->start();
  REQUIRE(eventually([&] { return counter(*source) > 100; }));
  const auto saved = source->save();
  REQUIRE_FALSE(saved.ok());
  CHECK(mentions(saved.error().detail, "park first"));
}

TEST_CASE_FIXTURE(Fixture, "a machine that runs its own guest loads nobody else's") {
  const auto source = parked_source();
  CHECK(mentions(load_error(*source, saved_and_sent(*source)), "not made for a migration"));
}

TEST_CASE_FIXTURE(Fixture, "like machines have nothing against each other") {
  const auto source = machine(false, 2);
  const auto target = machine(true, 2);
  const auto bytes = encode(source->shape());
  REQUIRE(bytes.ok());
  const auto shape = runtime::decode(bytes.value());
  REQUIRE(shape.ok());
  CHECK(target->refusals(shape.value()).empty());
}

TEST_CASE_FIXTURE(Fixture, "a target with fewer vCPUs or without a CPU feature says so") {
  const auto source = machine(false, 2);
  const auto target =
      machine(true, 1, [](MachineConfig& config) { config.hidden_features = {"cx16"}; });
  const auto reasons = target->refusals(source->shape());
  REQUIRE(reasons.size() == 2);
  CHECK(reasons[0] ==
        "the source has 2 vCPUs, the target has 1; start the target with the source's --vcpus");
  CHECK(reasons[1] ==
        "CPUID feature 'cx16' (leaf 0x1, index 0, ECX bit 13) is missing at the target");
}

TEST_CASE_FIXTURE(Fixture, "a guest keeps the CPUID that it began with on a richer host") {
  const auto hide = [](MachineConfig& config) { config.hidden_features = {"cx16"}; };
  const auto source = machine(false, 1, hide);
  const auto target = machine(true);
  CHECK(target->refusals(source->shape()).empty());
  REQUIRE(source->gate().step(OwnershipEvent::kHold).ok());
  park_and_wait(*source);
  REQUIRE(target->load(saved_and_sent(*source)).ok());
  // From now on it is as poor as the source was, for the next move too.
  CHECK(machine(true, 1, hide)->refusals(target->shape()).empty());
}

TEST_CASE_FIXTURE(Fixture, "devices that the target does not know, or otherwise, are refused") {
  const auto source = machine(false);
  const auto target = machine(true);
  MachineState shape = source->shape();
  section(shape, "devices").put("virtio-net", 1);
  set_number(shape, "devices", "uart", 9);
  set_number(shape, "machine", "tsc-khz", 1000);
  const auto reasons = target->refusals(shape);
  REQUIRE(reasons.size() == 3);
  CHECK(mentions(reasons[0], "TSC runs at 1000 kHz"));
  CHECK(mentions(reasons[1], "device 'uart' has version 9 at the source, 1 at the target"));
  CHECK(mentions(reasons[2], "device 'virtio-net'"));
  CHECK(target->refusals(MachineState{}).size() == 1);
}

}  // namespace
}  // namespace towline::vmm
