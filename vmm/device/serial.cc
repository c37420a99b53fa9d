#include "vmm/device/serial.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace towline::vmm {
namespace {

using base::ErrorKind;
using base::fail;
using base::Lock;

constexpr std::size_t kFifoBytes = 16;

// Registers, by offset. Some share one: read or written, or with LCR's divisor latch bit.
constexpr std::uint16_t kData = 0;
constexpr std::uint16_t kInterruptEnable = 1;
constexpr std::uint16_t kInterruptIdentify = 2;
constexpr std::uint16_t kLineControl = 3;
constexpr std::uint16_t kModemControl = 4;
constexpr std::uint16_t kLineStatus = 5;
constexpr std::uint16_t kModemStatus = 6;
constexpr std::uint16_t kScratch = 7;

constexpr std::uint8_t kDivisorLatch = 0x80;
constexpr std::uint8_t kEnableReceived = 0x01;
constexpr std::uint8_t kEnableTransmitterEmpty = 0x02;
constexpr std::uint8_t kFifoEnable = 0x01;
constexpr std::uint8_t kFifoClearReceived = 0x02;
constexpr std::uint8_t kLoopback = 0x10;
constexpr std::uint8_t kTransmitterEmpty = 0x60;
constexpr std::uint8_t kDataReady = 0x01;
constexpr std::uint8_t kIdentifyNone = 0x01;
constexpr std::uint8_t kIdentifyTransmitterEmpty = 0x02;
constexpr std::uint8_t kIdentifyReceived = 0x04;
constexpr std::uint8_t kIdentifyFifos = 0xc0;

}  // namespace

std::uint8_t SerialPort::read(std::uint16_t offset) {
  const Lock lock(mutex_);
  const bool divided = (registers_.lcr & kDivisorLatch) != 0;
  switch (offset) {
    case kData:
      return divided ? registers_.dll : take_received();
    case kInterruptEnable:
      return divided ? registers_.dlm : registers_.ier;
    case kInterruptIdentify:
      return identify_interrupt();
    case kLineControl:
      return registers_.lcr;
    case kModemControl:
      return registers_.mcr;
    case kLineStatus:
      return static_cast<std::uint8_t>(kTransmitterEmpty | (received_.empty() ? 0 : kDataReady));
    case kModemStatus:
      return modem_status();
    case kScratch:
      return registers_.scr;
    default:
      return 0xff;
  }
}

void SerialPort::write(std::uint16_t offset, std::uint8_t value) {
  const Lock lock(mutex_);
  switch (offset) {
    case kData:
    case kInterruptEnable:
      write_divided(offset, value);
      break;
    case kInterruptIdentify:  // Written, it is the FIFO control register.
      registers_.fcr = value & 0xc9U;
      if ((value & kFifoClearReceived) != 0) {
        received_.clear();
      }
      break;
    case kLineControl:
      registers_.lcr = value;
      break;
    case kModemControl:
      registers_.mcr = value & 0x1fU;
      break;
    case kScratch:
      registers_.scr = value;
      break;
    default:
      break;  // The status registers ignore writes.
  }
  update_interrupt();
}

void SerialPort::write_divided(std::uint16_t offset, std::uint8_t value) {
  if ((registers_.lcr & kDivisorLatch) != 0) {
    (offset == kData ? registers_.dll : registers_.dlm) = value;
    return;
  }
  if (offset == kData) {
    send(value);
    return;
  }
  const std::uint8_t before = std::exchange(registers_.ier, value & 0x0fU);
  if ((value & ~before & kEnableTransmitterEmpty) != 0) {
    // Enabling it while the transmitter is empty, which it always is, raises it at once: drivers
    // start their output this way.
    registers_.transmitter_empty_pending = true;
  }
}

void SerialPort::send(std::uint8_t value) {
  if ((registers_.mcr & kLoopback) != 0) {
    if (received_.size() < kFifoBytes) {
      received_.push_back(value);
    }
  } else {
    wiring_.transmit(static_cast<std::byte>(value));
  }
  // Full for no time at all. The interrupt falls and rises: the controller counts edges.
  registers_.transmitter_empty_pending = false;
  update_interrupt();
  registers_.transmitter_empty_pending = true;
}

std::uint8_t SerialPort::take_received() {
  if (received_.empty()) {
    return 0;
  }
  const std::uint8_t value = received_.front();
  received_.pop_front();
  update_interrupt();
  wiring_.room_made();
  return value;
}

