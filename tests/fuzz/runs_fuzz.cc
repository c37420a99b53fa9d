// The payload of a stale set. Input: first page, count and total (8 bytes each), then the runs.
#include <array>
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

/// They ascend with a gap between them, stay inside, add up, and encode to the same bytes.
void check_runs(const std::vector<base::PageRange>& runs, const wire::FrameHeader& header,
                std::span<const std::byte> payload, base::PageCount total) {
  wire::RunsWriter writer;
  std::uint64_t pages = 0;
  std::uint64_t end = header.first;
  for (const base::PageRange& run : runs) {
    ENSURE(!run.empty() && run.first.value >= end, "runs ascend");
    ENSURE(run.count.value <= total.value && run.first.value <= total.value - run.count.value,
           "runs stay inside");
    ENSURE(writer.add(run), "what came in one frame fits into one");
    pages += run.count.value;
    end = run.end().value;
  }
  ENSURE(pages == header.count, "runs add up");
  if (!runs.empty() && runs.front().first.value == header.first) {
    const wire::RunsWriter::Frame frame = writer.take();
    ENSURE(std::equal(payload.begin(), payload.end(), frame.payload.begin(), frame.payload.end()),
           "each set has one encoding");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kHead = 24;
  if (size < kHead) {
    return 0;
  }
  wire::FrameHeader header;
  header.type = wire::FrameType::kStale;
  header.first = number_at(data, 0);
  header.count = number_at(data, 8);
  const base::PageCount total{number_at(data, 16)};
  const auto payload = std::as_bytes(std::span(data + kHead, size - kHead));
  header.length = static_cast<std::uint32_t>(payload.size());
  const auto runs = wire::decode_runs(header, payload, total);
  if (runs.ok()) {
    ENSURE(runs.value().size() <= payload.size() / 2, "two bytes a run at least");
    check_runs(runs.value(), header, payload, total);
  }
  return 0;
}
