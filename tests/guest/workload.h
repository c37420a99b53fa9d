#pragma once

#include <cstdint>

/// What a vCPU does with its pages, one page a step.
namespace guest {

struct Vcpu;

/// Writes the next page for the first time.
void fill_step(Vcpu& self);

/// Verifies one page and, as often as the options say, writes its next generation.
void access_step(Vcpu& self, std::uint64_t now);

/// Reads the next page whole; after the last one compares the table with the running digest.
void sweep_step(Vcpu& self);

/// Compares what is kept twice: counters with their twin and with the registers.
void check_state(Vcpu& self);

}  // namespace guest
