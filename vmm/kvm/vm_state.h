#pragma once

#include <vector>

#include "base/error.h"
#include "runtime/machine_state.h"
#include "vmm/kvm/guest_clock.h"
#include "vmm/kvm/kvm.h"

/// The state of a machine that belongs to no vCPU: kvm-clock and the interrupt controllers.
namespace towline::vmm {

inline constexpr std::uint32_t kVmStateVersion = 1;

/// Appends "kvm-clock", "host-clock" and three "irqchip" sections. Every vCPU is parked and saved.
base::Outcome save_vm(const KvmVm& vm, std::vector<runtime::Section>& into);

/// Before the vCPUs are loaded. `here`: this moment.
///
/// Errors: kCorrupt or kRefused, naming section and field.
base::Expected<ClockShift> load_clock(const KvmVm& vm, const runtime::MachineState& state,
                                      const HostMoment& here, std::uint32_t tsc_khz);
base::Outcome load_irqchips(const KvmVm& vm, const runtime::MachineState& state);

}  // namespace towline::vmm
