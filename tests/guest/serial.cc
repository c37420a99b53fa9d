#include "tests/guest/serial.h"

#include "tests/guest/machine.h"

extern "C" [[noreturn]] void stop_vcpu();

namespace guest::serial {

namespace {

constexpr std::uint16_t kData = 0x3f8;
constexpr std::uint16_t kInterruptEnable = 0x3f9;
constexpr std::uint16_t kFifoControl = 0x3fa;
constexpr std::uint16_t kLineControl = 0x3fb;
constexpr std::uint16_t kModemControl = 0x3fc;
constexpr std::uint16_t kLineStatus = 0x3fd;
constexpr std::uint8_t kReceived = 0x01;
constexpr std::uint8_t kTransmitterEmpty = 0x20;
// An empty 16550 takes a FIFO's worth of bytes without being asked again.
constexpr std::uint32_t kFifoBytes = 16;

constexpr std::uint32_t kQueueBytes = 1U << 16U;

char queue[kQueueBytes];
std::uint32_t queued = 0;  // Counts for ever; the difference is what waits.
std::uint32_t sent = 0;
std::uint32_t credit = 0;
std::uint64_t lost = 0;

}  // namespace

void open() {
  write_port(kInterruptEnable, 0);
  write_port(kLineControl, 0x80);
  write_port(kData, 1);
  write_port(kInterruptEnable, 0);
  write_port(kLineControl, 3);
  write_port(kFifoControl, 7);
  write_port(kModemControl, 3);
}

std::uint32_t room() {
  return kQueueBytes - (queued - sent);
}

bool idle() {
  return queued == sent;
}

std::uint64_t lost_lines() {
  return lost;
}

bool write(const Line& line) {
  if (room() < line.size() + 2) {
    ++lost;
    return false;
  }
  for (std::uint32_t i = 0; i < line.size(); ++i) {
    queue[queued++ % kQueueBytes] = line.data()[i];
  }
  queue[queued++ % kQueueBytes] = '\r';
  queue[queued++ % kQueueBytes] = '\n';
  return true;
}

void step() {
  if (idle()) {
    return;
  }
  if (credit == 0) {
    if ((read_port(kLineStatus) & kTransmitterEmpty) == 0) {
      return;
    }
    credit = kFifoBytes;
  }
  --credit;
  write_port(kData, static_cast<std::uint8_t>(queue[sent++ % kQueueBytes]));
}

void flush() {
  while (!idle()) {
    step();
  }
}

void write_now(const Line& line) {
  flush();
  write(line);
  flush();
}

int read() {
  if ((read_port(kLineStatus) & kReceived) == 0) {
    return -1;
  }
  return read_port(kData);
}

void fail(const Line& line) {
  write_now(line);
  stop_vcpu();
}

}  // namespace guest::serial
