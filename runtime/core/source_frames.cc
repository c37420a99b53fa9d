// The target's frames, as the source's brain is told of them.
#include <cstring>

#include <fmt/format.h>

#include "runtime/core/source_input.h"
#include "runtime/wire/text.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using wire::FrameType;

}  // namespace

base::Expected<SourceInput> source_input_of(const wire::FrameHeader& header,
                                            std::span<const std::byte> payload) {
  using Kind = SourceInput::Kind;
  SourceInput input{.kind = Kind::kAccept};
  switch (header.type) {
    case FrameType::kAccept:
      return input;
    case FrameType::kRefuse:
      return SourceInput{.kind = Kind::kRefuse, .text = text_of(payload)};
    case FrameType::kStaleApplied:
      return SourceInput{.kind = Kind::kStaleApplied};
    case FrameType::kRunning:
      if (payload.size() != sizeof input.number) {
        return fail(ErrorKind::kCorrupt, "control frame", "running without its time");
      }
      input.kind = Kind::kRunning;
      std::memcpy(&input.number, payload.data(), sizeof input.number);
      return input;
    case FrameType::kNever:
      return SourceInput{.kind = Kind::kNever, .text = text_of(payload)};
    case FrameType::kComplete:
      return SourceInput{.kind = Kind::kComplete};
    case FrameType::kMissing:
      return SourceInput{.kind = Kind::kMissing, .number = header.count};
    case FrameType::kMissingEnd:
      return SourceInput{
          .kind = Kind::kMissingEnd, .number = header.count, .attempt = header.round};
    case FrameType::kLaneLost:
      return SourceInput{.kind = Kind::kLaneLost,
                         .lane = lane_of_code(header.first),
                         .text = text_of(payload),
                         .number = header.first,
                         .attempt = header.round};
    case FrameType::kNoRoom:
      return SourceInput{.kind = Kind::kNoRoom, .text = text_of(payload)};
    case FrameType::kRoomAgain:
      return SourceInput{.kind = Kind::kRoomAgain};
    case FrameType::kBeat:
      return SourceInput{.kind = Kind::kBeat, .flag = header.round == wire::kBeatIdle};
    case FrameType::kPong:
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
      break;
  }
  return fail(ErrorKind::kCorrupt, "control frame",
              fmt::format("{} is not the target's to send", wire::to_string(header.type)));
}

}  // namespace towline::runtime
