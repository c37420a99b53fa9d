// What a target says that it misses. Input: first page, count and total (8 bytes each), one byte
// that says whether a bitmap follows (odd) or runs, then those.
#include <cstdint>

#include "base/ensure.h"
#include "runtime/wire/codec.h"

namespace base = towline::base;
namespace wire = towline::runtime::wire;

namespace {

std::uint64_t number_at(const std::uint8_t* data, std::size_t offset) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < 8; ++i) {
    value |= std::uint64_t{data[offset + i]} << (8 * i);
  }
  return value;
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kHead = 25;
  if (size < kHead) {
    return 0;
  }
  wire::FrameHeader header;
  header.type = wire::FrameType::kMissing;
  header.first = number_at(data, 0);
  header.count = number_at(data, 8);
  header.flags = (data[24] & 1U) != 0 ? std::uint16_t{wire::kFlagBitmap} : std::uint16_t{0};
  const base::PageCount total{number_at(data, 16)};
  const auto payload = std::as_bytes(std::span(data + kHead, size - kHead));
  header.length = static_cast<std::uint32_t>(payload.size());
  const auto runs = wire::decode_missing(header, payload, total);
  if (!runs.ok()) {
    return 0;
  }
  ENSURE(runs.value().size() <= payload.size() * 4, "a byte names four runs at most");
  std::uint64_t pages = 0;
  std::uint64_t end = header.first;
  for (const base::PageRange& run : runs.value()) {
    ENSURE(!run.empty() && run.first.value >= end, "runs ascend");
    ENSURE(run.count.value <= total.value && run.first.value <= total.value - run.count.value,
           "runs stay inside");
    pages += run.count.value;
    end = run.end().value;
  }
  ENSURE(pages == header.count, "runs add up");
  return 0;
}
