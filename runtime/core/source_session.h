#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"
#include "runtime/migration.h"

namespace towline::runtime {

/// The migration as the source sees it.
enum class SourceState : std::uint8_t {
  kConnecting,  ///< Lanes are being opened and proven. The guest runs.
  kDescribing,  ///< The target is looking at the description. The guest runs.
  kPassing,     ///< Pre-pass: memory is sent while the guest runs.
  kSyncing,     ///< Stale rounds: only bitmaps move; waits for a small delta or for the word.
  kSwitching,   ///< The vCPUs are parked, the state is being read. Any failure resumes the guest.
  kOrdered,     ///< The run order was (perhaps) sent. Parked until the target's fate is known.
  kServing,     ///< The target runs the guest; its pages are served and pushed from here.
  kOrderedPaused,        ///< As kOrdered, but the link is down: stays parked.
  kServingPaused,        ///< As kServing, but the link is down: nothing is freed.
  kOrderedReconnecting,  ///< As kOrderedPaused; a control lane of a new epoch is being opened.
  kServingReconnecting,  ///< As kServingPaused; a control lane of a new epoch is being opened.
  kOrderedRecovering,    ///< As kOrderedPaused; the target is telling what it is and misses.
  kServingRecovering,    ///< As kServingPaused; the target is telling what it misses.
  kCompleted,            ///< The target holds every page.
  kFailed,               ///< Ended before the order; the guest runs on here.
  kCancelled,            ///< As kFailed, because the user asked.
};

enum class SourceEvent : std::uint8_t {
  kLanesReady,
  kAccepted,
  kRefused,  ///< The target's reasons are in the error.
  kPassesDone,
  kSwitchNow,      ///< The delta is small enough, or the wait is over, or no pre-pass is wanted.
  kSwitchFailed,   ///< Saving the state failed.
  kOrderSent,      ///< Stepped *before* send() is called.
  kTargetRunning,  ///< Stepped where it is read: whatever becomes of the link, it was said.
  kTargetNever,    ///< The target's tombstone: never started, never will.
  kTargetComplete,
  kLinkLost,
  kCancel,
  kReconnect,     ///< By itself, or because the user asked: try again.
  kReconnected,   ///< The same target incarnation has proven itself in the new epoch.
  kTargetLoaded,  ///< It stands ready, and has never read the order.
  kCompared,      ///< It runs the guest, has told what it misses, and every lane is open.
  kTakeBack,      ///< The user's word that the target's host is fenced: nobody runs it there.
};

/// What a step asks for. Whatever ends the session also ends its lanes.
enum class SourceAction : std::uint8_t {
  kNone,
  kDescribe,     ///< Send the description.
  kBeginPass,    ///< Start the dirty log and the first pass.
  kBeginSync,    ///< Start stale rounds.
  kPark,         ///< A page server first, if one is wanted; then gate, vCPUs, state.
  kOrder,        ///< Tell the gate, then send the flight.
  kNoteRunning,  ///< Gate and ledger: the guest is never again ours.
  kResumeGuest,  ///< Nothing is lost: the guest runs on here.
  kStayParked,   ///< Nobody may run the guest here; end this epoch, and try to reconnect.
  kRelease,      ///< The ledger: over. The guest's memory here is of no use any more.
  kCompare,      ///< Read the control lane: what the target says it misses is owed from here on.
  kOrderAgain,   ///< Give the order once more: it is obeyed once.
  kPush,         ///< Push what is owed: what the target misses.
};

struct SourceRule {
  SourceState from;
  SourceEvent on;
  SourceState to;
  SourceAction act;
};

/// Every legal step. What is not listed is refused, and a peer that asks for it is dropped.
// clang-format off
inline constexpr std::array kSourceRules{
    SourceRule{SourceState::kConnecting,    SourceEvent::kLanesReady,     SourceState::kDescribing,    SourceAction::kDescribe},
    SourceRule{SourceState::kConnecting,    SourceEvent::kRefused,        SourceState::kFailed,        SourceAction::kNone},
    SourceRule{SourceState::kConnecting,    SourceEvent::kLinkLost,       SourceState::kFailed,        SourceAction::kNone},
    SourceRule{SourceState::kConnecting,    SourceEvent::kCancel,         SourceState::kCancelled,     SourceAction::kNone},
    SourceRule{SourceState::kDescribing,    SourceEvent::kAccepted,       SourceState::kPassing,       SourceAction::kBeginPass},
    SourceRule{SourceState::kDescribing,    SourceEvent::kRefused,        SourceState::kFailed,        SourceAction::kNone},
    SourceRule{SourceState::kDescribing,    SourceEvent::kLinkLost,       SourceState::kFailed,        SourceAction::kNone},
    SourceRule{SourceState::kDescribing,    SourceEvent::kCancel,         SourceState::kCancelled,     SourceAction::kNone},
    SourceRule{SourceState::kPassing,       SourceEvent::kPassesDone,     SourceState::kSyncing,       SourceAction::kBeginSync},
    SourceRule{SourceState::kPassing,       SourceEvent::kTargetNever,    SourceState::kFailed,        SourceAction::kNone},
    SourceRule{SourceState::kPassing,       SourceEvent::kLinkLost,       SourceState::kFailed,        SourceAction::kNone},
    SourceRule{SourceState::kPassing,       SourceEvent::kCancel,         SourceState::kCancelled,     SourceAction::kNone},
    SourceRule{SourceState::kSyncing,       SourceEvent::kSwitchNow,      SourceState::kSwitching,     SourceAction::kPark},
    SourceRule{SourceState::kSyncing,       SourceEvent::kTargetNever,    SourceState::kFailed,        SourceAction::kNone},
    SourceRule{SourceState::kSyncing,       SourceEvent::kLinkLost,       SourceState::kFailed,        SourceAction::kNone},
    SourceRule{SourceState::kSyncing,       SourceEvent::kCancel,         SourceState::kCancelled,     SourceAction::kNone},
    SourceRule{SourceState::kSwitching,     SourceEvent::kOrderSent,      SourceState::kOrdered,       SourceAction::kOrder},
    SourceRule{SourceState::kSwitching,     SourceEvent::kSwitchFailed,   SourceState::kFailed,        SourceAction::kResumeGuest},
    SourceRule{SourceState::kSwitching,     SourceEvent::kTargetNever,    SourceState::kFailed,        SourceAction::kResumeGuest},
    SourceRule{SourceState::kSwitching,     SourceEvent::kLinkLost,       SourceState::kFailed,        SourceAction::kResumeGuest},
    SourceRule{SourceState::kSwitching,     SourceEvent::kCancel,         SourceState::kCancelled,     SourceAction::kResumeGuest},
    SourceRule{SourceState::kOrdered,       SourceEvent::kTargetRunning,  SourceState::kServing,       SourceAction::kNoteRunning},
    SourceRule{SourceState::kOrdered,       SourceEvent::kTargetNever,    SourceState::kFailed,        SourceAction::kResumeGuest},
    SourceRule{SourceState::kOrdered,       SourceEvent::kLinkLost,       SourceState::kOrderedPaused, SourceAction::kStayParked},
    SourceRule{SourceState::kServing,       SourceEvent::kTargetComplete, SourceState::kCompleted,     SourceAction::kRelease},
    SourceRule{SourceState::kServing,       SourceEvent::kLinkLost,       SourceState::kServingPaused, SourceAction::kStayParked},
    SourceRule{SourceState::kOrderedPaused,       SourceEvent::kReconnect,      SourceState::kOrderedReconnecting, SourceAction::kNone},
    SourceRule{SourceState::kOrderedPaused,       SourceEvent::kTakeBack,       SourceState::kFailed,              SourceAction::kResumeGuest},
    SourceRule{SourceState::kOrderedPaused,       SourceEvent::kTargetRunning,  SourceState::kServingPaused,       SourceAction::kNoteRunning},
    SourceRule{SourceState::kOrderedReconnecting, SourceEvent::kReconnected,    SourceState::kOrderedRecovering,   SourceAction::kCompare},
    SourceRule{SourceState::kOrderedReconnecting, SourceEvent::kLinkLost,       SourceState::kOrderedPaused,       SourceAction::kStayParked},
    SourceRule{SourceState::kOrderedRecovering,   SourceEvent::kTargetLoaded,   SourceState::kOrdered,             SourceAction::kOrderAgain},
    SourceRule{SourceState::kOrderedRecovering,   SourceEvent::kTargetRunning,  SourceState::kServingRecovering,   SourceAction::kNoteRunning},
    SourceRule{SourceState::kOrderedRecovering,   SourceEvent::kTargetNever,    SourceState::kFailed,              SourceAction::kResumeGuest},
    SourceRule{SourceState::kOrderedRecovering,   SourceEvent::kLinkLost,       SourceState::kOrderedPaused,       SourceAction::kStayParked},
    SourceRule{SourceState::kServingPaused,       SourceEvent::kReconnect,      SourceState::kServingReconnecting, SourceAction::kNone},
    SourceRule{SourceState::kServingReconnecting, SourceEvent::kReconnected,    SourceState::kServingRecovering,   SourceAction::kCompare},
    SourceRule{SourceState::kServingReconnecting, SourceEvent::kLinkLost,       SourceState::kServingPaused,       SourceAction::kStayParked},
    SourceRule{SourceState::kServingRecovering,   SourceEvent::kCompared,       SourceState::kServing,             SourceAction::kPush},
    SourceRule{SourceState::kServingRecovering,   SourceEvent::kTargetComplete, SourceState::kCompleted,           SourceAction::kRelease},
    SourceRule{SourceState::kServingRecovering,   SourceEvent::kLinkLost,       SourceState::kServingPaused,       SourceAction::kStayParked},
};
// clang-format on

std::string_view to_string(SourceState state);
std::string_view to_string(SourceEvent event);
std::string_view to_string(SourceAction action);

/// The name that a user sees.
MigrationStatus status_of(SourceState state);

/// Nothing the source does from here can make two copies run: the guest is still ours alone.
[[nodiscard]] bool before_order(SourceState state);

/// The link is lost, and no attempt shows yet.
[[nodiscard]] bool is_paused(SourceState state);

/// The target is telling what it is and misses.
[[nodiscard]] bool is_recovering(SourceState state);

/// The rule of `rules` for this step. Pure. Errors: kCorrupt, naming state and event, when no rule
/// lists it.
base::Expected<SourceRule> step(std::span<const SourceRule> rules, SourceState state,
                                SourceEvent event);

/// As step(), by the table that ships.
base::Expected<SourceRule> step(SourceState state, SourceEvent event);

}  // namespace towline::runtime
