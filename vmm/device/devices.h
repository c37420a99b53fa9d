#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmm/device/serial.h"

namespace towline::vmm {

/// What a guest asked of its machine by touching a port.
enum class PortRequest : std::uint8_t { kNone, kReset, kPowerOff };

/// The ports of the machine: COM1; the keyboard controller's reset line (0x64); ACPI's sleep
/// control (0x600, 0x601). Everything else reads as all ones and ignores writes, as on a bus with
/// nobody on it.
///
/// Threads: any.
class Ports {
 public:
  explicit Ports(SerialPort& com1) : com1_(com1) {}

  /// One access of data.size() bytes (1, 2 or 4).
  void read(std::uint16_t port, std::span<std::byte> data);
  PortRequest write(std::uint16_t port, std::span<const std::byte> data);

 private:
  SerialPort& com1_;
};

}  // namespace towline::vmm
