#include "tests/guest/vcpu.h"

#include "tests/guest/console.h"
#include "tests/guest/machine.h"
#include "tests/guest/memory.h"
#include "tests/guest/registers.h"
#include "tests/guest/workload.h"

extern "C" {
guest::Vcpu vcpus[BOOT_MAX_VCPUS];
extern std::uint32_t starting_vcpu;
extern char ap_trampoline[];
extern char ap_trampoline_end[];
}

namespace guest {

constinit Control control;

namespace {

constexpr std::uint64_t kApic = 0xfee00000;
constexpr std::uint64_t kSpurious = kApic + 0xf0;
constexpr std::uint64_t kCommandLow = kApic + 0x300;
constexpr std::uint64_t kCommandHigh = kApic + 0x310;
constexpr std::uint32_t kApicEnabled = 0x1ff;
constexpr std::uint32_t kInit = 0x4500;
constexpr std::uint32_t kStartUp = 0x4600 | (BOOT_TRAMPOLINE >> 12U);
// Registers and twin are compared once in this many rounds of the loop.
constexpr std::uint64_t kRoundsPerCheck = 256;

Part part_of(std::uint64_t first, std::uint64_t pages, std::uint64_t index, std::uint64_t parts) {
  const std::uint64_t begin = pages * index / parts;
  const std::uint64_t end = pages * (index + 1) / parts;
  return Part{static_cast<std::uint32_t>(first + begin), static_cast<std::uint32_t>(end - begin)};
}

void send_interrupt(std::uint32_t target, std::uint32_t command) {
  *at<volatile std::uint32_t>(kCommandHigh) = target << 24U;
  *at<volatile std::uint32_t>(kCommandLow) = command;
}

bool wait_until_online(const Vcpu& other) {
  const std::uint64_t deadline = read_tsc() + control.tsc_khz * 10'000;
  while (load(other.online) == 0) {
    if (read_tsc() > deadline) {
      return false;
    }
    pause();
  }
  return true;
}

void log_gap(Vcpu& self, std::uint64_t now, std::uint64_t gap) {
  GapRecord* shortest = self.gap_log;
  for (GapRecord& record : self.gap_log) {
    shortest = record.length < shortest->length ? &record : shortest;
  }
  ++self.gaps_logged;
  if (gap > shortest->length) {
    *shortest = GapRecord{now, gap};
  }
}

void reset_statistics(Vcpu& self) {
  self.gap_max = 0;
  self.gap_recent = 0;
  self.gaps_logged = 0;
  self.latency_max = 0;
  self.latency.clear();
  for (GapRecord& record : self.gap_log) {
    record = GapRecord{};
  }
}

/// Marks one round of the loop: the time since the last one is a gap.
std::uint64_t tick(Vcpu& self) {
  const std::uint64_t now = read_tsc();
  std::uint64_t gap = now - self.last_tick;
  if (now < self.last_tick) {
    ++self.tsc_went_back;
    gap = 0;
  }
  store(self.last_tick, now);
  if (const std::uint64_t number = load(control.report_number); number != self.report_number) {
    self.gap_recent = 0;
    store(self.report_number, number);
  }
  self.gap_recent = gap > self.gap_recent ? gap : self.gap_recent;
  self.gap_max = gap > self.gap_max ? gap : self.gap_max;
  if (gap >= control.gap_log_cycles) {
    log_gap(self, now, gap);
  }
  if (const std::uint64_t number = load(control.reset_number); number != self.reset_number) {
    reset_statistics(self);
    store(self.reset_number, number);
  }
  return now;
}

void step(Vcpu& self, std::uint64_t now) {
  const std::uint64_t phase = load(control.phase);
  if (phase != self.phase) {
    self.phase = phase;
    self.cursor = 0;
    self.sweep = SweepResult{};
  }
  switch (static_cast<PhaseKind>(phase & 0xffU)) {
    case PhaseKind::kFill:
      return fill_step(self);
    case PhaseKind::kHold:
      store(self.reached, phase);
      return pause();
    case PhaseKind::kRun:
      store(self.reached, phase);
      return access_step(self, now);
    case PhaseKind::kSweep:
      return sweep_step(self);
  }
}

}  // namespace

Vcpu& vcpu(std::uint64_t index) {
  return vcpus[index];
}

Counters snapshot(const Vcpu& from) {
  // What was read last, in case a vCPU is held by its host in the middle of an update.
  static Counters last[BOOT_MAX_VCPUS];
  static bool known[BOOT_MAX_VCPUS];
  for (int attempt = 0; attempt < 1000 || !known[from.index]; ++attempt) {
    const std::uint64_t before = load(from.version);
    const Counters copy = from.counters;
    compiler_barrier();
    if (before % 2 == 0 && load(from.version) == before) {
      last[from.index] = copy;
      known[from.index] = true;
      break;
    }
    pause();
  }
  return last[from.index];
}

void prepare_vcpus() {
  const std::uint64_t parts = control.options.vcpus;
  for (std::uint32_t i = 0; i < parts; ++i) {
    Vcpu& self = vcpus[i];
    self.self = &self;
    self.index = i;
    self.working_set = part_of(0, memory.working_set_pages, i, parts);
    self.fill = part_of(memory.working_set_pages, memory.fill_pages, i, parts);
    self.random = Random(control.options.seed * BOOT_MAX_VCPUS + i);
  }
}

bool start_other_vcpus() {
  char* trampoline = at<char>(BOOT_TRAMPOLINE);
  for (std::uint64_t i = 0; &ap_trampoline[i] != ap_trampoline_end; ++i) {
    trampoline[i] = ap_trampoline[i];
  }
  // Without this KVM may not have made its map of who is where: interrupts would go nowhere.
  *at<volatile std::uint32_t>(kSpurious) = kApicEnabled;
  for (std::uint32_t i = 1; i < control.options.vcpus; ++i) {
    store(starting_vcpu, i);
    send_interrupt(i, kInit);
    send_interrupt(i, kStartUp);
    if (!wait_until_online(vcpus[i])) {
      return false;
    }
  }
  return true;
}

void enter_phase(PhaseKind kind) {
  const std::uint64_t number = (control.phase >> 8U) + 1;
  store(control.phase, (number << 8U) | static_cast<std::uint64_t>(kind));
}

bool phase_reached() {
  for (std::uint64_t i = 0; i < control.options.vcpus; ++i) {
    if (load(vcpus[i].reached) != control.phase) {
      return false;
    }
  }
  return true;
}

void run(Vcpu& self) {
  set_pattern_registers(self.index);
  set_digest_register(self.counters.digest);
  set_sum_register(self.counters.generation_sum);
  store(self.last_tick, read_tsc());
  store(self.online, std::uint32_t{1});
  for (std::uint64_t round = 0;; ++round) {
    const std::uint64_t now = tick(self);
    step(self, now);
    if (round % kRoundsPerCheck == 0) {
      check_state(self);
    }
    if (self.index == 0) {
      console_step(now);
    }
  }
}

}  // namespace guest
