#include "runtime/switch_flight.h"

#include <utility>

#include "base/ensure.h"
#include "runtime/crc32c.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using wire::FrameHeader;
using wire::FrameType;

// Guess: each adds some microseconds to the pause and saves the guest a fault; 64 of them are a
// quarter of a megabyte in the flight.
constexpr std::size_t kMaxFirstPages = 64;

}  // namespace

void SwitchFlight::add(FrameHeader header, std::vector<std::byte> payload) {
  header.length = static_cast<std::uint32_t>(payload.size());
  header.payload_crc = payload.empty() ? 0 : crc32c(payload);
  parts_.push_back(Part{wire::encode_header(header), std::move(payload)});
}

void SwitchFlight::add_stale(std::span<const PageRange> runs, std::uint64_t count,
                             std::uint32_t pass, bool final_round) {
  wire::RunsWriter writer;
  const auto flush = [&] {
    auto frame = writer.take();
    frame.header.round = pass;
    parts_.push_back(Part{wire::encode_header(frame.header), std::move(frame.payload)});
  };
  for (const PageRange& run : runs) {
    if (!writer.add(run)) {
      flush();
      ENSURE(writer.add(run), "an empty frame has room for one run");
    }
  }
  if (!writer.empty()) {
    flush();
  }
  FrameHeader end;
  end.type = FrameType::kRoundEnd;
  end.flags = final_round ? wire::kFlagFinal : 0;
  end.round = pass;
  end.count = count;
  add(end, {});
}

base::Outcome SwitchFlight::add_first_pages(const SourceMemory& memory, OwedPages& owed,
                                            std::span<const PageIndex> first,
                                            std::span<const PageRange> last_written,
                                            SourceCounters& counters) {
  std::vector<PageIndex> pages;
  for (const PageIndex page : first) {
    if (pages.size() < kMaxFirstPages && owed.take(page)) {
      pages.push_back(page);
    }
  }
  for (const PageRange& run : last_written) {
    for (std::uint64_t page = run.first.value;
         page < run.end().value && pages.size() < kMaxFirstPages; ++page) {
      if (owed.take(PageIndex{page})) {
        pages.push_back(PageIndex{page});
      }
    }
  }
  for (const PageIndex page : pages) {
    std::vector<std::byte> bytes(base::kSmallPage.value);
    TRY(memory.read(PageRange{page, PageCount{1}}, bytes));
    FrameHeader header;
    header.type = FrameType::kPages;
    header.first = page.value;
    header.count = 1;
    header.round = wire::kPostcopyRound;
    add(header, std::move(bytes));
    ++counters.normal;
    ++counters.after_switch;
  }
  return base::Done{};
}

void SwitchFlight::add_state(std::vector<std::byte> encoded) {
  FrameHeader header;
  header.type = FrameType::kState;
  add(header, std::move(encoded));
}

void SwitchFlight::add_run() {
  FrameHeader header;
  header.type = FrameType::kRun;
  add(header, {});
}

base::Outcome SwitchFlight::send(Lane& control) {
  std::vector<iovec> parts;
  parts.reserve(parts_.size() * 2);
  for (Part& part : parts_) {
    parts.push_back(iovec{.iov_base = part.head.data(), .iov_len = part.head.size()});
    parts.push_back(iovec{.iov_base = part.payload.data(), .iov_len = part.payload.size()});
  }
  return control.send_parts(std::move(parts));
}

}  // namespace towline::runtime
