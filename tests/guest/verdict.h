#pragma once

#include <cstdint>

#include "tests/guest/text.h"

/// The part of a sweep that no vCPU owns, and its result.
namespace guest {

/// Digest of the read-only part of the image, taken when the guest started.
std::uint64_t image_digest();
void take_image_digest();

/// Starts to check untouched memory, the image and the page tables.
void begin_checks(std::uint64_t now);

/// Checks one page; true after the last.
bool check_step();

/// The line that ends a sweep.
Line verdict(std::uint64_t sequence, std::uint64_t now);

}  // namespace guest
