#include <array>
#include <utility>

#include <fmt/format.h>

#include "base/crc32c.h"
#include "base/ensure.h"
#include "runtime/wire/codec.h"

namespace towline::runtime::wire {
namespace {

constexpr const char* kStep = "read runs";
constexpr std::size_t kMaxVarintBytes = 10;  // 64 bits, seven to a byte.

base::Err<base::Error> corrupt_runs(std::string detail) {
  return base::fail(base::ErrorKind::kCorrupt, kStep, std::move(detail));
}

/// A gap and a length, not yet in a payload.
struct Pair {
  std::array<std::byte, 2 * kMaxVarintBytes> bytes{};
  std::size_t size = 0;

  void append(std::uint64_t value) {
    while (value >= 0x80U) {
      bytes[size++] = static_cast<std::byte>((value & 0x7fU) | 0x80U);
      value >>= 7U;
    }
    bytes[size++] = static_cast<std::byte>(value);
  }
};

/// Takes one LEB128 number off the front of `from`. Each number has exactly one encoding.
base::Expected<std::uint64_t> take_number(std::span<const std::byte>& from) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < from.size() && i < kMaxVarintBytes; ++i) {
    const auto byte = std::to_integer<std::uint64_t>(from[i]);
    if (i == kMaxVarintBytes - 1 && byte > 1) {
      break;  // Bit 64 or higher.
    }
    value |= (byte & 0x7fU) << (7 * i);
    if ((byte & 0x80U) == 0) {
      if (byte == 0 && i > 0) {
        return corrupt_runs("a number is longer than it need be");
      }
      from = from.subspan(i + 1);
      return value;
    }
  }
  return corrupt_runs(from.size() < kMaxVarintBytes ? "the last number is cut off"
                                                    : "a number does not fit into 64 bits");
}

/// Takes one run off the front of `from`; it begins `gap` pages after `end`.
base::Expected<base::PageRange> take_run(std::span<const std::byte>& from, base::PageIndex end,
                                         bool first, base::PageCount total) {
  const std::uint64_t gap = TRY(take_number(from));
  const std::uint64_t length = TRY(take_number(from));
  if ((gap == 0 && !first) || length == 0) {
    return corrupt_runs(fmt::format("runs do not ascend: gap {} and length {} after page {}", gap,
                                    length, end.value));
  }
  if (end.value > total.value || gap > total.value - end.value ||
      length > total.value - end.value - gap) {
    return corrupt_runs(
        fmt::format("gap {} and length {} after page {} lead beyond the {} pages there "
                    "are",
                    gap, length, end.value, total.value));
  }
  return base::PageRange{base::PageIndex{end.value + gap}, base::PageCount{length}};
}

}  // namespace

bool RunsWriter::add(base::PageRange run) {
  ENSURE(!run.empty() && (empty() || run.first > end_), "runs ascend and do not touch");
  Pair pair;
  pair.append(empty() ? 0 : run.first.value - end_.value);
  pair.append(run.count.value);
  if (bytes_.size() + pair.size > kMaxRunsPayload) {
    return false;
  }
  if (empty()) {
    base_ = run.first;
  }
  bytes_.insert(bytes_.end(), pair.bytes.begin(),
                pair.bytes.begin() + static_cast<std::ptrdiff_t>(pair.size));
  end_ = run.end();
  pages_ += run.count.value;
  return true;
}

RunsWriter::Frame RunsWriter::take() {
  ENSURE(!empty(), "an empty set has no frame");
  Frame frame;
  frame.payload = std::exchange(bytes_, {});
  frame.header.type = FrameType::kStale;
  frame.header.length = static_cast<std::uint32_t>(frame.payload.size());
  frame.header.first = base_.value;
  frame.header.count = std::exchange(pages_, 0);
  frame.header.payload_crc = base::crc32c(frame.payload);
  return frame;
}

base::Expected<std::vector<base::PageRange>> decode_runs(const FrameHeader& header,
                                                         std::span<const std::byte> payload,
                                                         base::PageCount total) {
  if (payload.empty() || payload.size() > kMaxRunsPayload) {
    return corrupt_runs(fmt::format("a payload of {} bytes, where 2 to {} are allowed",
                                    payload.size(), kMaxRunsPayload));
  }
  std::vector<base::PageRange> runs;
  base::PageIndex end{header.first};
  std::uint64_t pages = 0;
  while (!payload.empty()) {
    const base::PageRange run = TRY(take_run(payload, end, runs.empty(), total));
    runs.push_back(run);
    end = run.end();
    pages += run.count.value;  // Cannot overflow: runs are disjoint and within `total`.
  }
  if (pages != header.count) {
    return corrupt_runs(
        fmt::format("the runs name {} pages, the header says {}", pages, header.count));
  }
  return runs;
}

}  // namespace towline::runtime::wire
