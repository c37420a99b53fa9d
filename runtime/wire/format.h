#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

/// THE wire format. Meaning and worked bytes: docs/wire-format.md. Everything is little-endian.
namespace towline::runtime::wire {

inline constexpr std::uint16_t kVersionLow = 1;   ///< Oldest wire version spoken.
inline constexpr std::uint16_t kVersionHigh = 1;  ///< Newest.
inline constexpr std::array<char, 8> kMagic{'T', 'O', 'W', 'L', 'I', 'N', 'E', '\n'};

enum class LaneRole : std::uint8_t {
  kControl = 0,  ///< Hello, description, stale sets, the switch, the end. Both directions.
  kUrgent = 1,   ///< Requests one way, demanded pages the other.
  kBulk = 2,     ///< Pages and zero ranges, source to target only.
};

enum class Direction : std::uint8_t { kToTarget, kToSource };

/// Frozen: values are on the wire.
enum class FrameType : std::uint16_t {
  // Handshake, any lane.
  kHello = 1,       ///< S→T. Payload: Hello.
  kHelloReply = 2,  ///< T→S. Payload: HelloReply.
  kProof = 3,       ///< S→T. Payload: 32 bytes of HMAC-SHA256.
  kLaneReady = 4,   ///< T→S. Empty. The lane may be used.
  kRefuse = 5,  ///< T→S. Payload: text, reasons separated by newlines. The target closes next.

  // Control, to the target.
  kDescribe = 16,  ///< Payload: encoded MachineState (sections migration, region, and the shape).
  kStale = 17,     ///< Payload: runs of pages that changed at the source since they were sent.
  kRoundEnd = 18,  ///< The stale set is complete: count pages. round: markers to wait for.
  kState = 19,     ///< Payload: encoded MachineState.
  kRun = 20,       ///< The run order. The point of no return.
  kCancel = 21,    ///< Before the order only. Payload: text.
  kCompleteAck = 22,  ///< The source knows that the target is complete.
  kPing = 23,         ///< Payload: u64 sender's monotonic ns.
  kResume = 24,       ///< Every lane of the new epoch is open; what was missing is owed.

  // Control, to the source.
  kAccept = 32,        ///< The description fits.
  kStaleApplied = 33,  ///< round, count as in kRoundEnd: these pages are missing now.
  kRunning = 34,     ///< The guest runs here. Payload: u64 ns: target's clock at the first KVM_RUN.
  kNever = 35,       ///< Tombstone: never started, never will. Payload: text.
  kComplete = 36,    ///< count: pages held. Nothing is missing any more.
  kPong = 37,        ///< Payload: u64 ns echoed, u64 ns of the answering clock.
  kMissing = 38,     ///< Payload: runs, or a bitmap, of pages that the target does not hold.
  kMissingEnd = 39,  ///< count: pages named in all. Before it, in the same epoch: kRunning if the
                     ///< guest runs here; otherwise the order was never read.
  kBeat = 40,        ///< A sign of life. Empty.
  kLaneLost = 41,    ///< first: lane_code(), round: its attempt. Payload: text. Only with
                     ///< kFeatureReplaceLane.
  kNoRoom = 42,      ///< Before the switch: the target waits for room for guest memory. Payload:
                     ///< text. Only with kFeatureWaitForRoom, as the next one.
  kRoomAgain = 43,   ///< The target takes pages again. Empty.

  // Pages. Bulk and urgent lanes to the target; on control only in the switch's flight.
  kPages = 48,   ///< Payload: count pages from first.
  kZeros = 49,   ///< count pages from first hold zeros. Empty.
  kMarker = 50,  ///< Bulk: this lane has sent all of pass `round`. Empty.

