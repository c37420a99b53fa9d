#include "tests/guest/workload.h"

#include "tests/guest/machine.h"
#include "tests/guest/memory.h"
#include "tests/guest/registers.h"
#include "tests/guest/vcpu.h"

namespace guest {

namespace {

std::uint64_t* words_of(std::uint64_t page) {
  return at<std::uint64_t>(memory.pages.address(page));
}

void add(Counters& counters, const Counters& difference) {
  counters.accesses += difference.accesses;
  counters.writes += difference.writes;
  counters.verified += difference.verified;
  counters.corrupt += difference.corrupt;
  counters.generation_sum += difference.generation_sum;
  counters.digest += difference.digest;
}

/// Adds to the counters, to their twin and to the registers, to each from its own old value: a
/// difference between them stays until it is found.
void count(Vcpu& self, const Counters& difference) {
  store(self.version, self.version + 1);
  add(self.counters, difference);
  store(self.version, self.version + 1);
  add(self.twin, difference);
  set_digest_register(digest_register() + difference.digest);
  set_sum_register(sum_register() + difference.generation_sum);
}

void record_damage(Vcpu& self, const DamageRecord& record) {
  self.damage[self.damage_count % Vcpu::kDamageRecords] = record;
  store(self.damage_count, self.damage_count + 1);
  count(self, Counters{.corrupt = 1});
}

/// Writes down what is wrong and puts the page right, so that each damage counts once.
void handle_damage(Vcpu& self, std::uint64_t* words, const PageIdentity& expected) {
  DamageRecord record;
  record.finding = examine(words, control.options.seed, expected);
  record.expected = expected;
  record.address = reinterpret_cast<std::uint64_t>(words);
  record.kind = name(record.finding.damage);
  record_damage(self, record);
  write_page(words, control.options.seed, expected);
}

/// The `step`th page of a vCPU's fill or sweep, or false after the last.
bool page_at_cursor(const Vcpu& self, std::uint32_t& page) {
  if (self.cursor < self.working_set.count) {
    page = self.working_set.first + static_cast<std::uint32_t>(self.cursor);
    return true;
  }
  const std::uint64_t filled = self.cursor - self.working_set.count;
  page = self.fill.first + static_cast<std::uint32_t>(filled);
  return filled < self.fill.count;
}

/// Ranks with a chance of about 1/rank: an octave is chosen evenly, then a rank in it. Multiplying
/// by a prime larger than any number of pages spreads neighbouring ranks over memory.
std::uint64_t zipf_page(Vcpu& self) {
  constexpr std::uint64_t kSpread = 4294967291;
  const std::uint64_t count = self.working_set.count;
  const std::uint64_t octaves = 64U - static_cast<unsigned>(__builtin_clzll(count));
  std::uint64_t rank = 0;
  do {
    const std::uint64_t octave = self.random.below(octaves);
    rank = (std::uint64_t{1} << octave) - 1 + self.random.below(std::uint64_t{1} << octave);
  } while (rank >= count);
  return rank * kSpread % count;  // Both are below 2^32.
}

std::uint64_t strided_page(Vcpu& self) {
  const std::uint64_t page = self.position;
  self.position += control.options.stride;
  if (self.position >= self.working_set.count) {
    ++self.round;
    const std::uint64_t starts = control.options.stride < self.working_set.count
                                     ? control.options.stride
                                     : self.working_set.count;
    self.position = self.round % starts;
  }
  return page;
}

std::uint32_t next_page(Vcpu& self) {
  std::uint64_t page = 0;
  switch (control.options.pattern) {
    case Pattern::kSequential:
      page = self.position;
      self.position = page + 1 < self.working_set.count ? page + 1 : 0;
      break;
    case Pattern::kRandom:
      page = self.random.below(self.working_set.count);
      break;
    case Pattern::kZipf:
      page = zipf_page(self);
      break;
    case Pattern::kStrided:
      page = strided_page(self);
      break;
  }
  return self.working_set.first + static_cast<std::uint32_t>(page);
}

bool due(Vcpu& self, std::uint64_t now) {
  if (control.rate_cycles == 0) {
    return true;
  }
  if (now < self.next_due) {
    return false;
  }
  // What a long gap made impossible is not caught up on: the rate is a limit.
  const bool behind = now - self.next_due > 16 * control.rate_cycles;
  self.next_due = (behind ? now : self.next_due) + control.rate_cycles;
  return true;
}

void note_latency(Vcpu& self, std::uint64_t cycles) {
  self.latency.add(cycles);
  self.latency_max = cycles > self.latency_max ? cycles : self.latency_max;
}

void access(Vcpu& self) {
  const std::uint32_t page = next_page(self);
  const std::uint64_t seed = control.options.seed;
  const std::uint64_t step = kPageWords / control.options.verify_words;
  std::uint64_t* words = words_of(page);
  const bool writing = self.random.below(100) < control.options.write_percent;

  const std::uint64_t begin = read_tsc();
  const PageIdentity expected{page, memory.generations[page], self.index};
  const std::uint64_t phase = self.counters.accesses % step;
  if (!page_is_right(words, seed, expected, step, phase)) {
    handle_damage(self, words, expected);
  }
  if (writing) {
    write_page(words, seed, PageIdentity{page, expected.generation + 1, self.index});
    memory.generations[page] = expected.generation + 1;
  }
  compiler_barrier();
  note_latency(self, read_tsc() - begin);

  Counters difference{.accesses = 1, .verified = 1};
  if (writing) {
    difference.writes = 1;
    difference.generation_sum = 1;
    difference.digest = digest_term(seed, page, expected.generation + 1) -
                        digest_term(seed, page, expected.generation);
  }
  count(self, difference);
}

void finish_sweep(Vcpu& self) {
  SweepResult& sweep = self.sweep;
  if (sweep.digest != self.counters.digest ||
      sweep.generation_sum != self.counters.generation_sum) {
    sweep.table_wrong = 1;
    DamageRecord record;
    record.kind = "table";
    record_damage(self, record);
  }
  store(self.reached, self.phase);
}

}  // namespace

void fill_step(Vcpu& self) {
  std::uint32_t page = 0;
  if (!page_at_cursor(self, page)) {
    store(self.reached, self.phase);
    return pause();
  }
  write_page(words_of(page), control.options.seed, PageIdentity{page, 1, self.index});
  memory.generations[page] = 1;
  ++self.cursor;
  count(self, Counters{.generation_sum = 1, .digest = digest_term(control.options.seed, page, 1)});
}

void access_step(Vcpu& self, std::uint64_t now) {
  if (self.working_set.count == 0 || !due(self, now)) {
    return pause();
  }
  access(self);
}

void sweep_step(Vcpu& self) {
  if (self.reached == self.phase) {
    return pause();
  }
  std::uint32_t page = 0;
  if (!page_at_cursor(self, page)) {
    return finish_sweep(self);
  }
  ++self.cursor;
  const std::uint64_t seed = control.options.seed;
  const PageIdentity expected{page, memory.generations[page], self.index};
  std::uint64_t* words = words_of(page);
  if (!page_is_right(words, seed, expected, 1, 0)) {
    handle_damage(self, words, expected);
    ++self.sweep.corrupt;
  }
  ++self.sweep.pages;
  self.sweep.generation_sum += expected.generation;
  self.sweep.digest += digest_term(seed, page, expected.generation);
  count(self, Counters{.verified = 1});
}

void check_state(Vcpu& self) {
  const Counters& counters = self.counters;
  const Counters& twin = self.twin;
  const char* kind = nullptr;
  if (twin.accesses != counters.accesses || twin.writes != counters.writes ||
      twin.verified != counters.verified || twin.corrupt != counters.corrupt ||
      twin.generation_sum != counters.generation_sum || twin.digest != counters.digest) {
    kind = "counters";
  } else if (digest_register() != counters.digest || sum_register() != counters.generation_sum ||
             gs_self() != &self || !pattern_registers_are_right(self.index)) {
    kind = "registers";
  }
  if (kind != nullptr) {
    self.twin = counters;  // Each damage counts once.
    set_digest_register(counters.digest);
    set_sum_register(counters.generation_sum);
    set_pattern_registers(self.index);
    DamageRecord record;
    record.kind = kind;
    record_damage(self, record);
  }
}

}  // namespace guest
