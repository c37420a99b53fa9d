#include "tests/guest/console.h"

#include "tests/guest/machine.h"
#include "tests/guest/memory.h"
#include "tests/guest/serial.h"
#include "tests/guest/statistics.h"
#include "tests/guest/vcpu.h"
#include "tests/guest/verdict.h"

extern "C" {
extern std::uint32_t reset_wanted;
[[noreturn]] void stop_vcpu();
}

namespace guest {

namespace {

// How often the port is asked for a command. Each time costs an exit.
constexpr std::uint64_t kInputPollMs = 5;
// Damage lines in a guest's life; more is only counted.
constexpr std::uint64_t kMostDamageLines = 256;
constexpr std::uint32_t kRoomForLine = 1024;
constexpr std::uint16_t kSleepControl = 0x600;  // ACPI, as this project's VMM has it.
constexpr std::uint8_t kPowerOff = 0x34;
constexpr std::uint16_t kKeyboardController = 0x64;
constexpr std::uint8_t kPulseReset = 0xfe;

enum class Task : std::uint8_t {
  kFilling,
  kRunning,
  kHolding,   ///< Waiting until every vCPU has stopped writing.
  kSweeping,  ///< Every vCPU reads its part.
  kChecking,  ///< The first vCPU reads what belongs to nobody.
  kResetting,
  kListing,
};

Task task = Task::kFilling;
std::uint64_t next_report = 0;
std::uint64_t next_input = 0;
std::uint64_t sequence = 0;
std::uint64_t damage_said[BOOT_MAX_VCPUS];
std::uint64_t damage_lines = 0;

std::uint64_t milliseconds(std::uint64_t count) {
  return control.tsc_khz * count;
}

void say_damage(const DamageRecord& record, std::uint64_t by) {
  Line line("guest.corrupt");
  line.field("kind", record.kind).field("vcpu", by);
  if (record.address != 0) {
    const Finding& finding = record.finding;
    line.field("page", record.expected.number)
        .hex_field("address", record.address)
        .field("expected", record.expected.generation)
        .field("found", finding.found.generation)
        .field("found_page", finding.found.number)
        .field("found_owner", finding.found.owner)
        .field("first_word", finding.first_word)
        .field("wrong_words", finding.wrong_words)
        .field("wrong_bits", finding.wrong_bits);
  }
  serial::write(line.field("uptime_us", uptime_us(read_tsc())));
}

void say_new_damage() {
  for (std::uint64_t i = 0; i < control.options.vcpus; ++i) {
    const Vcpu& from = vcpu(i);
    const std::uint64_t found = load(from.damage_count);
    if (found - damage_said[i] > Vcpu::kDamageRecords) {
      damage_said[i] = found - Vcpu::kDamageRecords;  // Overwritten; the count still has them.
    }
    while (damage_said[i] != found && serial::room() > kRoomForLine) {
      const DamageRecord& record = from.damage[damage_said[i]++ % Vcpu::kDamageRecords];
      if (damage_lines++ < kMostDamageLines) {
        say_damage(record, i);
      }
    }
  }
}

void say_report(std::uint64_t now) {
  ++sequence;
  Line line("guest.report");
  line.field("seq", sequence).field("uptime_us", uptime_us(now));
  add_statistics(line, now);
  serial::write(line.field("lost_lines", serial::lost_lines()));
  store(control.report_number, control.report_number + 1);
}

void begin_sweep() {
  enter_phase(PhaseKind::kHold);
  task = Task::kHolding;
}

[[noreturn]] void quit() {
  serial::write(Line("guest.bye").field("seq", sequence));
  serial::flush();
  write_port(kSleepControl, kPowerOff);
  write_port(kKeyboardController, kPulseReset);
  reset_wanted = 1;
  stop_vcpu();
}

void obey(int command) {
  switch (command) {
    case 'S':
      return begin_sweep();
    case 'G':
      store(control.reset_number, control.reset_number + 1);
      task = Task::kResetting;
      return;
    case 'H':
      begin_listing();
      task = Task::kListing;
      return;
    case 'N': {
      Line line("guest.gap");
      serial::write(add_gaps(line, read_tsc()));
      return;
    }
    case 'Q':
      quit();
    case '\r':
    case '\n':
      return;
    default:
      serial::write(Line("guest.unknown").field("command", static_cast<std::uint64_t>(command)));
  }
}

void poll_input(std::uint64_t now) {
  if (task != Task::kRunning || now - next_input > ~std::uint64_t{0} / 2) {
    return;
  }
  next_input = now + milliseconds(kInputPollMs);
  if (const int command = serial::read(); command >= 0) {
    next_input = now;  // There may be more.
    obey(command);
  }
}

void finish_fill(std::uint64_t now) {
  if (!phase_reached()) {
    return;
  }
  serial::write(
      Line("guest.ready").field("pages", memory.pages.pages()).field("fill_us", uptime_us(now)));
  store(control.reset_number, control.reset_number + 1);
  enter_phase(PhaseKind::kRun);
  serial::write(Line("guest.start").field("uptime_us", uptime_us(now)));
  next_report = now + milliseconds(control.options.report_ms);
  task = Task::kRunning;
}

void work_on_task(std::uint64_t now) {
  switch (task) {
    case Task::kFilling:
      return finish_fill(now);
    case Task::kRunning:
      return;
    case Task::kHolding:
      if (phase_reached()) {
        begin_checks(now);
        enter_phase(PhaseKind::kSweep);
        task = Task::kSweeping;
      }
      return;
    case Task::kSweeping:
      task = phase_reached() ? Task::kChecking : task;
      return;
    case Task::kChecking:
      if (check_step()) {
        say_new_damage();
        serial::write(verdict(sequence, read_tsc()));
        enter_phase(PhaseKind::kRun);
        task = Task::kRunning;
      }
      return;
    case Task::kResetting:
      if (all_reset()) {
        serial::write(Line("guest.reset").field("uptime_us", uptime_us(now)));
        task = Task::kRunning;
      }
      return;
    case Task::kListing:
      if (serial::room() > kRoomForLine && !listing_step()) {
        task = Task::kRunning;
      }
      return;
  }
}

}  // namespace

void console_step(std::uint64_t now) {
  serial::step();
  say_new_damage();
  // Not before the last one is out: where the port is slow, reports would fill the queue, and what
  // was asked for would have no place in it.
  if (task != Task::kFilling && now >= next_report && serial::idle()) {
    next_report += milliseconds(control.options.report_ms);
    if (next_report <= now) {
      next_report = now + milliseconds(control.options.report_ms);  // A gap ate some.
    }
    say_report(now);
  }
  work_on_task(now);
  poll_input(now);
}

void say_hello() {
  serial::write_now(Line("guest.hello")
                        .field("version", 1)
                        .field("vcpus", control.options.vcpus)
                        .field("tsc_khz", known_tsc_khz())
                        .field("seed", control.options.seed)
                        .field("pattern", name(control.options.pattern))
                        .field("write_percent", control.options.write_percent)
                        .field("rate", control.options.rate)
                        .field("working_set_pages", memory.working_set_pages)
                        .field("fill_pages", memory.fill_pages)
                        .field("free_pages", memory.free.pages())
                        .hex_field("image", image_digest()));
  for (std::uint32_t i = 0; i < memory.ram.count; ++i) {
    serial::write_now(Line("guest.layout")
                          .field("what", "ram")
                          .hex_field("address", memory.ram.range[i].first)
                          .field("bytes", memory.ram.range[i].pages() * 4096));
  }
  for (std::uint32_t i = 0; i < memory.pages.count; ++i) {
    serial::write_now(Line("guest.layout")
                          .field("what", "pages")
                          .hex_field("address", memory.pages.range[i].first)
                          .field("bytes", memory.pages.range[i].pages() * 4096));
  }
  for (std::uint32_t i = 0; i < memory.free.count; ++i) {
    serial::write_now(Line("guest.layout")
                          .field("what", "free")
                          .hex_field("address", memory.free.range[i].first)
                          .field("bytes", memory.free.range[i].pages() * 4096));
  }
  serial::write_now(Line("guest.layout")
                        .field("what", "table")
                        .hex_field("address", reinterpret_cast<std::uint64_t>(memory.generations))
                        .field("bytes", memory.pages.pages() * 4));
}

}  // namespace guest
