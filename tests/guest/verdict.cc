#include "tests/guest/verdict.h"

#include "tests/guest/machine.h"
#include "tests/guest/memory.h"
#include "tests/guest/statistics.h"
#include "tests/guest/vcpu.h"

extern "C" {
extern std::uint64_t image_first[];
extern std::uint64_t image_last[];
extern char image_end[];
}

namespace guest {

namespace {

std::uint64_t digest_at_start = 0;
std::uint64_t began = 0;
std::uint64_t checked = 0;
std::uint64_t to_check = 0;
std::uint64_t not_zero = 0;
std::uint64_t first_not_zero = 0;

std::uint64_t digest_of_image() {
  std::uint64_t digest = 0;
  for (const std::uint64_t* word = image_first; word != image_last; ++word) {
    digest = mix(digest + *word + kGolden);
  }
  return digest;
}

/// What a guest writes beside its pages (tables, stacks, statistics, lines that wait) is read once
/// by each sweep, so that after one every page that it may ever use is where it runs. How far its
/// ring of lines has come, and which page of that is written next, depends on how fast the machine
/// is.
void touch_own_memory() {
  const auto first = reinterpret_cast<std::uint64_t>(image_first);
  const auto last = reinterpret_cast<std::uint64_t>(image_end);
  for (std::uint64_t address = first; address < last; address += kPageBytes) {
    static_cast<void>(*at<const volatile char>(address));
  }
}

bool is_zero(const std::uint64_t* words) {
  std::uint64_t any = 0;
  for (std::uint64_t i = 0; i < kPageWords; ++i) {
    any |= words[i];
  }
  return any == 0;
}

}  // namespace

std::uint64_t image_digest() {
  return digest_at_start;
}

void take_image_digest() {
  digest_at_start = digest_of_image();
}

void begin_checks(std::uint64_t now) {
  const std::uint64_t wanted = control.options.untouched / kPageBytes;
  const std::uint64_t all = memory.free.pages();
  began = now;
  checked = 0;
  not_zero = 0;
  first_not_zero = 0;
  to_check = control.options.sweep_untouched_all != 0 || wanted > all ? all : wanted;
}

bool check_step() {
  if (checked == to_check) {
    return true;
  }
  // A sample is spread evenly over all that is free.
  const std::uint64_t page = multiply_divide(checked, memory.free.pages(), to_check);
  const std::uint64_t address = memory.free.address(page);
  if (!is_zero(at<const std::uint64_t>(address))) {
    first_not_zero = not_zero++ == 0 ? address : first_not_zero;
  }
  ++checked;
  return checked == to_check;
}

Line verdict(std::uint64_t sequence, std::uint64_t now) {
  SweepResult all;
  Counters sum;
  for (std::uint64_t i = 0; i < control.options.vcpus; ++i) {
    const SweepResult& part = vcpu(i).sweep;
    const Counters counters = snapshot(vcpu(i));
    all.pages += part.pages;
    all.corrupt += part.corrupt;
    all.table_wrong += part.table_wrong;
    sum.corrupt += counters.corrupt;
    sum.generation_sum += counters.generation_sum;
    sum.digest += counters.digest;
  }
  touch_own_memory();
  const bool image_right = digest_of_image() == digest_at_start;
  const std::uint64_t tables = wrong_table_entries();
  const bool right = sum.corrupt == 0 && not_zero == 0 && image_right && tables == 0 &&
                     all.table_wrong == 0 && all.pages == memory.pages.pages();
  Line line("guest.verdict");
  line.field("result", right ? "ok" : "corrupt")
      .field("seq", sequence)
      .field("pages", all.pages)
      .field("corrupt_pages", all.corrupt)
      .field("corrupt", sum.corrupt)
      .field("table", all.table_wrong == 0 ? "ok" : "stale")
      .field("untouched", checked)
      .field("untouched_bad", not_zero)
      .hex_field("untouched_bad_at", first_not_zero)
      .field("image", image_right ? "ok" : "corrupt")
      .field("page_tables", tables == 0 ? "ok" : "corrupt")
      .field("generation_sum", sum.generation_sum)
      .hex_field("digest", sum.digest)
      .field("uptime_us", uptime_us(now))
      .field("sweep_us", uptime_us(now) - uptime_us(began));
  return line;
}

}  // namespace guest
