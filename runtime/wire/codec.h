#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "runtime/wire/format.h"

/// Bytes ↔ frames. No I/O, no state; every decoder takes foreign bytes and is a fuzz target.
namespace towline::runtime::wire {

using HeaderBytes = std::array<std::byte, kHeaderBytes>;

/// `header.payload_crc` is the caller's; the header's own checksum is added here.
HeaderBytes encode_header(const FrameHeader& header);

/// Checks, in this order: header checksum, known type, lane and direction, length and count limits
/// of the type, unknown flags. Page numbers are checked against the layout by the receiver.
///
/// Errors: kCorrupt, naming what is wrong and both values.
base::Expected<FrameHeader> decode_header(std::span<const std::byte, kHeaderBytes> bytes,
                                          LaneRole lane, Direction direction);

std::vector<std::byte> encode_hello(const Hello& hello);
/// Errors: kCorrupt (length, magic, role, lane number). A version range that does not meet ours is
/// no error here: the listener answers it with both ranges.
base::Expected<Hello> decode_hello(std::span<const std::byte> payload);

std::array<std::byte, kHelloReplyBytes> encode_hello_reply(const HelloReply& reply);
base::Expected<HelloReply> decode_hello_reply(std::span<const std::byte> payload);

/// The newest version that both ranges hold.
std::optional<std::uint16_t> common_version(const Hello& hello);

/// Appends runs of pages as LEB128 pairs (gap since the end of the run before, length) until the
/// payload is full. One frame: `first` is the base of the first gap, `count` the pages named.
class RunsWriter {
 public:
  /// Ranges ascend and do not touch. False: the payload is full; take() it, then add again.
  [[nodiscard]] bool add(base::PageRange run);

  [[nodiscard]] bool empty() const { return bytes_.empty(); }

  /// The frame's header (type kStale; length, count, payload_crc set) and payload. Empties this.
  struct Frame {
    FrameHeader header;
    std::vector<std::byte> payload;
  };

  [[nodiscard]] Frame take();

 private:
  std::vector<std::byte> bytes_;
  base::PageIndex base_;
  base::PageIndex end_;
  std::uint64_t pages_ = 0;
};

/// The runs of one frame. Errors: kCorrupt when they do not ascend, leave [0, total), overflow,
/// or do not add up to header.count. Allocates at most in proportion to the payload.
base::Expected<std::vector<base::PageRange>> decode_runs(const FrameHeader& header,
                                                         std::span<const std::byte> payload,
                                                         base::PageCount total);

/// One frame of what the target misses, and where the next one begins.
struct MissingFrame {
  FrameHeader header;
  std::vector<std::byte> payload;
  base::PageIndex next;
};

/// The missing pages at or after `from`, as runs or, where that is smaller, as a bitmap: a frame
/// never exceeds kMaxRunsPayload and stands for at most kMaxPagesPerBitmap pages, so that 2^28
/// pages (1 TiB) take at most 32 MiB and their headers. `next_missing(at, limit)` is
/// PageMap::next_missing(). nullopt: nothing is missing any more.
///
/// The map may change meanwhile. Each page is looked at once and named at most once; what was
/// missing from before the call until its end is named. What is left out was here, or somebody was
/// bringing it: whoever gives that up loses the link, and the next epoch, in which nobody brings
/// anything, tells it again (docs/invariants.md).
using NextMissing =
    std::function<std::optional<base::PageRange>(base::PageIndex at, base::PageCount limit)>;
std::optional<MissingFrame> encode_missing(const NextMissing& next_missing, base::PageIndex from,
                                           base::PageCount total);

/// The runs of one kMissing frame. Errors and bounds as decode_runs(); a bitmap has no bits beyond
/// `total`.
base::Expected<std::vector<base::PageRange>> decode_missing(const FrameHeader& header,
                                                            std::span<const std::byte> payload,
                                                            base::PageCount total);

}  // namespace towline::runtime::wire
