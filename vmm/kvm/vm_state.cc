#include "vmm/kvm/vm_state.h"

#include <cstring>
#include <span>
#include <utility>

#include <fmt/format.h>

namespace towline::vmm {
namespace {

using base::ErrorKind;
using base::fail;
using runtime::MachineState;
using runtime::Section;

constexpr std::uint32_t kIrqchips = 3;  // PIC master, PIC slave, IOAPIC.

base::Expected<const Section*> require(const MachineState& state, const char* device,
                                       std::uint32_t instance) {
  const Section* section = state.find(device, instance);
  if (section == nullptr) {
    return fail(ErrorKind::kCorrupt, "load machine",
                fmt::format("section {}[{}] is missing", device, instance));
  }
  if (section->version != kVmStateVersion) {
    return fail(ErrorKind::kRefused, "load machine",
                fmt::format("{}[{}] has version {}; this program reads version {}", device,
                            instance, section->version, kVmStateVersion));
  }
  return section;
}

}  // namespace

base::Outcome save_vm(const KvmVm& vm, std::vector<Section>& into) {
  const kvm_clock_data clock = TRY(vm.get_clock());
  into.push_back(save_moment(host_moment()));
  Section clock_section;
  clock_section.device = "kvm-clock";
  clock_section.version = kVmStateVersion;
  clock_section.put("ns", clock.clock);
  clock_section.put("flags", clock.flags);
  into.push_back(std::move(clock_section));
  for (std::uint32_t chip = 0; chip < kIrqchips; ++chip) {
    const kvm_irqchip state = TRY(vm.get_irqchip(chip));
    Section section;
    section.device = "irqchip";
    section.instance = chip;
    section.version = kVmStateVersion;
    section.put_bytes("registers", std::as_bytes(std::span(state.chip.dummy)));
    into.push_back(std::move(section));
  }
  return base::Done{};
}

base::Expected<ClockShift> load_clock(const KvmVm& vm, const MachineState& state,
                                      const HostMoment& here, std::uint32_t tsc_khz) {
  const Section* clock_section = TRY(require(state, "kvm-clock", 0));
  const Section* moment_section = TRY(require(state, "host-clock", 0));
  const HostMoment source = TRY(load_moment(*moment_section));
  const ClockShift shift = shift_between(source, here, tsc_khz);
  kvm_clock_data clock{};
  // Flags stay zero: KVM's own correction by the wall clock would count the pause twice.
  clock.clock = TRY(clock_section->get("ns")) + shift.elapsed_ns;
  TRY(vm.set_clock(clock));
  return shift;
}

base::Outcome load_irqchips(const KvmVm& vm, const MachineState& state) {
  for (std::uint32_t chip = 0; chip < kIrqchips; ++chip) {
    const Section* section = TRY(require(state, "irqchip", chip));
    kvm_irqchip registers{};
    registers.chip_id = chip;
    const auto bytes = TRY(section->get_bytes("registers", sizeof registers.chip.dummy));
    std::memcpy(registers.chip.dummy, bytes.data(), bytes.size());
    TRY(vm.set_irqchip(registers));
  }
  return base::Done{};
}

}  // namespace towline::vmm
