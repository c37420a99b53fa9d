#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"
#include "runtime/migration.h"

namespace towline::runtime {

/// The migration as the target sees it.
enum class TargetState : std::uint8_t {
  kListening,     ///< Nobody has proven to be the source yet.
  kReceiving,     ///< The description was accepted; memory and stale sets arrive.
  kLoading,       ///< The last delta is applied and the state is being loaded. Faults are served.
  kLoaded,        ///< The machine stands ready; the run order has not been read.
  kRunning,       ///< The guest runs here; pages are missing.
  kLoadedAlone,   ///< As kLoaded, but the link is down: does not run, keeps its half.
  kRunningAlone,  ///< As kRunning, but the link is down: runs on what it has.
  kLoadedRecovering,   ///< As kLoadedAlone; the source is told what is missing here.
  kRunningRecovering,  ///< As kRunningAlone; the source is told what is missing here.
  kAbandoning,         ///< As kRunningAlone; nobody is let in any more, and the last receivers end.
  kPoisoned,           ///< What was missing is poisoned for good. The guest runs on with the rest.
  kLost,               ///< The guest was given up with its source, and is stopped.
  kCompleted,          ///< Every page is here.
  kFailed,             ///< Ended before the guest ran here, and says so; it never will.
};

enum class TargetEvent : std::uint8_t {
  kDescriptionAccepted,
  kStateReceived,  ///< With the last delta applied and every claim of the pre-pass closed.
  kStateLoaded,
  kLoadFailed,
  kRunOrdered,
  kNothingMissing,
  kLinkLost,
  kCancelled,      ///< The source cancelled before its order.
  kReconnected,    ///< Proven in a new epoch; every receiver of the old one was joined.
  kResynced,       ///< The source knows what is missing, and its lanes are here.
  kSourceGivenUp,  ///< Its deadline is over, or the user said so.
  kPagesPoisoned,  ///< Every page that was missing, behind the fence.
  kGuestGivenUp,   ///< The guest is stopped, behind the fence.
};

/// What TargetProtocol does with a step, besides taking it.
enum class TargetAction : std::uint8_t {
  kNone,
  kLoad,         ///< Let tl-load load the machine; requests may go out from here on.
  kRun,          ///< Open the gate; let tl-load start the vCPUs.
  kFinish,       ///< Tell the source, unregister the memory.
  kNeverWill,    ///< Write the tombstone; whoever tells the source comes later.
  kDropHalf,     ///< As kNeverWill: the source's guest runs on; what arrived is of no use.
  kTellMissing,  ///< Send what is missing, and whether the guest runs here.
  kAskAgain,     ///< Request every page that somebody waits for, first of all.
  kShutOut,      ///< Join every receiver, let nobody in; then poison, or end the guest.
};

struct TargetRule {
  TargetState from;
  TargetEvent on;
  TargetState to;
  TargetAction act;
};

// clang-format off
inline constexpr std::array kTargetRules{
    TargetRule{TargetState::kListening, TargetEvent::kDescriptionAccepted, TargetState::kReceiving,    TargetAction::kNone},
    TargetRule{TargetState::kReceiving, TargetEvent::kStateReceived,       TargetState::kLoading,      TargetAction::kLoad},
    TargetRule{TargetState::kReceiving, TargetEvent::kLinkLost,            TargetState::kFailed,       TargetAction::kDropHalf},
    TargetRule{TargetState::kReceiving, TargetEvent::kCancelled,           TargetState::kFailed,       TargetAction::kDropHalf},
    TargetRule{TargetState::kLoading,   TargetEvent::kStateLoaded,         TargetState::kLoaded,       TargetAction::kNone},
    TargetRule{TargetState::kLoading,   TargetEvent::kLoadFailed,          TargetState::kFailed,       TargetAction::kNeverWill},
    TargetRule{TargetState::kLoaded,    TargetEvent::kRunOrdered,          TargetState::kRunning,      TargetAction::kRun},
    TargetRule{TargetState::kLoaded,    TargetEvent::kLinkLost,            TargetState::kLoadedAlone,  TargetAction::kNone},
    TargetRule{TargetState::kRunning,   TargetEvent::kNothingMissing,      TargetState::kCompleted,    TargetAction::kFinish},
    TargetRule{TargetState::kRunning,   TargetEvent::kLinkLost,            TargetState::kRunningAlone, TargetAction::kNone},
    TargetRule{TargetState::kRunningAlone, TargetEvent::kNothingMissing,   TargetState::kCompleted,    TargetAction::kFinish},
    TargetRule{TargetState::kLoading,           TargetEvent::kReconnected,   TargetState::kLoading,           TargetAction::kTellMissing},
    TargetRule{TargetState::kLoading,           TargetEvent::kResynced,      TargetState::kLoading,           TargetAction::kAskAgain},
    TargetRule{TargetState::kLoadedAlone,       TargetEvent::kReconnected,   TargetState::kLoadedRecovering,  TargetAction::kTellMissing},
    TargetRule{TargetState::kLoadedRecovering,  TargetEvent::kResynced,      TargetState::kLoaded,            TargetAction::kAskAgain},
    TargetRule{TargetState::kLoadedRecovering,  TargetEvent::kLinkLost,      TargetState::kLoadedAlone,       TargetAction::kNone},
    TargetRule{TargetState::kRunningAlone,      TargetEvent::kReconnected,   TargetState::kRunningRecovering, TargetAction::kTellMissing},
    TargetRule{TargetState::kRunningRecovering, TargetEvent::kResynced,      TargetState::kRunning,           TargetAction::kAskAgain},
    TargetRule{TargetState::kRunningRecovering, TargetEvent::kNothingMissing, TargetState::kCompleted,        TargetAction::kFinish},
    TargetRule{TargetState::kRunningRecovering, TargetEvent::kLinkLost,      TargetState::kRunningAlone,      TargetAction::kNone},
    TargetRule{TargetState::kRunningAlone,      TargetEvent::kSourceGivenUp, TargetState::kAbandoning,        TargetAction::kShutOut},
    TargetRule{TargetState::kAbandoning,        TargetEvent::kNothingMissing, TargetState::kCompleted,        TargetAction::kFinish},
    TargetRule{TargetState::kAbandoning,        TargetEvent::kPagesPoisoned, TargetState::kPoisoned,          TargetAction::kNone},
    TargetRule{TargetState::kAbandoning,        TargetEvent::kGuestGivenUp,  TargetState::kLost,              TargetAction::kNone},
};
// clang-format on

std::string_view to_string(TargetState state);
std::string_view to_string(TargetEvent event);
std::string_view to_string(TargetAction action);

MigrationStatus status_of(TargetState state);

/// The source was given up, or is being given up: whoever it is, it is not let in.
[[nodiscard]] bool shuts_out(TargetState state);

/// From the state's arrival to the end, on a link that holds or is being compared: the order may be
/// here.
[[nodiscard]] bool has_the_state(TargetState state);

/// Takes one step. Pure. Errors: kCorrupt, naming state and event, when no rule lists it.
base::Expected<TargetRule> step(std::span<const TargetRule> rules, TargetState state,
                                TargetEvent event);

inline base::Expected<TargetRule> step(TargetState state, TargetEvent event) {
  return step(kTargetRules, state, event);
}

}  // namespace towline::runtime
