#include "vmm/device/devices.h"

#include <algorithm>

namespace towline::vmm {
namespace {

constexpr std::uint16_t kSystemControl = 0x61;
constexpr std::uint16_t kKeyboardController = 0x64;
constexpr std::uint16_t kClockData = 0x71;
constexpr std::uint16_t kSleepControl = 0x600;
constexpr std::uint16_t kSleepStatus = 0x601;
constexpr std::byte kPulseReset{0xfe};
constexpr std::byte kSleepS5{0x34};  // SLP_EN | 5 << 2: ACPI 6.4, 4.8.3.7, for the type 5.

bool is_com1(std::uint16_t port) {
  return port >= kCom1 && port - kCom1 < kSerialPorts;
}

}  // namespace

void Ports::read(std::uint16_t port, std::span<std::byte> data) {
  std::byte value{0xff};
  if (is_com1(port) && data.size() == 1) {
    value = static_cast<std::byte>(com1_.read(static_cast<std::uint16_t>(port - kCom1)));
  } else if (port == kSystemControl || port == kKeyboardController || port == kClockData ||
             port == kSleepControl || port == kSleepStatus) {
    value = std::byte{0};  // Drivers poll these for a busy bit, and all ones would mean for ever.
  }
  std::fill(data.begin(), data.end(), value);
}

PortRequest Ports::write(std::uint16_t port, std::span<const std::byte> data) {
  if (data.size() != 1) {
    return PortRequest::kNone;
  }
  if (is_com1(port)) {
    com1_.write(static_cast<std::uint16_t>(port - kCom1), std::to_integer<std::uint8_t>(data[0]));
  } else if (port == kKeyboardController && data[0] == kPulseReset) {
    return PortRequest::kReset;
  } else if (port == kSleepControl && data[0] == kSleepS5) {
    return PortRequest::kPowerOff;
  }
  return PortRequest::kNone;
}

}  // namespace towline::vmm
