#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"
#include "runtime/core/link_watch.h"
#include "runtime/core/target_session.h"
#include "runtime/migration.h"
#include "runtime/options.h"
#include "runtime/wire/format.h"
#include "runtime/wire/lane_name.h"

/// What a target's brain is told, and what it asks for. docs/architecture.md, "One brain per side".
namespace towline::runtime {

/// What may block: carried out without a lock, in the order in which it was asked for. Whoever
/// brought the input carries it out, unless the task names another thread. kDone where it says so;
/// a send that fails is no news, because the lane's own reader finds out.
struct TargetTask {
  enum class Kind : std::uint8_t {
    // tl-listen.
    kTakeSource,  ///< End the control lane of a source that was refused, join its thread, and start
                  ///< a tl-control for the lane that has arrived.
    kBeginEpoch,  ///< Start a tl-control: it joins the one before it and every receiver, and then
                  ///< says kFenced with `epoch`.
    kAttachLane,  ///< Start a receiver for `lane`, which has arrived. Unless all lanes were shut
                  ///< meanwhile: then it ends. So does kReplaceLane.
    kReplaceLane,  ///< End `lane`, and start a receiver for attempt `number` at it, which has
                   ///< arrived: it joins the one before it, and then says kLaneReplaced.
    // tl-control, for a frame.
    kAnswerPing,      ///< Echo the frame's payload, with this end's clock.
    kKeepStale,       ///< Remember the pages that the frame names.
    kAwaitMarkers,    ///< Wait until every bulk lane has ended pass `number`. Done.
    kApplyStale,      ///< What was remembered is missing now. Done: `number` of pages are claimed.
    kSayApplied,      ///< Say so: pass `number`, `count` pages.
    kStorePages,      ///< The frame's pages, that came with the switch.
    kAwaitLanes,      ///< Wait until every lane is there, for the frame `frame`. Done.
    kAskAgain,        ///< Ask for every page that somebody waits for. `flag`: and go on sweeping.
    kEndReading,      ///< Nothing more is read on the control lane.
    kAnswerNever,     ///< To a source that came back: never, and why: `text`. Done.
    kAnswerComplete,  ///< To a source that came back: the guest runs, and nothing is missing.
    kTellMissing,     ///< What is missing, behind the fence of lane attempt `number`. 0: of an
                      ///< epoch, and then whether the guest runs is told too.
    // Any thread.
    kTellNever,      ///< Never, and why: `text`.
    kFinishSending,  ///< End this direction of every lane. `flag`: both, of the control lane.
    kCloseLanes,     ///< The control lane is over. `flag`: the data lanes too.
    kDropHalf,       ///< Join the receivers, and forget what arrived.
    kTellLaneLost,   ///< `lane`, attempt `number`, was lost: `text`.
    kTellNoRoom,     ///< The source sends no more: `text`.
    kTellRoomAgain,
    kTellRunning,  ///< The guest runs here. Done, sent or not.
    kFinish,       ///< Tell the source that nothing is missing, and release the memory.
    kPoison,       ///< What is missing, `number` of pages, is lost for good. Done.
    kEndGuest,     ///< Stop the guest: `text`. Done.
    // tl-load.
    kLoad,        ///< Load the machine's state. Done.
    kStartGuest,  ///< Start the vCPUs, and say kGuestEntered.
  };
  Kind kind;
  std::uint64_t epoch = 0;
  std::uint64_t number = 0;
  std::uint64_t count = 0;
  wire::FrameType frame = wire::FrameType::kPing;
  LaneName lane{};
  bool flag = false;
  std::string text{};
};

/// What never blocks: performed at once, by whoever brought the input, in the same critical
/// section.
struct TargetEffect {
  enum class Kind : std::uint8_t {
    kStepped,        ///< The session took `rule`. For the log.
    kShow,           ///< The user sees `status` from here on.
    kShowLink,       ///< And `link`.
    kTombstone,      ///< The guest never ran here and never will. Nobody was told yet, and nothing
                     ///< dropped.
    kUseLane,        ///< The control lane that has arrived is this epoch's.
    kShutControl,    ///< Both directions of the control lane end.
    kShutLanes,      ///< Both directions of every data lane end.
    kShutLane,       ///< Both directions of `lane` end, alone: the source sees it too.
    kLanesLost,      ///< Nobody waits for a lane, or for a marker on one, any more.
    kEndUrgent,      ///< The urgent lane ends, alone: `text`.
    kOpenPostcopy,   ///< The final delta is applied: pages of the time after it are taken.
    kGiveUpMarkers,  ///< No marker is waited for any more: `text`.
    kOpenGate,       ///< The guest may run here.
    kLinger,         ///< Start tl-linger.
    kShutOut,     ///< The source is given up (`policy`): tl-listen starts a tl-control that joins
                  ///< everybody and says kNothingArrives.
    kSourceAway,  ///< The guest runs here and its source is away.
    // For the log.
    kFence,         ///< `epoch` begins.
    kLinkLost,      ///< `text`.
    kControlEnded,  ///< `text`.
    kLaneReplaced,  ///< `lane`, attempt `number`.
    kOverdue,       ///< The answer `awaited` did not come: `text`.
    kNoRoom,        ///< `text`.
    kRoomAgain,
  };
  Kind kind;
  TargetRule rule{};
  MigrationStatus status = MigrationStatus::kNone;
  LinkState link = LinkState::kUp;
  SourceLoss policy = SourceLoss::kWait;
  std::uint64_t epoch = 0;
  std::uint64_t number = 0;
  LaneName lane{};
  std::string_view awaited{};
  std::string text{};
};

/// What tl-watch has seen of the link since its last look.
struct TargetSigns {
  LinkVerdict verdict = LinkVerdict::kAlive;
  bool hears = true;                        ///< Something arrived just now.
  base::Duration control_unacknowledged{};  ///< Of the control lane alone.
  bool urgent_dead = false;                 ///< Nothing is acknowledged on the urgent lane.
  std::string words{};                      ///< What the verdict was drawn from.
  std::string urgent_words{};
};

/// What happens to a target.
struct TargetInput {
  enum class Kind : std::uint8_t {
    // tl-listen.
    kControlProven,    ///< A control lane has arrived: `hello`.
    kLaneProven,       ///< Any other lane has arrived: `hello`.
    kGreetingOverdue,  ///< The time in which a source describes its guest is over.
    // tl-control.
    kDescribed,       ///< What was described fits, and everything is ready for it. `number`: of
                      ///< bulk lanes.
    kMisdescribed,    ///< It does not.
    kFrame,           ///< `frame` was read; `text`: its words, if they are any.
    kControlEnded,    ///< All that had arrived was read. `error`: why; `flag`: a frame was lost.
    kFenced,          ///< Every receiver of the epochs before `epoch` has ended.
    kNothingArrives,  ///< As kFenced, when the source was given up: `number` of pages, `text`:
                      ///< that many, in words, are missing for good.
    // A data lane's own thread.
    kLaneEnded,     ///< `lane`, attempt `number`: `error`. Refused: another one is in its place.
    kLaneReplaced,  ///< `lane`, attempt `number`, has taken the place of one that has ended.
    kNoRoom,        ///< `error`. Refused: the lane cannot wait.
    kRoomFound,
    kNothingMissing,  ///< Every page is here.
    // tl-load.
    kGuestEntered,  ///< A vCPU is in: this end's clock said `number`, ns.
    // tl-watch.
    kTime,          ///< `flag`: there is room for what the source brings.
    kSigns,         ///< `signs`, of `epoch`.
    kMarkerSilent,  ///< `lane` owes the marker of pass `number`, and is silent since `silent`.
    // tl-linger.
    kLingerOver,
    // Whoever carried `task` out.
    kDone,  ///< `error` if it failed; `number`, `text` as the task says.
    // The user's words.
    kPause,
    kLetIn,         ///< A pause is over.
    kSourceLoss,    ///< `policy`, `deadline`.
    kGiveUpSource,  ///< `policy`.
    kEnding,        ///< This object goes.
  };
  Kind kind;
  base::Instant at{};
  wire::Hello hello{};
  wire::FrameHeader frame{};
  std::optional<TargetTask> task{};
  std::optional<base::Error> error{};
  TargetSigns signs{};
  LaneName lane{};
  std::uint64_t epoch = 0;
  std::uint64_t number = 0;
  base::Duration silent{};
  SourceLoss policy = SourceLoss::kWait;
  std::chrono::seconds deadline{0};
  bool flag = false;
  std::string text{};
};

std::string_view to_string(TargetTask::Kind kind);
std::string_view to_string(TargetEffect::Kind kind);
std::string_view to_string(TargetInput::Kind kind);

}  // namespace towline::runtime
