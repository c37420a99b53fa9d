#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string_view>

#include "runtime/wire/format.h"

/// What each frame type may carry, where, and which way: docs/wire-format.md holds the same table,
/// and a test compares them.
namespace towline::runtime::wire {

/// Sets of lane roles.
enum Lanes : std::uint8_t {
  kOnControl = 1U << 0U,
  kOnUrgent = 1U << 1U,
  kOnBulk = 1U << 2U,
  kOnAny = kOnControl | kOnUrgent | kOnBulk,
};

struct FrameRule {
  FrameType type = FrameType::kPing;
  std::uint8_t lanes = 0;  ///< Lanes.
  Direction direction = Direction::kToTarget;
  std::uint32_t min_length = 0;  ///< Payload bytes.
  std::uint32_t max_length = 0;
  std::uint64_t min_count = 0;  ///< Pages.
  std::uint64_t max_count = 0;
  std::uint16_t flags = 0;  ///< Those that are allowed.
};

inline constexpr std::uint64_t kAnyCount = std::numeric_limits<std::uint64_t>::max();

// clang-format off
inline constexpr std::array kFrameRules{
    FrameRule{FrameType::kHello,        kOnAny,     Direction::kToTarget, kHelloBytes,      kMaxHandshakePayload, 0, 0,                   0},
    FrameRule{FrameType::kHelloReply,   kOnAny,     Direction::kToSource, kHelloReplyBytes, kMaxHandshakePayload, 0, 0,                   0},
    FrameRule{FrameType::kProof,        kOnAny,     Direction::kToTarget, kMacBytes,        kMacBytes,            0, 0,                   0},
    FrameRule{FrameType::kLaneReady,    kOnAny,     Direction::kToSource, 0,                0,                    0, 0,                   0},
    FrameRule{FrameType::kRefuse,       kOnAny,     Direction::kToSource, 0,                kMaxTextPayload,      0, 0,                   0},
    FrameRule{FrameType::kDescribe,     kOnControl, Direction::kToTarget, 1,                kMaxDescribePayload,  0, 0,                   0},
    FrameRule{FrameType::kStale,        kOnControl, Direction::kToTarget, 2,                kMaxRunsPayload,      1, kAnyCount,           0},
    FrameRule{FrameType::kRoundEnd,     kOnControl, Direction::kToTarget, 0,                0,                    0, kAnyCount,           kFlagFinal},
    FrameRule{FrameType::kState,        kOnControl, Direction::kToTarget, 1,                kMaxStatePayload,     0, 0,                   0},
    FrameRule{FrameType::kRun,          kOnControl, Direction::kToTarget, 0,                0,                    0, 0,                   0},
    FrameRule{FrameType::kCancel,       kOnControl, Direction::kToTarget, 0,                kMaxTextPayload,      0, 0,                   0},
    FrameRule{FrameType::kCompleteAck,  kOnControl, Direction::kToTarget, 0,                0,                    0, 0,                   0},
    FrameRule{FrameType::kPing,         kOnControl, Direction::kToTarget, 8,                8,                    0, 0,                   0},
    FrameRule{FrameType::kResume,       kOnControl, Direction::kToTarget, 0,                0,                    0, 0,                   0},
    FrameRule{FrameType::kAccept,       kOnControl, Direction::kToSource, 0,                0,                    0, 0,                   0},
    FrameRule{FrameType::kStaleApplied, kOnControl, Direction::kToSource, 0,                0,                    0, kAnyCount,           0},
    FrameRule{FrameType::kRunning,      kOnControl, Direction::kToSource, 8,                8,                    0, 0,                   0},
    FrameRule{FrameType::kNever,        kOnControl, Direction::kToSource, 0,                kMaxTextPayload,      0, 0,                   0},
    FrameRule{FrameType::kComplete,     kOnControl, Direction::kToSource, 0,                0,                    0, kAnyCount,           0},
    FrameRule{FrameType::kPong,         kOnControl, Direction::kToSource, 16,               16,                   0, 0,                   0},
    FrameRule{FrameType::kMissing,      kOnControl, Direction::kToSource, 1,                kMaxRunsPayload,      1, kAnyCount,           kFlagBitmap},
    FrameRule{FrameType::kMissingEnd,   kOnControl, Direction::kToSource, 0,                0,                    0, kAnyCount,           0},
    FrameRule{FrameType::kBeat,         kOnControl, Direction::kToSource, 0,                0,                    0, 0,                   0},
    FrameRule{FrameType::kLaneLost,     kOnControl, Direction::kToSource, 0,                kMaxLaneLostPayload,  0, 0,                   0},
    FrameRule{FrameType::kNoRoom,       kOnControl, Direction::kToSource, 1,                kMaxNoRoomPayload,    0, 0,                   0},
    FrameRule{FrameType::kRoomAgain,    kOnControl, Direction::kToSource, 0,                0,                    0, 0,                   0},
    FrameRule{FrameType::kPages,        kOnAny,     Direction::kToTarget, 4096,             kMaxPagesPayload,     1, kMaxPagesPerFrame,   kFlagDemanded | kFlagSweep},
    FrameRule{FrameType::kZeros,        kOnAny,     Direction::kToTarget, 0,                0,                    1, kAnyCount,           kFlagDemanded | kFlagSweep},
    FrameRule{FrameType::kMarker,       kOnBulk,    Direction::kToTarget, 0,                0,                    0, 0,                   0},
    FrameRule{FrameType::kRequest,      kOnUrgent,  Direction::kToSource, 0,                0,                    1, kMaxPagesPerRequest, kFlagSweep},
};
// clang-format on

/// nullptr: no such type.
const FrameRule* find_rule(FrameType type);

std::string_view to_string(Direction direction);

}  // namespace towline::runtime::wire
