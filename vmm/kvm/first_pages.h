#pragma once

#include <span>
#include <vector>

#include "base/units.h"
#include "vmm/guest_memory.h"
#include "vmm/kvm/vcpu_state.h"

namespace towline::vmm {

inline constexpr std::size_t kFirstPagesPerVcpu = 64;

/// The pages that KVM itself and the first instructions of a resumed guest touch: KVM's clock and
/// steal-time pages, the page tables on the way to code and stack, both with their neighbours, and
/// the descriptor tables. Most urgent first, each once, at most kFirstPagesPerVcpu a vCPU.
///
/// Reads page tables out of guest memory, so every page must be there: for the parked source only.
std::vector<base::PageIndex> find_first_pages(const GuestMemory& memory,
                                              std::span<const VcpuView> vcpus);

}  // namespace towline::vmm
