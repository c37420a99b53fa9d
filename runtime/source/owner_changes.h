#pragma once

#include "base/error.h"
#include "runtime/core/source_session.h"
#include "runtime/run_gate.h"

/// Where a source's guest changes hands: the gate, and the words that are left for an heir. Their
/// order is such that the source's process may die between any two of them. The driver carries
/// these functions out, and so does the model of the ledger (tests/unit/runtime/standby), with a
/// death at each place.
///
/// An `Owner` has ownership(), change(OwnershipEvent), leave_state(), note_ordered(),
/// note_running() and note_release().
namespace towline::runtime {

/// Before the order can leave: an heir that reads this asks the target, whether it left or not.
template <typename Owner>
base::Outcome leave_to_heir(Owner& owner) {
  TRY(owner.leave_state());
  return owner.note_ordered();
}

/// The gate, the ledger and the session's state are three copies of one fact: from here on nobody
/// gives the guest back.
template <typename Owner>
void note_target_runs(Owner& owner) {
  owner.change(OwnershipEvent::kTargetRuns);
  owner.note_running();
}

/// `rule`: the step by which the guest is the source's alone again. The ledger first: what was left
/// of the guest is old once it runs here.
template <typename Owner>
void give_guest_back(Owner& owner, const SourceRule& rule) {
  if (owner.ownership() == Ownership::kHere) {
    return;  // The switch was given up before the gate was closed.
  }
  owner.note_release();
  OwnershipEvent event = OwnershipEvent::kRelease;
  if (rule.on == SourceEvent::kTakeBack) {
    event = OwnershipEvent::kTakeBack;
  } else if (!before_order(rule.from)) {
    // The target's own word, from the incarnation that has the order: it never will.
    event = OwnershipEvent::kTargetRefused;
  }
  owner.change(event);
}

}  // namespace towline::runtime
