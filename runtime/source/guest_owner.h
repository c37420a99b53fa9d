#pragma once

#include "base/ensure.h"
#include "base/error.h"
#include "runtime/owner_log.h"
#include "runtime/run_gate.h"
#include "runtime/source/standby_notes.h"
#include "runtime/standby/ledger.h"

namespace towline::runtime {

/// This process as the guest's owner: its gate, and what it leaves for an heir. See
/// owner_changes.h. Threads: as those of its parts.
class GuestOwner {
 public:
  /// Both outlive this. `parked`: for leave_state() alone.
  GuestOwner(RunGate& gate, const StandbyNotes& notes, const StandbyLedger::Parked& parked = {})
      : gate_(gate), notes_(notes), parked_(parked) {}

  [[nodiscard]] Ownership ownership() const { return gate_.ownership(); }

  void change(OwnershipEvent event) {
    const auto changed = change_owner(gate_, event);
    ENSURE(changed.ok(), "a guest changes hands by a step of the session that the gate knows");
  }

  base::Outcome leave_state() { return notes_.leave_state(parked_); }

  base::Outcome note_ordered() { return notes_.note_ordered(); }

  void note_running() { notes_.note_running(); }

  void note_release() { notes_.note_release(); }

 private:
  RunGate& gate_;
  const StandbyNotes& notes_;
  const StandbyLedger::Parked parked_;
};

}  // namespace towline::runtime
