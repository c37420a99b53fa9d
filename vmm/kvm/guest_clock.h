#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "runtime/machine_state.h"

/// How guest time survives a move: it counts through. Neither the TSC nor kvm-clock stands still
/// while the guest is parked, and neither goes back; a guest that measures the pause sees it.
///
/// On one host (same boot, and the clocks agree) nothing has to be guessed: the TSC offset moves
/// over unchanged, and kvm-clock advances by the monotonic time in between. Between hosts the wall
/// clock tells how long it took, so that an error of the wall clocks shows up in the guest as a
/// longer pause; if it says less than nothing, guest time continues where it was.
namespace towline::vmm {

/// One moment, on every clock of this host.
struct HostMoment {
  std::uint64_t tsc = 0;
  std::uint64_t monotonic_ns = 0;
  std::uint64_t realtime_ns = 0;
  std::string boot_id;  ///< /proc/sys/kernel/random/boot_id
};

HostMoment host_moment();

/// What has to be added to bring a guest's clocks from one moment to another.
struct ClockShift {
  std::uint64_t tsc_offset = 0;  ///< To every vCPU's TSC offset. Wraps.
  std::uint64_t elapsed_ns = 0;  ///< To kvm-clock.
};

/// `tsc_khz`: frequency of the guest's TSC, equal on both hosts.
ClockShift shift_between(const HostMoment& source, const HostMoment& here, std::uint32_t tsc_khz);

runtime::Section save_moment(const HostMoment& moment);
base::Expected<HostMoment> load_moment(const runtime::Section& section);

}  // namespace towline::vmm
