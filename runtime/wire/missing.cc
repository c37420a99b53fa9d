#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/crc32c.h"
#include "runtime/wire/codec.h"

namespace towline::runtime::wire {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;

base::Err<base::Error> corrupt_missing(std::string detail) {
  return base::fail(base::ErrorKind::kCorrupt, "read missing pages", std::move(detail));
}

void set_bits(std::vector<std::byte>& bitmap, std::uint64_t first, std::uint64_t count) {
  for (std::uint64_t bit = first; bit < first + count; ++bit) {
    bitmap[bit / 8] |= static_cast<std::byte>(1U << (bit % 8));
  }
}

bool bit_of(std::span<const std::byte> bitmap, std::uint64_t bit) {
  return ((std::to_integer<unsigned>(bitmap[bit / 8]) >> (bit % 8)) & 1U) != 0;
}

std::uint64_t bits_up_to_last(std::span<const std::byte> bitmap) {
  std::uint64_t bits = bitmap.size() * 8;
  while (bits > 0 && !bit_of(bitmap, bits - 1)) {
    --bits;
  }
  return bits;
}

std::vector<PageRange> runs_of(std::span<const std::byte> bitmap, PageIndex first) {
  std::vector<PageRange> runs;
  const std::uint64_t bits = bitmap.size() * 8;
  std::uint64_t at = 0;
  while (at < bits) {
    if (!bit_of(bitmap, at)) {
      ++at;
      continue;
    }
    const std::uint64_t begin = at;
    while (at < bits && bit_of(bitmap, at)) {
      ++at;
    }
    runs.push_back(PageRange{PageIndex{first.value + begin}, PageCount{at - begin}});
  }
  return runs;
}

// As a bitmap: for the windows whose runs would be larger.
MissingFrame encode_bitmap(const std::vector<PageRange>& runs) {
  MissingFrame frame;
  const PageIndex first = runs.front().first;
  frame.payload.resize((runs.back().end().value - first.value + 7) / 8);
  for (const PageRange& run : runs) {
    set_bits(frame.payload, run.first.value - first.value, run.count.value);
    frame.header.count += run.count.value;
  }
  frame.header.flags = kFlagBitmap;
  frame.header.length = static_cast<std::uint32_t>(frame.payload.size());
  frame.header.first = first.value;
  frame.header.payload_crc = base::crc32c(frame.payload);
  return frame;
}

// As pairs, if they fit into a frame.
std::optional<MissingFrame> encode_pairs(const std::vector<PageRange>& runs) {
  RunsWriter writer;
  for (const PageRange& run : runs) {
    if (!writer.add(run)) {
      return std::nullopt;
    }
  }
  auto written = writer.take();
  MissingFrame frame;
  frame.header = written.header;
  frame.payload = std::move(written.payload);
  return frame;
}

// The map moves while it is looked at: where a run ended at a page that somebody was bringing, the
// next look may find that page given up. Then both are one run.
void append(std::vector<PageRange>& runs, PageRange run) {
  if (!runs.empty() && runs.back().end() == run.first) {
    runs.back().count.value += run.count.value;
  } else {
    runs.push_back(run);
  }
}

}  // namespace

std::optional<MissingFrame> encode_missing(const NextMissing& next_missing, PageIndex from,
                                           PageCount total) {
  std::vector<PageRange> runs;
  PageIndex end{total.value};  // Of the window, once its first page is known.
  PageIndex at = from;
  while (at < end) {
    const auto run = next_missing(at, PageCount{end.value - at.value});
    if (!run.has_value() || run->first >= end) {
      break;
    }
    if (runs.empty()) {
      end = PageIndex{std::min(total.value, run->first.value + kMaxPagesPerBitmap)};
    }
    at = PageIndex{std::min(run->end().value, end.value)};  // Never back: nothing is told twice.
    append(runs, PageRange{run->first, PageCount{at.value - run->first.value}});
  }
  if (runs.empty()) {
    return std::nullopt;
  }
  const std::uint64_t bitmap_bytes = (runs.back().end().value - runs.front().first.value + 7) / 8;
  auto pairs = encode_pairs(runs);
  MissingFrame frame = pairs.has_value() && pairs->payload.size() <= bitmap_bytes
                           ? *std::move(pairs)
                           : encode_bitmap(runs);
  frame.header.type = FrameType::kMissing;
  frame.next = at;
  return frame;
}

base::Expected<std::vector<PageRange>> decode_missing(const FrameHeader& header,
                                                      std::span<const std::byte> payload,
                                                      PageCount total) {
  if ((header.flags & kFlagBitmap) == 0) {
    return decode_runs(header, payload, total);
  }
  if (payload.empty() || payload.size() > kMaxRunsPayload || header.first >= total.value) {
    return corrupt_missing(fmt::format("a bitmap of {} bytes from page {} of {}", payload.size(),
                                       header.first, total.value));
  }
  // Before the bits become page numbers: those near 2^64 would wrap.
  if (bits_up_to_last(payload) > total.value - header.first) {
    return corrupt_missing(fmt::format("a bitmap from page {} names pages beyond the {} there are",
                                       header.first, total.value));
  }
  std::vector<PageRange> runs = runs_of(payload, PageIndex{header.first});
  std::uint64_t pages = 0;
  for (const PageRange& run : runs) {
    pages += run.count.value;
  }
  if (pages != header.count) {
    return corrupt_missing(
        fmt::format("a bitmap names {} pages, the header says {}", pages, header.count));
  }
  return runs;
}

}  // namespace towline::runtime::wire
