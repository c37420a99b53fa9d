#pragma once

#include "tests/support/switch_world.h"

namespace towline::runtime::switch_model {

/// The source of a world as the guest's owner (runtime/source/owner_changes.h), with a death of its
/// process before and behind each word. Without deaths in its limits a walk takes no notice of the
/// ledger.
class Steps::Hands {
 public:
  Hands(Steps& steps, World& world) : steps_(steps), world_(world) {}

  [[nodiscard]] Ownership ownership() const { return world_.here; }

  void change(OwnershipEvent event);
  base::Outcome leave_state();
  base::Outcome note_ordered();
  void note_running();
  void note_release();
  void note_over();

  /// As StandbyNotes::find(): a rescue has a record of its own, with epoch 1.
  void find();

  /// Epoch and greeting, in the order of SourceDriver::open_control().
  void greet(std::uint64_t epoch);

  /// For mistakes that write too late.
  void after_flight();

 private:
  void write(StandbyPhase phase);
  void write_record();

  Steps& steps_;
  World& world_;
};

}  // namespace towline::runtime::switch_model
