#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"
#include "runtime/core/source_session.h"
#include "runtime/migration.h"
#include "runtime/options.h"
#include "runtime/wire/format.h"
#include "runtime/wire/lane_name.h"

/// What a source's brain is told, and what it asks for. docs/architecture.md, "One brain per side".
namespace towline::runtime {

/// What may block: carried out on tl-source, one at a time and without a lock. Its outcome is an
/// input.
struct SourceTask {
  enum class Kind : std::uint8_t {
    kOpenControl,      ///< Connect, greet, prove: a control lane of `epoch` to `at`.
    kDescribe,         ///< Send the description.
    kOpenLanes,        ///< The urgent and the bulk lanes of the first epoch; compare the clocks.
    kFindPageServer,   ///< Give ledger and memory to a page server, if one is wanted.
    kBeginLog,         ///< Begin to log what the guest writes.
    kRunPass,          ///< Send memory once, pass `pass`.
    kSendRound,        ///< Send what was written since the last round; it ends pass `pass`.
    kAwaitPageServer,  ///< Wait until a page server that had to be replaced is there.
    kPark,             ///< Close the gate, wait until every vCPU is out.
    kPrepareFlight,    ///< Save the state; the last round; state and phase into the ledger.
    kSendFlight,       ///< Send what was prepared.
    kStartPush,        ///< Begin to push what is owed; `flag`: holes first.
    kEndLane,          ///< End `lane`.
    kOpenInPlace,      ///< Open a lane in the place of `lane`, attempt `attempt`.
    kPutInPlace,       ///< What was opened is `lane` from here on.
    kFinish,           ///< The ledger: over. Tell the target that its word was heard.
    kReadToTheEnd,     ///< Close every lane, and wait until the control lane was read to its end.
    kSayCancelled,     ///< Tell the target.
    kDropEpoch,        ///< Join every thread of this epoch, forget its lanes.
    kOpenLanesAgain,   ///< The urgent and the bulk lanes of a later epoch, at `at`.
    kResume,           ///< The address into the ledger; tell the target that all lanes are open.
    kOrderAgain,       ///< Give the run order once more: it is obeyed once.
  };
  Kind kind;
  Uri at{};
  std::uint64_t epoch = 0;  ///< The present one.
  std::uint32_t pass = 0;
  LaneName lane{};
  std::uint32_t attempt = 0;
  bool flag = false;
  /// Connecting and greeting are given up after so long; absent: after the options' time-outs.
  std::optional<std::chrono::milliseconds> patience{};
};

/// What never blocks: performed at once, by whoever brought the input, in the same critical
/// section.
struct SourceEffect {
  enum class Kind : std::uint8_t {
    kStepped,          ///< The session took `rule`. For the log.
    kShow,             ///< The user sees `status` from here on.
    kShowLink,         ///< And `link`.
    kReadControl,      ///< Begin to read the control lane that was opened.
    kOweAll,           ///< Nothing was sent ahead: every page is owed.
    kOweNothing,       ///< What is owed from here on is what the target says it misses.
    kOweNamed,         ///< The pages that this frame names are owed.
    kOwedKnown,        ///< The target has named all that it misses.
    kCutPass,          ///< The pass in progress ends after what is being sent.
    kStopPass,         ///< The pass in progress ends, and its lanes with it.
    kHoldBack,         ///< Send no more of the pass: the target waits for room.
    kGoOn,             ///< Send on.
    kEndWaiting,       ///< Connections that are being opened are of no use any more.
    kEndFlight,        ///< The flight's sender may be blocked: nothing more leaves.
    kFinishSending,    ///< The control lane carries nothing more to the target.
    kCloseLanes,       ///< No lane carries anything any more, in either direction.
    kOrder,            ///< The gate: from here on the target may run the guest.
    kTargetRuns,       ///< Gate and ledger: the guest is never again ours.
    kGiveBack,         ///< Ledger and gate: the guest is ours alone (`rule.on` says why); it runs.
    kRelease,          ///< The ledger: over; no lane is needed any more.
    kLinkLost,         ///< For the log: `text`. `flag`: as agreed.
    kLaneLost,         ///< For the log: `lane`, `attempt`, `text`.
    kLaneNotReplaced,  ///< As kLaneLost.
    kLaneReplaced,     ///< As kLaneLost.
    kNoRoom,           ///< For the log: `text`.
    kRoomAgain,        ///< For the log.
    kEnds,             ///< For the log: the session ends, or is paused, by `rule`; `text` says why.
    kAttemptFailed,    ///< For the log: `text`.
    kRecovered,        ///< For the log and the statistics.
    kTakenBack,        ///< For the log.
  };
  Kind kind;
  SourceRule rule{};
  MigrationStatus status = MigrationStatus::kNone;
  LinkState link = LinkState::kUp;
  LaneName lane{};
  std::uint32_t attempt = 0;
  bool flag = false;
  std::string text{};
};

/// What happens to a source.
struct SourceInput {
  enum class Kind : std::uint8_t {
    kBegin,    ///< The first of all.
    kInherit,  ///< Instead: in the place of a process that died (`text`), in `epoch`, with the
               ///< target incarnation `number`. `flag`: the target runs the guest.
    kTime,     ///< deadline() is over.
    kDone,     ///< The task `task` has ended; `error` if it failed. What else it found:
               ///< kOpenControl: incarnation `number`, `features`. kRunPass: `flag`: it was cut.
               ///< kSendRound: `number` of pages. kDropEpoch: `number`: any random one.
    // The target's words, from its control lane: kAccept to kBeat.
    kAccept,
    kRefuse,        ///< `text`: its reasons.
    kStaleApplied,  ///< A round was applied.
    kRunning,       ///< Its clock at the first entry: `number`, ns.
    kNever,         ///< Its tombstone, and why: `text`.
    kComplete,
    kMissing,     ///< `number` of pages, named by this frame.
    kMissingEnd,  ///< `number` of pages in all, after the attempt `attempt` at a lane; 0: epoch.
    kLaneLost,    ///< It has lost `lane`, attempt `attempt`: `text`. Absent lane: unknown there.
    kNoRoom,      ///< It waits for room: `text`.
    kRoomAgain,
    kBeat,  ///< `flag`: each of its receivers waits.
    // The lanes, of `epoch`.
    kControlEnded,  ///< Everything that had arrived on the control lane was read. `error`: why.
    kLinkLost,      ///< `error`. `flag`: the peer is silent, so that no last words are waited for.
    kLaneBroken,    ///< `lane`, attempt `attempt`: `error`.
    // The user's words.
    kSwitchWord,
    kCancel,
    kPause,
    kResume,    ///< `address`, or where the target was reached last.
    kContinue,  ///< The guest, which is parked for that, goes over.
    kTakeBack,  ///< Nobody runs the guest at the target, and nobody will.
    kLeave,     ///< This process ends, or wants the migration gone.
  };
  Kind kind;
  base::Instant at{};
  std::optional<SourceTask::Kind> task{};
  std::optional<base::Error> error{};
  std::optional<LaneName> lane{};
  std::optional<Uri> address{};
  std::string text{};
  std::uint64_t number = 0;
  std::uint64_t features = 0;
  std::uint64_t epoch = 0;
  std::uint32_t attempt = 0;
  bool flag = false;
};

/// A frame of the target's control lane as an input. Not for a pong, which is a measurement.
/// Errors: kCorrupt: it is not the target's to send, or says too little.
base::Expected<SourceInput> source_input_of(const wire::FrameHeader& header,
                                            std::span<const std::byte> payload);

std::string_view to_string(SourceTask::Kind kind);
std::string_view to_string(SourceEffect::Kind kind);
std::string_view to_string(SourceInput::Kind kind);

}  // namespace towline::runtime
