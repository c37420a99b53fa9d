#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"

/// Proofs and random numbers: OpenSSL behind four functions.
namespace towline::runtime {

using Mac = std::array<std::byte, 32>;

/// Fills `into` from the system's generator. Aborts when there is none: nothing here is safe then.
void random_bytes(std::span<std::byte> into);

std::uint64_t random_number();

/// HMAC-SHA256 of `message` under `key`.
Mac hmac_sha256(std::span<const std::byte> key, std::span<const std::byte> message);

/// Compares in a time that does not depend on where they differ.
[[nodiscard]] bool equal_in_constant_time(std::span<const std::byte> a,
                                          std::span<const std::byte> b);

}  // namespace towline::runtime
