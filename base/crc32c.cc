#include "base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace towline::base {
namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78U;  // Castagnoli, reflected: bit 31 is x^0.

using ByteTable = std::array<std::uint32_t, 256>;

constexpr std::uint32_t after_one_byte(std::uint32_t crc) {
  for (int bit = 0; bit < 8; ++bit) {
    crc = (crc >> 1U) ^ ((crc & 1U) != 0 ? kPolynomial : 0U);
  }
  return crc;
}

/// tables[k][b]: what byte b does to a checksum when k more bytes follow it in the word.
constexpr std::array<ByteTable, 8> make_slices() {
  std::array<ByteTable, 8> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    tables[0][byte] = after_one_byte(byte);
  }
  for (std::size_t k = 1; k < tables.size(); ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t crc = tables[k - 1][byte];
      tables[k][byte] = (crc >> 8U) ^ tables[0][crc & 0xffU];
    }
  }
  return tables;
}

constexpr std::array<ByteTable, 8> kSlices = make_slices();

std::uint64_t load_word(const std::byte* at) {
  std::uint64_t word = 0;
  std::memcpy(&word, at, sizeof word);
  return word;
}

/// Without the inversions at both ends.
std::uint32_t raw_portable(std::uint32_t crc, const std::byte* at, std::size_t size) {
  for (; size >= 8; at += 8, size -= 8) {
    const std::uint64_t word = load_word(at) ^ crc;
    crc = kSlices[7][word & 0xffU] ^ kSlices[6][(word >> 8U) & 0xffU] ^
          kSlices[5][(word >> 16U) & 0xffU] ^ kSlices[4][(word >> 24U) & 0xffU] ^
          kSlices[3][(word >> 32U) & 0xffU] ^ kSlices[2][(word >> 40U) & 0xffU] ^
          kSlices[1][(word >> 48U) & 0xffU] ^ kSlices[0][word >> 56U];
  }
  for (; size > 0; ++at, --size) {
    crc = (crc >> 8U) ^ kSlices[0][(crc ^ std::to_integer<std::uint32_t>(*at)) & 0xffU];
  }
  return crc;
}

#if defined(__x86_64__)

// The instruction takes three cycles and one may start in each, so three independent streams keep
// it busy. Three strides and one word pair make a page: 3 * 1360 + 16 = 4096.
constexpr std::size_t kStride = 1360;

constexpr std::uint32_t after_zero_bytes(std::uint32_t crc, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    crc = (crc >> 8U) ^ kSlices[0][crc & 0xffU];
  }
  return crc;
}

/// shift[k][b]: byte k of a checksum, once one stride of zero bytes has followed.
constexpr std::array<ByteTable, 4> make_stride_shift() {
  std::array<std::uint32_t, 32> of_bit{};  // The shift is linear: 32 columns describe it.
  for (std::size_t bit = 0; bit < of_bit.size(); ++bit) {
    of_bit[bit] = after_zero_bytes(1U << bit, kStride);
  }
  std::array<ByteTable, 4> tables{};
  for (std::size_t k = 0; k < tables.size(); ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      for (std::size_t bit = 0; bit < 8; ++bit) {
        tables[k][byte] ^= ((byte >> bit) & 1U) != 0 ? of_bit[8 * k + bit] : 0U;
      }
    }
  }
  return tables;
}

constexpr std::array<ByteTable, 4> kStrideShift = make_stride_shift();

std::uint32_t shift_stride(std::uint32_t crc) {
  return kStrideShift[0][crc & 0xffU] ^ kStrideShift[1][(crc >> 8U) & 0xffU] ^
         kStrideShift[2][(crc >> 16U) & 0xffU] ^ kStrideShift[3][crc >> 24U];
}

__attribute__((target("sse4.2"))) std::uint32_t raw_sse42(std::uint32_t crc, const std::byte* at,
                                                          std::size_t size) {
  for (; size >= 3 * kStride; at += 3 * kStride, size -= 3 * kStride) {
    std::uint64_t first = crc;
    std::uint64_t second = 0;
    std::uint64_t third = 0;
    for (std::size_t i = 0; i < kStride; i += 8) {
      first = _mm_crc32_u64(first, load_word(at + i));
      second = _mm_crc32_u64(second, load_word(at + kStride + i));
      third = _mm_crc32_u64(third, load_word(at + 2 * kStride + i));
    }
    crc = shift_stride(static_cast<std::uint32_t>(first)) ^ static_cast<std::uint32_t>(second);
    crc = shift_stride(crc) ^ static_cast<std::uint32_t>(third);
  }
  std::uint64_t rest = crc;
  for (; size >= 8; at += 8, size -= 8) {
    rest = _mm_crc32_u64(rest, load_word(at));
  }
  crc = static_cast<std::uint32_t>(rest);
  for (; size > 0; ++at, --size) {
    crc = _mm_crc32_u8(crc, std::to_integer<std::uint8_t>(*at));
  }
  return crc;
}

bool has_sse42() {
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  return has;
}

#endif

/// Not 0 when one of 128 bytes is not. Two words an operation, which every x86-64 has.
std::uint64_t any_bit(const std::byte* at) {
  using Words = std::uint64_t __attribute__((vector_size(16), aligned(1), may_alias));
  const auto* words = reinterpret_cast<const Words*>(at);
  const Words any =
      (words[0] | words[1]) | (words[2] | words[3]) | (words[4] | words[5]) | (words[6] | words[7]);
  return any[0] | any[1];
}

}  // namespace

std::uint32_t crc32c_portable(std::span<const std::byte> bytes, std::uint32_t seed) {
  return ~raw_portable(~seed, bytes.data(), bytes.size());
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed) {
#if defined(__x86_64__)
  if (has_sse42()) {
    return ~raw_sse42(~seed, bytes.data(), bytes.size());
  }
#endif
  return crc32c_portable(bytes, seed);
}

bool all_zero(std::span<const std::byte> bytes) {
  const std::byte* at = bytes.data();
  std::size_t size = bytes.size();
  for (; size >= 128; at += 128, size -= 128) {
    if (any_bit(at) != 0) {
      return false;
    }
  }
  for (; size > 0; ++at, --size) {
    if (*at != std::byte{0}) {
      return false;
    }
  }
  return true;
}

}  // namespace towline::base
