#pragma once

#include <cstdint>

/// Hashes for self-checking pages. Cheap first; not for secrets. Constants from SplitMix64.
/// tests/harness/guest/page.py holds the same functions.
namespace guest {

__extension__ using Wide = unsigned __int128;

inline constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15;
inline constexpr std::uint64_t kFirstFactor = 0xbf58476d1ce4e5b9;
inline constexpr std::uint64_t kLaterFactor = 0x94d049bb133111eb;

constexpr std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30U;
  x *= kFirstFactor;
  x ^= x >> 27U;
  x *= kLaterFactor;
  return x ^ (x >> 31U);
}

/// Xorshift generator: full period, three shifts.
class Random {
 public:
  constexpr Random() = default;  // All zero, to cost no bytes in the image. Seed it before use.

  constexpr explicit Random(std::uint64_t seed) : state_(mix(seed + kGolden) | 1U) {}

  constexpr std::uint64_t next() {
    state_ ^= state_ << 13U;
    state_ ^= state_ >> 7U;
    state_ ^= state_ << 17U;
    return state_;
  }

  /// A number in [0, limit), near enough to uniform for any limit far below 2^64.
  constexpr std::uint64_t below(std::uint64_t limit) {
    return static_cast<std::uint64_t>((Wide{next()} * limit) >> 64U);
  }

 private:
  std::uint64_t state_ = 0;
};

}  // namespace guest