  // Urgent, to the source.
  kRequest = 64,  ///< count (1..16) pages from first are wanted now. Empty.
};

enum FrameFlags : std::uint16_t {
  kFlagDemanded = 1U << 0U,  ///< kPages, kZeros: answers a kRequest.
  kFlagFinal = 1U << 1U,     ///< kRoundEnd: the last delta, read from the parked machine.
  kFlagSweep = 1U << 2U,     ///< kRequest: nobody waits; the target collects what is left. And the
                             ///< answers to it.
  kFlagBitmap = 1U << 3U,    ///< kMissing: bit i of byte b stands for page first + 8b + i.
};

/// What the target was doing for this migration when it answered a hello. For the log.
enum class TargetPhase : std::uint8_t {
  kNone = 0,
  kLoading = 1,
  kRunning = 2,
  kRefused = 3,
  kComplete = 4,
};

/// Bits of Hello::features. Frames and fields of a feature are used where both ends have it.
enum Features : std::uint64_t {
  kFeatureReplaceLane = 1U << 0U,  ///< A lost data lane is replaced in its epoch.
  kFeatureWaitForRoom = 1U << 1U,  ///< A target without room for a pass's pages waits for it.
  kFeatureCountFrames = 1U << 2U,  ///< Signs of life say how many frames were sent before them.
};

/// `round` of a beat, with kFeatureCountFrames: every receiver of the target waits for its lane.
inline constexpr std::uint32_t kBeatIdle = 1;

/// `round` of page frames sent after the switch; passes count from 1.
inline constexpr std::uint32_t kPostcopyRound = 0xffffffffU;

/// Head of every frame, as it is in memory here; codec.h puts it on the wire.
struct FrameHeader {
  FrameType type = FrameType::kPing;
  std::uint16_t flags = 0;
  std::uint32_t length = 0;       ///< Payload bytes that follow.
  std::uint64_t first = 0;        ///< Page index.
  std::uint64_t count = 0;        ///< Pages.
  std::uint32_t round = 0;        ///< Pass, or kPostcopyRound.
  std::uint32_t service_ns = 0;   ///< Demanded answers: the source's own share of the wait.
  std::uint32_t payload_crc = 0;  ///< CRC32C of the payload; 0 when it is empty.
  bool operator==(const FrameHeader&) const = default;
};

/// Offsets on the wire; header_crc is CRC32C of the 36 bytes before it.
inline constexpr std::size_t kOffsetType = 0;
inline constexpr std::size_t kOffsetFlags = 2;
inline constexpr std::size_t kOffsetLength = 4;
inline constexpr std::size_t kOffsetFirst = 8;
inline constexpr std::size_t kOffsetCount = 16;
inline constexpr std::size_t kOffsetRound = 24;
inline constexpr std::size_t kOffsetService = 28;
inline constexpr std::size_t kOffsetPayloadCrc = 32;
inline constexpr std::size_t kOffsetHeaderCrc = 36;
inline constexpr std::size_t kHeaderBytes = 40;

/// Limits. A frame beyond its limit is corrupt; nothing is allocated for it.
inline constexpr std::uint32_t kMaxHandshakePayload = 256;
inline constexpr std::uint32_t kMaxTextPayload = 64U << 10U;
inline constexpr std::uint32_t kMaxLaneLostPayload = 1U << 10U;
inline constexpr std::uint32_t kMaxNoRoomPayload = 8U << 10U;  ///< It names a file: PATH_MAX.
inline constexpr std::uint32_t kMaxDescribePayload = 1U << 20U;
inline constexpr std::uint32_t kMaxStatePayload = 16U << 20U;
inline constexpr std::uint32_t kMaxRunsPayload = 64U << 10U;
inline constexpr std::uint64_t kMaxPagesPerBitmap = std::uint64_t{kMaxRunsPayload} * 8;
inline constexpr std::uint32_t kMaxPagesPayload = 2U << 20U;  ///< One huge page, or 512 small ones.
inline constexpr std::uint64_t kMaxPagesPerFrame = 64;        ///< 256 KiB of small pages.
inline constexpr std::uint64_t kMaxPagesPerPostcopyFrame = 16;
inline constexpr std::uint64_t kMaxPagesPerRequest = 16;
inline constexpr std::size_t kMaxBulkLanes = 16;

/// Most pages of `page_size` bytes in a frame that may have `most`: one of 2 MiB.
constexpr std::uint64_t pages_in_frame(std::uint64_t page_size, std::uint64_t most) {
  const std::uint64_t fitting = kMaxPagesPayload / page_size;
  return most < fitting ? most : fitting;
}

inline constexpr std::size_t kIdBytes = 16;
inline constexpr std::size_t kNonceBytes = 16;
inline constexpr std::size_t kMacBytes = 32;

struct Hello {
  std::uint16_t version_low = kVersionLow;
  std::uint16_t version_high = kVersionHigh;
  LaneRole role = LaneRole::kControl;
  std::uint8_t lane = 0;    ///< Bulk lanes: their number.
  bool has_secret = false;  ///< The sender was given a secret and wants proof of it.
  std::uint64_t features = 0;
  std::array<std::byte, kIdBytes> id{};
  std::uint64_t epoch = 0;
  std::uint64_t incarnation = 0;
  std::array<std::byte, kNonceBytes> nonce{};
  std::uint32_t attempt = 0;  ///< Urgent, bulk: 0, or grows with each that replaces a lost one.
  /// Of the secret, as far as a greeting can prove it: a place that strangers do not take.
  std::optional<std::array<std::byte, kMacBytes>> proof;
  bool operator==(const Hello&) const = default;
};

struct HelloReply {
  std::uint16_t version = kVersionHigh;
  TargetPhase phase = TargetPhase::kNone;
  bool wants_proof = false;  ///< The source must send kProof next.
  std::uint64_t features = 0;
  std::uint64_t incarnation = 0;
  std::array<std::byte, kNonceBytes> nonce{};
  std::array<std::byte, kMacBytes> proof{};  ///< The target's own proof; zeros without a secret.
  bool operator==(const HelloReply&) const = default;
};

/// Sizes on the wire, magic included.
inline constexpr std::size_t kHelloBytes = 80;
inline constexpr std::size_t kProvenHelloBytes = kHelloBytes + kMacBytes;
inline constexpr std::size_t kHelloReplyBytes = 96;

std::string_view to_string(FrameType type);
std::string_view to_string(LaneRole role);
std::string_view to_string(TargetPhase phase);

}  // namespace towline::runtime::wire
