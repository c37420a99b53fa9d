// What the source does with the target's words: tl-control.
#include <cstring>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/source/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using wire::FrameHeader;
using wire::FrameType;

std::uint64_t read_u64(std::span<const std::byte> bytes, std::size_t at) {
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

}  // namespace

void SourceDriver::read_control(const std::shared_ptr<Lane>& lane) {
  const auto read = read_frames(*lane);
  if (lane->lost_a_frame()) {
    note_overdue(read.error().detail);
  }
  lose(read.ok() ? base::Error{ErrorKind::kDisconnected, 0, "receive",
                               "the target closed the control lane"}
                 : read.error());
  const base::Lock lock(mutex_);
  inbox_.control_ended = true;
  changed_.notify_all();
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

Outcome SourceDriver::on_frame(Lane& lane, const FrameHeader& header) {
  const base::Instant received = clock_.now();
  const auto payload = TRY(lane.receive_payload(header));
  const base::Lock lock(mutex_);
  switch (header.type) {
    case FrameType::kAccept:
      inbox_.accepted = true;
      break;
    case FrameType::kRefuse:
      inbox_.refused = text_of(payload);
      break;
    case FrameType::kStaleApplied:
      ++inbox_.rounds_applied;
      break;
    case FrameType::kRunning:
      if (payload.size() != sizeof(std::uint64_t) || before_order(state_)) {
        return fail(ErrorKind::kCorrupt, "control frame",
                    "running without its time, or before it was ordered");
      }
      if (!inbox_.running_at_ns.has_value()) {
        inbox_.running_at_ns = read_u64(payload, 0);
      }
      inbox_.runs = true;
      // At once, not when the session gets to it: the link may break before the next frame, and a
      // guest that is known to run there must never be taken back.
      if (runtime::step(state_, SourceEvent::kTargetRunning).ok()) {
        note_running();
      }
      break;
    case FrameType::kNever:
      inbox_.never = text_of(payload);
      break;
    case FrameType::kComplete:
      if (!inbox_.running_at_ns.has_value()) {
        return fail(ErrorKind::kCorrupt, "control frame", "complete before it ran");
      }
      inbox_.complete = true;
      break;
    case FrameType::kPong:
      if (payload.size() != 2 * sizeof(std::uint64_t) ||
          read_u64(payload, 0) > base::to_ns(received)) {
        return fail(ErrorKind::kCorrupt, "control frame", "an echo of nothing that was sent");
      }
      clock_offset_.add(read_u64(payload, 0), base::to_ns(received), read_u64(payload, 8));
      ++inbox_.pongs;
      break;
    case FrameType::kMissing:
    case FrameType::kMissingEnd:
      TRY(on_missing(header, payload));
      break;
    case FrameType::kLaneLost:
      TRY(on_lane_lost(header, payload));
      break;
    case FrameType::kNoRoom:
    case FrameType::kRoomAgain:
      TRY(on_room(header, payload));
      break;
    case FrameType::kBeat:
      inbox_.target_idle = lane.counts_frames() && header.round == wire::kBeatIdle;
      break;
    case FrameType::kResume:
    case FrameType::kHello:
    case FrameType::kHelloReply:
    case FrameType::kProof:
    case FrameType::kLaneReady:
    case FrameType::kDescribe:
    case FrameType::kStale:
    case FrameType::kRoundEnd:
    case FrameType::kState:
    case FrameType::kRun:
    case FrameType::kCancel:
    case FrameType::kCompleteAck:
    case FrameType::kPing:
    case FrameType::kPages:
    case FrameType::kZeros:
    case FrameType::kMarker:
    case FrameType::kRequest:
      return fail(ErrorKind::kCorrupt, "control frame",
                  fmt::format("{} is not the target's to send", wire::to_string(header.type)));
  }
  changed_.notify_all();
  return base::Done{};
}

// Only in turns, and only while pages of a pass may be under way: the target says the second before
// it ends a lane's pass, so that neither can come when the switch has begun.
Outcome SourceDriver::on_room(const FrameHeader& header, std::span<const std::byte> payload) {
  const bool there_is = header.type == FrameType::kRoomAgain;
  const bool in_pass = state_ == SourceState::kPassing || state_ == SourceState::kSyncing;
  if (!waits_for_room_ || !in_pass || bulk_ == nullptr || inbox_.no_room.has_value() != there_is) {
    return fail(ErrorKind::kCorrupt, "control frame",
                fmt::format("{} is not due now", wire::to_string(header.type)));
  }
  if (there_is) {
    inbox_.no_room.reset();
    bulk_->go_on();
    base::log(LogLevel::kInfo, "target.room_again");
  } else {
    inbox_.no_room = text_of(payload);
    bulk_->hold_back();
    base::log(LogLevel::kWarning, "target.no_room reason={}", *inbox_.no_room);
  }
  return base::Done{};
}

}  // namespace towline::runtime
