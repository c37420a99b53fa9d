#include "tests/guest/statistics.h"

#include "tests/guest/machine.h"
#include "tests/guest/serial.h"
#include "tests/guest/vcpu.h"

extern "C" {
/// EAX, EBX, ECX, EDX of leaves 0, 1, 0x15, 0x16, 0x40000000, 0x40000010, in this order.
extern std::uint32_t cpuid_answers[6][4];
}

namespace guest {

namespace {

std::uint64_t khz = 0;
Histogram merged;
std::uint32_t listed_bucket = 0;
std::uint64_t listed_vcpu = 0;
std::uint32_t listed_gap = 0;

std::uint64_t nanoseconds(std::uint64_t cycles) {
  return multiply_divide(cycles, 1'000'000, control.tsc_khz);
}

std::uint64_t microseconds(std::uint64_t cycles) {
  return multiply_divide(cycles, 1000, control.tsc_khz);
}

std::uint64_t khz_from_cpuid() {
  const auto& highest = cpuid_answers[0];
  const auto& crystal = cpuid_answers[2];
  const auto& hypervisor = cpuid_answers[4];
  const auto& timing = cpuid_answers[5];
  if ((cpuid_answers[1][2] >> 31U) != 0 && hypervisor[0] >= 0x40000010) {
    return timing[0];
  }
  if (highest[0] >= 0x15 && crystal[0] != 0 && crystal[2] != 0) {
    return std::uint64_t{crystal[2]} * crystal[1] / crystal[0] / 1000;
  }
  return highest[0] >= 0x16 ? std::uint64_t{cpuid_answers[3][0] & 0xffffU} * 1000 : 0;
}

void merge() {
  merged.clear();
  for (std::uint64_t i = 0; i < control.options.vcpus; ++i) {
    merged.add_all(vcpu(i).latency);
  }
}

bool list_bucket() {
  while (listed_bucket < Histogram::kBuckets && merged.count(listed_bucket) == 0) {
    ++listed_bucket;
  }
  if (listed_bucket == Histogram::kBuckets) {
    return false;
  }
  serial::write(Line("guest.latency")
                    .field("from_ns", nanoseconds(Histogram::lower_bound(listed_bucket)))
                    .field("to_ns", nanoseconds(Histogram::lower_bound(listed_bucket + 1)))
                    .field("count", merged.count(listed_bucket)));
  ++listed_bucket;
  return true;
}

bool list_gap() {
  for (; listed_vcpu < control.options.vcpus; ++listed_vcpu, listed_gap = 0) {
    const Vcpu& from = vcpu(listed_vcpu);
    while (listed_gap < Vcpu::kGapRecords) {
      const GapRecord record = from.gap_log[listed_gap++];
      if (record.length != 0) {
        serial::write(Line("guest.gap-log")
                          .field("vcpu", listed_vcpu)
                          .field("end_us", uptime_us(record.at))
                          .field("length_us", microseconds(record.length)));
        return true;
      }
    }
  }
  return false;
}

}  // namespace

std::uint64_t uptime_us(std::uint64_t now) {
  return microseconds(now - control.start_tsc);
}

std::uint64_t known_tsc_khz() {
  return khz;
}

void start_clock() {
  khz = control.options.tsc_khz != 0 ? control.options.tsc_khz : khz_from_cpuid();
  control.tsc_khz = khz != 0 ? khz : 1'000'000;
  control.gap_log_cycles = control.tsc_khz * control.options.gap_log_us / 1000;
  if (control.options.rate != 0) {
    control.rate_cycles = control.tsc_khz * 1000 * control.options.vcpus / control.options.rate;
  }
  control.start_tsc = read_tsc();
}

Line& add_gaps(Line& line, std::uint64_t now) {
  std::uint64_t longest = 0;
  std::uint64_t recent = 0;
  std::uint64_t logged = 0;
  for (std::uint64_t i = 0; i < control.options.vcpus; ++i) {
    const Vcpu& from = vcpu(i);
    const std::uint64_t tick = load(from.last_tick);
    const std::uint64_t open = now > tick ? now - tick : 0;
    std::uint64_t since_report = open;
    if (load(from.report_number) == control.report_number) {
      since_report = from.gap_recent > open ? from.gap_recent : open;
    }
    const std::uint64_t since_reset = from.gap_max > open ? from.gap_max : open;
    recent = since_report > recent ? since_report : recent;
    longest = since_reset > longest ? since_reset : longest;
    logged += from.gaps_logged;
  }
  return line.field("gap_max_us", microseconds(longest))
      .field("gap_recent_us", microseconds(recent))
      .field("gaps_logged", logged);
}

Line& add_statistics(Line& line, std::uint64_t now) {
  Counters sum;
  std::uint64_t latency_max = 0;
  std::uint64_t tsc_went_back = 0;
  for (std::uint64_t i = 0; i < control.options.vcpus; ++i) {
    const Counters part = snapshot(vcpu(i));
    sum.accesses += part.accesses;
    sum.writes += part.writes;
    sum.verified += part.verified;
    sum.corrupt += part.corrupt;
    sum.generation_sum += part.generation_sum;
    sum.digest += part.digest;
    latency_max = vcpu(i).latency_max > latency_max ? vcpu(i).latency_max : latency_max;
    tsc_went_back += vcpu(i).tsc_went_back;
  }
  merge();
  line.field("accesses", sum.accesses)
      .field("writes", sum.writes)
      .field("verified", sum.verified)
      .field("corrupt", sum.corrupt);
  return add_gaps(line, now)
      .field("p50_ns", nanoseconds(merged.quantile(500)))
      .field("p99_ns", nanoseconds(merged.quantile(990)))
      .field("max_ns", nanoseconds(latency_max))
      .field("generation_sum", sum.generation_sum)
      .hex_field("digest", sum.digest)
      .field("tsc_went_back", tsc_went_back);
}

bool all_reset() {
  for (std::uint64_t i = 0; i < control.options.vcpus; ++i) {
    if (load(vcpu(i).reset_number) != control.reset_number) {
      return false;
    }
  }
  return true;
}

void begin_listing() {
  merge();
  listed_bucket = 0;
  listed_vcpu = 0;
  listed_gap = 0;
}

bool listing_step() {
  if (list_bucket() || list_gap()) {
    return true;
  }
  Line line("guest.latency-end");
  serial::write(add_gaps(line, read_tsc()));
  return false;
}

}  // namespace guest
