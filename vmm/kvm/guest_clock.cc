#include "vmm/kvm/guest_clock.h"

#include <time.h>
#include <x86intrin.h>

#include <algorithm>
#include <fstream>

namespace towline::vmm {
namespace {

// Guess: a parked guest that arrives a day later was not migrated but restored, and a wall clock
// that says so is more likely wrong than right.
constexpr std::uint64_t kLongestPauseNs = 24UL * 3600 * 1'000'000'000;

std::uint64_t read_clock(clockid_t id) {
  timespec now{};
  ::clock_gettime(id, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t ticks(std::uint64_t ns, std::uint32_t tsc_khz) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::uint64_t>(static_cast<Wide>(ns) * tsc_khz / 1'000'000);
}

/// The boot id alone is not enough: a copied virtual machine keeps it and gets another TSC.
bool same_host(const HostMoment& source, const HostMoment& here, std::uint32_t tsc_khz) {
  if (source.boot_id.empty() || source.boot_id != here.boot_id ||
      here.monotonic_ns < source.monotonic_ns || here.tsc < source.tsc) {
    return false;
  }
  const std::uint64_t elapsed = here.monotonic_ns - source.monotonic_ns;
  const std::uint64_t expected = ticks(elapsed, tsc_khz);
  const std::uint64_t counted = here.tsc - source.tsc;
  // 1 % for a monotonic clock that is being slewed, 10 ms for a thread that lost the processor
  // between reading two clocks.
  const std::uint64_t tolerance = expected / 100 + ticks(10'000'000, tsc_khz);
  return std::max(expected, counted) - std::min(expected, counted) <= tolerance;
}

}  // namespace

HostMoment host_moment() {
  HostMoment moment;
  // Constant while this host is up: read once, because opening a file costs more than the switch
  // can spare.
  static const std::string boot_id = [] {
    std::string id;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
    return id;
  }();
  moment.boot_id = boot_id;
  moment.realtime_ns = read_clock(CLOCK_REALTIME);
  moment.monotonic_ns = read_clock(CLOCK_MONOTONIC);
  moment.tsc = __rdtsc();
  return moment;
}

ClockShift shift_between(const HostMoment& source, const HostMoment& here, std::uint32_t tsc_khz) {
  ClockShift shift;
  if (same_host(source, here, tsc_khz)) {
    shift.elapsed_ns = here.monotonic_ns - source.monotonic_ns;
    return shift;
  }
  if (here.realtime_ns > source.realtime_ns) {
    const std::uint64_t elapsed = here.realtime_ns - source.realtime_ns;
    shift.elapsed_ns = elapsed <= kLongestPauseNs ? elapsed : 0;
  }
  shift.tsc_offset = source.tsc + ticks(shift.elapsed_ns, tsc_khz) - here.tsc;
  return shift;
}

runtime::Section save_moment(const HostMoment& moment) {
  runtime::Section section;
  section.device = "host-clock";
  section.put("tsc", moment.tsc);
  section.put("monotonic-ns", moment.monotonic_ns);
  section.put("realtime-ns", moment.realtime_ns);
  section.put_text("boot-id", moment.boot_id);
  return section;
}

base::Expected<HostMoment> load_moment(const runtime::Section& section) {
  HostMoment moment;
  moment.tsc = TRY(section.get("tsc"));
  moment.monotonic_ns = TRY(section.get("monotonic-ns"));
  moment.realtime_ns = TRY(section.get("realtime-ns"));
  moment.boot_id = TRY(section.get_text("boot-id"));
  return moment;
}

}  // namespace towline::vmm
