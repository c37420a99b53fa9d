#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "base/sync.h"

namespace towline::runtime {

/// Who may execute the guest, as this end knows it.
enum class Ownership : std::uint8_t {
  kHere,      ///< The guest is ours. Its vCPUs may enter KVM_RUN.
  kIncoming,  ///< The guest is still another process's; ours once *run* was obeyed.
  kHeld,      ///< Ours, parked for the switch; any failure before the order gives kHere back.
  kOrdered,   ///< The run order was (perhaps) sent. Parked until the target's fate is known.
  kGone,      ///< The target runs it, or ran it. Never again here.
};

enum class OwnershipEvent : std::uint8_t {
  kHold,           ///< Source: park for the switch.
  kRelease,        ///< Source: the switch failed before the point of no return.
  kOrder,          ///< Source: about to call send() with the run order. The point of no return.
  kTargetRuns,     ///< Source: the target said *running*.
  kTargetRefused,  ///< Source: the same target incarnation, fenced, answered never-will.
  kTakeBack,       ///< Source: its user vouches that the target's host is fenced.
  kTake,           ///< Target: obey the run order.
};

struct OwnershipRule {
  Ownership from;
  OwnershipEvent on;
  Ownership to;
};

/// Every legal change of owner. What is not listed is refused.
// clang-format off
inline constexpr std::array kOwnershipRules{
    OwnershipRule{Ownership::kHere,     OwnershipEvent::kHold,          Ownership::kHeld},
    OwnershipRule{Ownership::kHeld,     OwnershipEvent::kRelease,       Ownership::kHere},
    OwnershipRule{Ownership::kHeld,     OwnershipEvent::kOrder,         Ownership::kOrdered},
    OwnershipRule{Ownership::kOrdered,  OwnershipEvent::kTargetRuns,    Ownership::kGone},
    OwnershipRule{Ownership::kOrdered,  OwnershipEvent::kTargetRefused, Ownership::kHere},
    OwnershipRule{Ownership::kOrdered,  OwnershipEvent::kTakeBack,      Ownership::kHere},
    OwnershipRule{Ownership::kIncoming, OwnershipEvent::kTake,          Ownership::kHere},
};
// clang-format on

std::string_view to_string(Ownership ownership);
std::string_view to_string(OwnershipEvent event);

/// The one gate to KVM_RUN: nothing else decides whether a vCPU may enter the guest.
///
/// A vCPU thread asks may_run() each time before KVM_RUN, after it has cleared its own kick; who
/// closes the gate kicks the vCPUs afterwards and waits until all are parked.
///
/// Threads: any.
class RunGate {
 public:
  explicit RunGate(Ownership first) : ownership_(first) {}

  [[nodiscard]] bool may_run() const;
  [[nodiscard]] Ownership ownership() const;

  /// Takes one step. Errors: kRefused, naming state and event, when no rule allows it.
  base::Outcome step(OwnershipEvent event);

 private:
  mutable base::Mutex mutex_;
  Ownership ownership_ GUARDED_BY(mutex_);
};

}  // namespace towline::runtime
