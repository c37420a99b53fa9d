#include "vmm/kvm/guest_clock.h"

#include <doctest/doctest.h>

namespace towline::vmm {
namespace {

constexpr std::uint32_t kKhz = 2'000'000;  // Two ticks a nanosecond.
constexpr std::uint64_t kPause = 50'000'000;
constexpr std::uint64_t kSecond = 1'000'000'000;

HostMoment moment() {
  return {1'000'000'000'000, 500 * kSecond, 1'700'000'000 * kSecond, "boot-a"};
}

HostMoment later(std::uint64_t ns) {
  HostMoment now = moment();
  now.tsc += 2 * ns;
  now.monotonic_ns += ns;
  now.realtime_ns += ns;
  return now;
}

/// What a guest with TSC offset 0 at the source reads at `here`.
std::uint64_t guest_tsc(const HostMoment& here, const ClockShift& shift) {
  return here.tsc + shift.tsc_offset;
}

TEST_CASE("on one host the TSC offset moves over unchanged and kvm-clock counts the pause") {
  const ClockShift shift = shift_between(moment(), later(kPause), kKhz);
  CHECK(shift.tsc_offset == 0);
  CHECK(shift.elapsed_ns == kPause);
}

TEST_CASE("on one host a wall clock that was set meanwhile changes nothing") {
  HostMoment here = later(kPause);
  here.realtime_ns -= 3600 * kSecond;
  const ClockShift shift = shift_between(moment(), here, kKhz);
  CHECK(shift.tsc_offset == 0);
  CHECK(shift.elapsed_ns == kPause);
}

TEST_CASE("on another host the guest's TSC goes on from where it was, plus the pause") {
  HostMoment here = later(kPause);
  here.boot_id = "boot-b";
  here.tsc = 777;
  here.monotonic_ns = 3 * kSecond;
  const ClockShift shift = shift_between(moment(), here, kKhz);
  CHECK(shift.elapsed_ns == kPause);
  CHECK(guest_tsc(here, shift) == moment().tsc + 2 * kPause);
}

TEST_CASE("on another host whose wall clock is behind, guest time does not go back") {
  HostMoment here = later(kPause);
  here.boot_id = "boot-b";
  here.realtime_ns = moment().realtime_ns - kSecond;
  const ClockShift shift = shift_between(moment(), here, kKhz);
  CHECK(shift.elapsed_ns == 0);
  CHECK(guest_tsc(here, shift) == moment().tsc);
}

TEST_CASE("a wall clock that is years ahead is not believed") {
  HostMoment here = later(kPause);
  here.boot_id = "boot-b";
  here.realtime_ns += 365UL * 24 * 3600 * kSecond;
  CHECK(shift_between(moment(), here, kKhz).elapsed_ns == 0);
}

TEST_CASE("a copied virtual machine with the same boot id and another TSC is another host") {
  HostMoment here = later(kPause);
  here.tsc = 12345;
  const ClockShift behind = shift_between(moment(), here, kKhz);
  CHECK(guest_tsc(here, behind) == moment().tsc + 2 * kPause);
  here.tsc = moment().tsc + 100 * kSecond;
  const ClockShift ahead = shift_between(moment(), here, kKhz);
  CHECK(guest_tsc(here, ahead) == moment().tsc + 2 * kPause);
}

TEST_CASE("two hosts that cannot tell their boot are not one host") {
  HostMoment source = moment();
  HostMoment here = later(kPause);
  source.boot_id.clear();
  here.boot_id.clear();
  here.tsc += 5;
  const ClockShift shift = shift_between(source, here, kKhz);
  CHECK(guest_tsc(here, shift) == source.tsc + 2 * kPause);
}

TEST_CASE("a long stay does not overflow the ticks") {
  HostMoment here = later(20UL * 3600 * kSecond);
  here.boot_id = "boot-b";
  const ClockShift shift = shift_between(moment(), here, 5'000'000);
  CHECK(guest_tsc(here, shift) == moment().tsc + 20UL * 3600 * 5 * kSecond);
}

TEST_CASE("a moment survives its section") {
  const auto back = load_moment(save_moment(moment()));
  REQUIRE(back.ok());
  CHECK(back.value().tsc == moment().tsc);
  CHECK(back.value().monotonic_ns == moment().monotonic_ns);
  CHECK(back.value().realtime_ns == moment().realtime_ns);
  CHECK(back.value().boot_id == "boot-a");
}

}  // namespace
}  // namespace towline::vmm
