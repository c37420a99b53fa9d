// What the source does with the target's words: tl-control.
#include <cstring>
#include <utility>

#include "runtime/link/handshake.h"
#include "runtime/source/driver.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;
using wire::FrameHeader;
using wire::FrameType;

std::uint64_t read_u64(std::span<const std::byte> bytes, std::size_t at) {
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

}  // namespace

void SourceDriver::read_control(const std::shared_ptr<Lane>& lane, std::uint64_t epoch) {
  const auto read = read_frames(*lane);
  if (lane->lost_a_frame()) {
    note_overdue(read.error().detail);
  }
  [[maybe_unused]] const auto told =
      feed({.kind = SourceInput::Kind::kControlEnded,
            .error = read.ok() ? base::Error{ErrorKind::kDisconnected, 0, "receive",
                                             "the target closed the control lane"}
                               : read.error(),
            .epoch = epoch});
}

Outcome SourceDriver::read_frames(Lane& lane) {
  while (true) {
    const auto header = TRY(lane.receive_header());
    if (!header.has_value()) {
      return base::Done{};
    }
    TRY(on_frame(lane, *header));
  }
}

// What names pages is decoded before the brain is told of it.
Outcome SourceDriver::on_frame(Lane& lane, const FrameHeader& header) {
  const base::Instant received = clock_.now();
  const auto payload = TRY(lane.receive_payload(header));
  if (header.type == FrameType::kPong) {
    return on_pong(payload, received);
  }
  auto input = TRY(source_input_of(header, payload));
  if (header.type == FrameType::kMissing) {
    return on_missing(header, payload, std::move(input));
  }
  return feed(std::move(input));
}

Outcome SourceDriver::on_pong(std::span<const std::byte> payload, base::Instant received) {
  if (payload.size() != 2 * sizeof(std::uint64_t) || read_u64(payload, 0) > base::to_ns(received)) {
    return fail(ErrorKind::kCorrupt, "control frame", "an echo of nothing that was sent");
  }
  const base::Lock lock(mutex_);
  statistics_.clock.add(read_u64(payload, 0), base::to_ns(received), read_u64(payload, 8));
  ++statistics_.pongs;
  changed_.notify_all();
  return base::Done{};
}

Outcome SourceDriver::on_missing(const FrameHeader& header, std::span<const std::byte> payload,
                                 SourceInput input) {
  const auto runs = TRY(wire::decode_missing(header, payload, layout_.pages()));
  const base::Lock lock(mutex_);
  named_ = runs;
  auto owed = feed_locked(std::move(input));
  named_ = {};
  return owed;
}

}  // namespace towline::runtime
