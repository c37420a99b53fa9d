#include "runtime/source/switch_flight.h"

#include <utility>

#include "base/crc32c.h"
#include "base/ensure.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using wire::FrameHeader;
using wire::FrameType;

// Guess: each adds some microseconds to the pause and saves the guest a fault. A page that is
// larger than all of it never flies: it is asked for.
constexpr std::uint64_t kMostFirstBytes = 256U << 10U;

/// Takes pages from what is owed, up to the flight's share.
class Taken {
 public:
  Taken(const MemoryLayout& layout, OwedPages& owed) : layout_(layout), owed_(owed) {}

  /// False: it is full.
  bool add(PageIndex page) {
    const std::uint64_t size = layout_.page_size(page).value;
    if (size > kMostFirstBytes - bytes_) {
      return false;
    }
    if (owed_.take(page)) {
      bytes_ += size;
      pages_.push_back(page);
    }
    return true;
  }

  [[nodiscard]] const std::vector<PageIndex>& pages() const { return pages_; }

 private:
  const MemoryLayout& layout_;
  OwedPages& owed_;
  std::uint64_t bytes_ = 0;
  std::vector<PageIndex> pages_;
};

}  // namespace

void SwitchFlight::add(FrameHeader header, std::vector<std::byte> payload) {
  header.length = static_cast<std::uint32_t>(payload.size());
  header.payload_crc = payload.empty() ? 0 : base::crc32c(payload);
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
  Taken taken(memory.layout(), owed);
  bool room = true;
  for (const PageIndex page : first) {
    room = room && taken.add(page);
  }
  for (const PageRange& run : last_written) {
    for (std::uint64_t page = run.first.value; room && page < run.end().value; ++page) {
      room = taken.add(PageIndex{page});
    }
  }
  for (const PageIndex page : taken.pages()) {
    std::vector<std::byte> bytes;
    TRY(memory.copy(PageRange{page, PageCount{1}}, bytes));
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
  return control.send_parts(std::move(parts), parts_.size());
}

}  // namespace towline::runtime
