#include "runtime/run_gate.h"

#include <algorithm>

#include <fmt/format.h>

namespace towline::runtime {

std::string_view to_string(Ownership ownership) {
  switch (ownership) {
    case Ownership::kHere:
      return "here";
    case Ownership::kIncoming:
      return "incoming";
    case Ownership::kHeld:
      return "held";
    case Ownership::kOrdered:
      return "ordered";
    case Ownership::kGone:
      return "gone";
  }
  __builtin_unreachable();
}

std::string_view to_string(OwnershipEvent event) {
  switch (event) {
    case OwnershipEvent::kHold:
      return "hold";
    case OwnershipEvent::kRelease:
      return "release";
    case OwnershipEvent::kOrder:
      return "order";
    case OwnershipEvent::kTargetRuns:
      return "target-runs";
    case OwnershipEvent::kTargetRefused:
      return "target-refused";
    case OwnershipEvent::kTakeBack:
      return "take-back";
    case OwnershipEvent::kTake:
      return "take";
  }
  __builtin_unreachable();
}

bool RunGate::may_run() const {
  return ownership() == Ownership::kHere;
}

Ownership RunGate::ownership() const {
  const base::Lock lock(mutex_);
  return ownership_;
}

base::Outcome RunGate::step(OwnershipEvent event) {
  const base::Lock lock(mutex_);
  const auto* rule = std::find_if(kOwnershipRules.begin(), kOwnershipRules.end(),
                                  [&](const OwnershipRule& one) UNDER_LOCK {
                                    return one.from == ownership_ && one.on == event;
                                  });
  if (rule == kOwnershipRules.end()) {
    return base::fail(base::ErrorKind::kRefused, "run gate",
                      fmt::format("'{}' is impossible while the guest's ownership is '{}'",
                                  to_string(event), to_string(ownership_)));
  }
  ownership_ = rule->to;
  return base::Done{};
}

}  // namespace towline::runtime
