#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "runtime/machine_state.h"
#include "vmm/boot.h"
#include "vmm/kvm/guest_clock.h"
#include "vmm/kvm/kvm.h"

namespace towline::vmm {

inline constexpr std::uint32_t kVcpuStateVersion = 1;

/// What this host's KVM needs or offers for the state of a vCPU; found out once per machine.
struct VcpuFeatures {
  std::vector<std::uint32_t> msrs;  ///< All that can be read, the TSC deadline last.
  std::size_t xsave_bytes = 4096;
  bool xsave2 = false;
  bool xcrs = false;
  bool tsc_offset = false;
  std::uint32_t tsc_khz = 0;
};

/// Asks `vcpu`, which has its CPUID already, what can be read.
///
/// Errors: kUnsupported when this KVM lacks something that a move needs.
base::Expected<VcpuFeatures> probe_vcpu_features(const Kvm& kvm, const KvmVm& vm,
                                                 const KvmVcpu& vcpu);

/// Reads everything of a parked vCPU, in the order that KVM needs.
base::Expected<runtime::Section> save_vcpu(const KvmVcpu& vcpu, const VcpuFeatures& features,
                                           std::uint32_t index);

/// Writes it into a vCPU that is parked and has the same CPUID. May touch guest memory.
///
/// Errors: kCorrupt or kFailed, naming section and field.
base::Outcome load_vcpu(const KvmVcpu& vcpu, const VcpuFeatures& features,
                        const runtime::Section& section, const ClockShift& shift);

/// The state in which a PVH kernel expects its boot vCPU. All others wait for INIT and SIPI, as
/// KVM makes them.
base::Outcome set_boot_state(const KvmVcpu& vcpu, const BootEntry& entry);

/// Registers that say what a saved vCPU touches first.
struct VcpuView {
  std::uint64_t rip = 0;
  std::uint64_t rsp = 0;
  std::uint64_t cr0 = 0;
  std::uint64_t cr3 = 0;
  std::uint64_t cr4 = 0;
  std::uint64_t efer = 0;
  std::uint64_t cs_base = 0;
  std::uint64_t ss_base = 0;
  std::uint64_t gdt_base = 0;
  std::uint64_t idt_base = 0;
  std::uint64_t tr_base = 0;
  std::vector<std::uint64_t> kvm_pages;  ///< Guest physical, from KVM's own MSRs.
};

base::Expected<VcpuView> view_of(const runtime::Section& section);

}  // namespace towline::vmm
