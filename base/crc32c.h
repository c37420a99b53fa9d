#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace towline::base {

/// CRC-32C (Castagnoli, reflected, initial and final inversion): "123456789" gives 0xe3069283.
///
/// Uses the SSE4.2 instruction in three interleaved streams where the CPU has it, a slice-by-8
/// table elsewhere; chosen once at run time. `seed` is the result of the bytes before, 0 at first.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed = 0);

/// The portable form, for tests and for CPUs without SSE4.2.
std::uint32_t crc32c_portable(std::span<const std::byte> bytes, std::uint32_t seed = 0);

/// True when every byte is zero. Fast on pages that are not (looks at a few words first).
bool all_zero(std::span<const std::byte> bytes);

}  // namespace towline::base
