#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>

#include "base/error.h"
#include "base/sync.h"
#include "runtime/machine_state.h"

namespace towline::vmm {

inline constexpr std::uint16_t kCom1 = 0x3f8;
inline constexpr std::uint16_t kSerialPorts = 8;
inline constexpr std::uint32_t kCom1Gsi = 4;
inline constexpr std::uint32_t kSerialStateVersion = 1;

/// A 16550A whose line is infinitely fast: what is written is sent, and the transmitter is always
/// empty. Source: National Semiconductor's PC16550D data sheet.
///
/// Threads: any. The callbacks are called with the port locked: they return at once and call
/// nothing of the port back.
class SerialPort {
 public:
  struct Wiring {
    std::function<void(bool level)> set_interrupt;
    std::function<void(std::byte)> transmit;
    std::function<void()> room_made;  ///< The guest took a byte: receive() accepts more again.
  };

  explicit SerialPort(Wiring wiring) : wiring_(std::move(wiring)) {}

  /// `offset`: 0 to 7, from the first port.
  std::uint8_t read(std::uint16_t offset);
  void write(std::uint16_t offset, std::uint8_t value);

  /// How many bytes receive() would take now.
  std::size_t room();

  /// Takes as many as there is room for; returns how many.
  std::size_t receive(std::span<const std::byte> bytes);

  /// While held, no input is taken and so no interrupt raised: for the time in which the state
  /// of this port and of the interrupt controllers must fit together.
  void hold_input(bool held);

  void reset();

  runtime::Section save();

  /// Errors: kCorrupt or kRefused, naming the field. Drives the interrupt line once.
  base::Outcome load(const runtime::Section& section);

 private:
  void write_divided(std::uint16_t offset, std::uint8_t value) REQUIRES(mutex_);
  void send(std::uint8_t value) REQUIRES(mutex_);
  std::uint8_t take_received() REQUIRES(mutex_);
  std::uint8_t identify_interrupt() REQUIRES(mutex_);
  [[nodiscard]] std::uint8_t modem_status() const REQUIRES(mutex_);
  [[nodiscard]] bool wants_interrupt() const REQUIRES(mutex_);
  void update_interrupt() REQUIRES(mutex_);

  struct Registers {
    std::uint8_t ier = 0;
    std::uint8_t lcr = 0;
    std::uint8_t mcr = 0;
    std::uint8_t scr = 0;
    std::uint8_t dll = 12;  // 9600 baud, as after a BIOS; only read back.
    std::uint8_t dlm = 0;
    std::uint8_t fcr = 0;
    bool transmitter_empty_pending = false;
  };

  const Wiring wiring_;

  base::Mutex mutex_;
  Registers registers_ GUARDED_BY(mutex_);
  std::deque<std::uint8_t> received_ GUARDED_BY(mutex_);
  bool level_ GUARDED_BY(mutex_) = false;
  bool input_held_ GUARDED_BY(mutex_) = false;
};

}  // namespace towline::vmm
