#pragma once

#include <cstdint>

#include "tests/guest/text.h"

/// COM1, polled. Every port access leaves the guest, so bytes go out one at a time between
/// accesses to memory: a report does not make a gap of its own. First vCPU only.
namespace guest::serial {

void open();

/// Writes a line and waits until it is out. For the time before the workload runs.
void write_now(const Line& line);

/// Queues a line for `step`. False, and counted, when the queue is full.
bool write(const Line& line);

/// Sends one queued byte if the port takes it.
void step();

/// Room in the queue. Bytes.
[[nodiscard]] std::uint32_t room();

[[nodiscard]] bool idle();

/// Lines that did not fit.
[[nodiscard]] std::uint64_t lost_lines();

/// A byte from the host, or -1.
int read();

/// Sends everything that is queued.
void flush();

/// Says why on one line and stops this vCPU for ever.
[[noreturn]] void fail(const Line& line);

}  // namespace guest::serial