std::uint8_t SerialPort::identify_interrupt() {
  const std::uint8_t fifos = (registers_.fcr & kFifoEnable) != 0 ? kIdentifyFifos : 0;
  if ((registers_.ier & kEnableReceived) != 0 && !received_.empty()) {
    return fifos | kIdentifyReceived;
  }
  if ((registers_.ier & kEnableTransmitterEmpty) != 0 && registers_.transmitter_empty_pending) {
    registers_.transmitter_empty_pending = false;  // Reading it here is the acknowledgement.
    update_interrupt();
    return fifos | kIdentifyTransmitterEmpty;
  }
  return fifos | kIdentifyNone;
}

std::uint8_t SerialPort::modem_status() const {
  if ((registers_.mcr & kLoopback) == 0) {
    return 0xb0;  // Carrier, data set ready, clear to send: somebody is connected.
  }
  // DTR, RTS, OUT1 and OUT2 come back as DSR, CTS, RI and DCD.
  const unsigned mcr = registers_.mcr;
  return static_cast<std::uint8_t>((mcr & 0x01U) << 5U | (mcr & 0x02U) << 3U | (mcr & 0x04U) << 4U |
                                   (mcr & 0x08U) << 4U);
}

bool SerialPort::wants_interrupt() const {
  return ((registers_.ier & kEnableReceived) != 0 && !received_.empty()) ||
         ((registers_.ier & kEnableTransmitterEmpty) != 0 && registers_.transmitter_empty_pending);
}

void SerialPort::update_interrupt() {
  const bool wanted = wants_interrupt();
  if (wanted != level_) {
    level_ = wanted;
    wiring_.set_interrupt(wanted);
  }
}

std::size_t SerialPort::room() {
  const Lock lock(mutex_);
  return input_held_ ? 0 : kFifoBytes - std::min(kFifoBytes, received_.size());
}

std::size_t SerialPort::receive(std::span<const std::byte> bytes) {
  const Lock lock(mutex_);
  if (input_held_) {
    return 0;
  }
  const std::size_t taken =
      std::min(bytes.size(), kFifoBytes - std::min(kFifoBytes, received_.size()));
  for (const std::byte one : bytes.first(taken)) {
    received_.push_back(std::to_integer<std::uint8_t>(one));
  }
  update_interrupt();
  return taken;
}

void SerialPort::hold_input(bool held) {
  const Lock lock(mutex_);
  input_held_ = held;
  if (!held) {
    wiring_.room_made();
  }
}

void SerialPort::reset() {
  const Lock lock(mutex_);
  registers_ = Registers{};
  received_.clear();
  update_interrupt();
}

runtime::Section SerialPort::save() {
  const Lock lock(mutex_);
  runtime::Section section;
  section.device = "uart";
  section.version = kSerialStateVersion;
  section.put("ier", registers_.ier);
  section.put("lcr", registers_.lcr);
  section.put("mcr", registers_.mcr);
  section.put("scr", registers_.scr);
  section.put("dll", registers_.dll);
  section.put("dlm", registers_.dlm);
  section.put("fcr", registers_.fcr);
  section.put("transmitter-empty-pending", registers_.transmitter_empty_pending ? 1 : 0);
  const std::vector<std::uint8_t> fifo(received_.begin(), received_.end());
  section.put_bytes("received", std::as_bytes(std::span(fifo)));
  return section;
}

base::Outcome SerialPort::load(const runtime::Section& section) {
  if (section.version != kSerialStateVersion) {
    return fail(ErrorKind::kRefused, "load serial port",
                fmt::format("uart[{}] has version {}; this program reads version {}",
                            section.instance, section.version, kSerialStateVersion));
  }
  Registers loaded;
  const auto get = [&](const char* name, std::uint8_t& into) -> base::Outcome {
    into = static_cast<std::uint8_t>(TRY(section.get(name)));
    return base::Done{};
  };
  TRY(get("ier", loaded.ier));
  TRY(get("lcr", loaded.lcr));
  TRY(get("mcr", loaded.mcr));
  TRY(get("scr", loaded.scr));
  TRY(get("dll", loaded.dll));
  TRY(get("dlm", loaded.dlm));
  TRY(get("fcr", loaded.fcr));
  loaded.transmitter_empty_pending = TRY(section.get("transmitter-empty-pending")) != 0;
  const auto fifo = TRY(section.get_bytes("received"));
  if (fifo.size() > kFifoBytes) {
    return fail(ErrorKind::kCorrupt, "load serial port",
                fmt::format("uart[{}]: field 'received' has {} bytes; the FIFO holds {}",
                            section.instance, fifo.size(), kFifoBytes));
  }
  const Lock lock(mutex_);
  registers_ = loaded;
  received_.clear();
  for (const std::byte one : fifo) {
    received_.push_back(std::to_integer<std::uint8_t>(one));
  }
  level_ = wants_interrupt();
  wiring_.set_interrupt(level_);  // Always: the controller's idea of the line is re-made.
  return base::Done{};
}

}  // namespace towline::vmm
