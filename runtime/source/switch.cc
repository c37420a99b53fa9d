// How the source gives the guest away: parked, one flight with everything that the target needs to
// run, the word that it does.
#include <future>
#include <memory>
#include <utility>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/owner_log.h"
#include "runtime/source/driver.h"
#include "runtime/source/switch_flight.h"

namespace towline::runtime {
namespace {

using base::Outcome;
using base::PageIndex;
using base::PageRange;

}  // namespace

Outcome SourceDriver::switch_over() {
  if (standby_ != nullptr) {
    TRY(standby_->await(options_.handshake_timeout));
  }
  TRY(park());
  observer_.on_guest_stopped();
  return send_flight();
}

Outcome SourceDriver::park() {
  TRY(change_owner(machine_.gate(), OwnershipEvent::kHold));
  // Shared: the vCPU's thread is still inside set_value() when get() returns here.
  const auto parked = std::make_shared<std::promise<base::Instant>>();
  auto when = parked->get_future();
  machine_.park([this, parked] { parked->set_value(clock_.now()); });
  parked_at_ = when.get();
  return base::Done{};
}

// Everything that the target needs to run, in one flight. Nothing here grows with memory except
// the reading of the dirty log.
Outcome SourceDriver::send_flight() {
  const auto state = TRY(machine_.save());
  const std::vector<PageIndex> first = machine_.first_pages();
  const auto encoded = TRY(encode(state));
  SwitchFlight flight;
  DirtyRounds::Round last;
  if (rounds_ != nullptr) {
    last = TRY(rounds_->next_round());
    for (const PageRange& run : last.pages) {
      owed_.add(run);
    }
  }
  flight.add_stale(last.pages, last.count, passes_done_, true);
  TRY(flight.add_first_pages(memory_, owed_, first, last.pages, counters_));
  TRY(leave_state(encoded));
  flight.add_state(encoded);
  flight.add_run();
  server_->open();
  {
    // The point of no return is here, not in send()'s success: a user's cancel is before it or too
    // late.
    const base::Lock lock(mutex_);
    TRY(interrupted());
    bytes_before_flight_ = bytes_sent();
    TRY(note_phase(StandbyPhase::kOrdered));
    TRY(step_locked(SourceEvent::kOrderSent));
    TRY(change_owner(machine_.gate(), OwnershipEvent::kOrder));
    ++dirty_syncs_;
    flight_leaves_ = true;
  }
  auto sent = flight.send(*control_);
  const base::Lock lock(mutex_);
  flight_leaves_ = false;
  if (!sent.ok()) {
    // Whether the order arrived is not known. Nobody runs the guest here.
    lose_locked(sent.error());
  }
  bytes_after_flight_ = bytes_sent();
  order_->on_recently_dirty(last.pages);
  return base::Done{};
}

Outcome SourceDriver::await_running() {
  observer_.on_pass(passes_done_ + 1);
  return await([this]() UNDER_LOCK { return inbox_.running_at_ns.has_value(); });
}

// On tl-control, in the same critical section in which the word is read. The gate, the ledger and
// the session's state are three copies of one fact: from here on nobody gives the guest back.
void SourceDriver::note_running() {
  const auto gone = change_owner(machine_.gate(), OwnershipEvent::kTargetRuns);
  ENSURE(gone.ok(), "an ordered guest may run at its target");
  if (const auto noted = note_phase(StandbyPhase::kServing); !noted.ok()) {
    base::log(base::LogLevel::kError, "page_server.not_told reason={} so={}",
              base::to_string(noted.error()),
              "the target runs the guest, and an heir would have to ask it");
  }
  const auto running_at =
      static_cast<std::int64_t>(*inbox_.running_at_ns) - clock_offset_.offset_ns();
  downtime_ms_ =
      static_cast<double>(running_at - static_cast<std::int64_t>(base::to_ns(parked_at_))) / 1e6;
  const auto stepped = step_locked(SourceEvent::kTargetRunning);
  ENSURE(stepped.ok(), "the caller has asked the table");
}

}  // namespace towline::runtime
