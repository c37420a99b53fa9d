#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/machine_state.h"
#include "vmm/kvm/kvm.h"

namespace towline::vmm {

/// What the guest's CPUID instruction answers, before the parts that differ per vCPU are set.
using CpuidTable = std::vector<kvm_cpuid_entry2>;

/// The host's table with what this machine changes: TSC deadline and hypervisor bits on, nested
/// virtualisation off, and every feature of `hidden` (by its well-known name: "avx2") off.
///
/// Errors: kRefused for a name that is not known; lists some that are.
base::Expected<CpuidTable> make_cpuid(CpuidTable supported, bool tsc_deadline,
                                      std::span<const std::string> hidden);

/// Adds the leaf that tells a guest how fast its TSC counts (0x40000010, as other hypervisors
/// have it): without a PIT or an ACPI timer it has nothing to measure that against.
void add_timing_leaf(CpuidTable& table, std::uint32_t tsc_khz);

/// The table for one vCPU: APIC ids and the number of vCPUs filled in.
CpuidTable cpuid_for(const CpuidTable& table, std::uint32_t vcpu, std::uint32_t vcpus);

/// "cpuid": one field per leaf, named "LEAF.INDEX" in hex.
runtime::Section save_cpuid(const CpuidTable& table);

/// Errors: kCorrupt, naming the leaf.
base::Expected<CpuidTable> load_cpuid(const runtime::Section& section);

bool same_answers(const CpuidTable& one, const CpuidTable& other);

/// What a guest that was started with `source` may use and `here` lacks, a line each:
/// "CPUID feature 'avx2' (leaf 0x7, index 0, EBX bit 5) is missing".
std::vector<std::string> missing_features(const CpuidTable& source, const CpuidTable& here);

/// How far guest physical addresses reach.
unsigned physical_address_bits(const CpuidTable& table);

}  // namespace towline::vmm
