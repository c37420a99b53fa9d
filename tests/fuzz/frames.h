#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/crc32c.h"
#include "runtime/wire/format.h"

namespace towline::fuzz {

inline void put_number(std::vector<std::byte>& bytes, std::size_t at, std::uint32_t value) {
  for (std::size_t i = 0; i < 4; ++i) {
    bytes[at + i] = static_cast<std::byte>((value >> (8 * i)) & 0xffU);
  }
}

inline std::uint32_t number_at(std::span<const std::byte> bytes, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    value |= std::to_integer<std::uint32_t>(bytes[at + i]) << (8 * i);
  }
  return value;
}

/// Sets every checksum of a stream of frames right, or nothing behind them would ever be reached.
inline void set_checksums(std::vector<std::byte>& bytes) {
  namespace wire = runtime::wire;
  for (std::size_t at = 0; bytes.size() - at >= wire::kHeaderBytes;) {
    const std::size_t behind = at + wire::kHeaderBytes;
    const std::size_t length =
        std::min<std::size_t>(number_at(bytes, at + wire::kOffsetLength), bytes.size() - behind);
    const auto payload = std::span(bytes).subspan(behind, length);
    put_number(bytes, at + wire::kOffsetPayloadCrc, length == 0 ? 0 : base::crc32c(payload));
    put_number(bytes, at + wire::kOffsetHeaderCrc,
               base::crc32c(std::span(bytes).subspan(at, wire::kOffsetHeaderCrc)));
    at = behind + length;
  }
}

}  // namespace towline::fuzz
