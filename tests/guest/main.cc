/// Where boot.S arrives at, in user mode and on each vCPU.

#include "tests/guest/console.h"
#include "tests/guest/machine.h"
#include "tests/guest/memory.h"
#include "tests/guest/serial.h"
#include "tests/guest/statistics.h"
#include "tests/guest/vcpu.h"
#include "tests/guest/verdict.h"

extern "C" {

extern std::uint64_t start_info_address;
extern char stop_instruction[];
[[noreturn]] void stop_vcpu();
[[noreturn]] void user_entry(guest::Vcpu* self);
void report_exception(std::uint64_t vector, const std::uint64_t* frame, std::uint64_t cr2);
void* memcpy(void* to, const void* from, std::size_t size);
void* memset(void* to, int byte, std::size_t size);

// The compiler calls these two for copies it does not write out.
void* memcpy(void* to, const void* from, std::size_t size) {
  void* const result = to;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
  return result;
}

void* memset(void* to, int byte, std::size_t size) {
  void* const result = to;
  asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
  return result;
}

/// hlt is not allowed in user mode: the exception that it raises halts at CPL 0.
void stop_vcpu() {
  asm volatile(".globl stop_instruction; stop_instruction: hlt");
  __builtin_unreachable();
}

/// CPL 0: says what happened. The vCPU halts when this returns.
void report_exception(std::uint64_t vector, const std::uint64_t* frame, std::uint64_t cr2) {
  constexpr std::uint64_t kWithErrorCode = 0x227d00;
  const bool has_code = ((kWithErrorCode >> vector) & 1U) != 0;
  const std::uint64_t code = has_code ? frame[0] : 0;
  const std::uint64_t rip = frame[has_code ? 1 : 0];
  if (rip == reinterpret_cast<std::uint64_t>(stop_instruction)) {
    return;
  }
  guest::serial::write_now(guest::Line("guest.error")
                               .field("exception", vector)
                               .hex_field("code", code)
                               .hex_field("rip", rip)
                               .hex_field("cr2", cr2));
}
}

namespace guest {

namespace {

[[noreturn]] void fail(const char* what, const char* detail) {
  serial::fail(Line("guest.error").field(what, detail));
}

void read_options(const char* command_line) {
  Word bad;
  if (parse_options(command_line, control.options, bad)) {
    return;
  }
  Line line("guest.error option=");
  char letter[2] = {};
  for (std::uint32_t i = 0; i < bad.size; ++i) {
    letter[0] = bad.first[i];
    line.text(letter);
  }
  serial::fail(line);
}

void set_up() {
  serial::open();
  const char* command_line = read_start_info(at<const HvmStartInfo>(start_info_address));
  if (command_line == nullptr) {
    fail("boot", "no-start-info");
  }
  read_options(command_line);
  start_clock();
  if (control.options.rate != 0 && known_tsc_khz() == 0) {
    fail("option", "rate-needs-tsc-khz");
  }
  if (const char* what = lay_out_memory(control.options); what != nullptr) {
    fail("too-large", what);
  }
  take_image_digest();
  prepare_vcpus();
  say_hello();
  enter_phase(PhaseKind::kFill);
  if (!start_other_vcpus()) {
    fail("vcpus", "one-did-not-start");
  }
}

}  // namespace

}  // namespace guest

void user_entry(guest::Vcpu* self) {
  if (self == &guest::vcpu(0)) {
    guest::set_up();
  }
  guest::run(*self);
}
