#pragma once

#include <cstdint>

/// The guest's voice: reports, damage, answers to the host. First vCPU only.
/// docs/bare-guest.md describes every line.
namespace guest {

/// One round of talking: at most one byte out, and what is due.
void console_step(std::uint64_t now);

/// Lines before the workload.
void say_hello();

}  // namespace guest
