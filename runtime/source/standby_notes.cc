// What the source leaves to its page server, and how that one goes on as its heir.
#include <algorithm>
#include <utility>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/source/driver.h"
#include "runtime/standby/record.h"

namespace towline::runtime {
namespace {

using base::LogLevel;
using base::Outcome;

/// Regions by the file that they are in; a file that holds several is given away once.
struct GivenFiles {
  std::vector<int> fds;

  std::uint64_t number_of(int fd) {
    const auto found = std::find(fds.begin(), fds.end(), fd);
    if (found == fds.end()) {
      fds.push_back(fd);
      return fds.size() - 1;
    }
    return static_cast<std::uint64_t>(found - fds.begin());
  }
};

std::vector<StandbyRecord::MemoryRegion> memory_of(const Machine& machine, GivenFiles& files) {
  std::vector<StandbyRecord::MemoryRegion> regions;
  for (const Region& region : machine.regions()) {
    regions.push_back(StandbyRecord::MemoryRegion{.name = region.name,
                                                  .start = region.start.value,
                                                  .size = region.size.value,
                                                  .page_size = region.page_size.value,
                                                  .backing = region.backing,
                                                  .file = files.number_of(region.fd),
                                                  .offset = region.fd_offset});
  }
  return regions;
}

}  // namespace

// ---- at the source, on tl-source ----------------------------------------------------------------

// Everything that is large or slow, while the guest runs. Who asked for a page server does not want
// to switch without one.
Outcome SourceDriver::find_page_server() {
  if (kept_) {
    const auto encoded = TRY(encode_record(record_of(kept_regions_)));
    return ledger_->renew(encoded);
  }
  if (options_.page_server.kind == PageServerChoice::Kind::kNone) {
    return base::Done{};
  }
  GivenFiles files;
  const auto encoded = TRY(encode_record(record_of(memory_of(machine_, files))));
  auto ledger =
      std::make_shared<StandbyLedger>(TRY(StandbyLedger::create(encoded, files.fds.size())));
  auto standby = TRY(StandbyLink::open(options_.page_server, ledger, std::move(files.fds)));
  const base::Lock lock(mutex_);
  ledger_ = std::move(ledger);
  standby_ = std::move(standby);
  return interrupted();
}

StandbyRecord SourceDriver::record_of(std::vector<StandbyRecord::MemoryRegion> regions) const {
  StandbyRecord record;
  record.id = identity_.id;
  record.incarnation = identity_.incarnation;
  record.target_incarnation = target_incarnation_;
  record.session_secret = session_secret_;
  record.target = target_;
  record.options = options_;
  record.shape = machine_.shape();
  record.regions = std::move(regions);
  return record;
}

// Within the blackout: some writes to memory, and nobody is waited for. An acknowledgement would
// say that the server lived a moment ago, which is as much as is known without it.
Outcome SourceDriver::leave_state(std::span<const std::byte> encoded) {
  if (ledger_ == nullptr) {
    return base::Done{};
  }
  StandbyLedger::Parked parked;
  parked.state = encoded;
  parked.at_ns = base::to_ns(parked_at_);
  {
    const base::Lock lock(mutex_);
    parked.clock_offset_ns = clock_offset_.offset_ns();
    parked.clock_error_ns = clock_offset_.error_ns();
  }
  return kept_ ? ledger_->set_times(parked) : ledger_->park(parked);
}

Outcome SourceDriver::note_phase(StandbyPhase phase) const {
  return ledger_ == nullptr ? Outcome(base::Done{}) : ledger_->set_phase(phase);
}

Outcome SourceDriver::note_epoch() const {
  return ledger_ == nullptr ? Outcome(base::Done{}) : ledger_->set_epoch(identity_.epoch);
}

Outcome SourceDriver::note_address() const {
  return ledger_ == nullptr ? Outcome(base::Done{}) : ledger_->set_address(target_.to_string());
}

// Before the guest may run here: what was left of it is old from then on, and must never be
// believed.
void SourceDriver::note_release() const {
  const auto noted = note_phase(kept_ ? StandbyPhase::kParked : StandbyPhase::kRunning);
  ENSURE(noted.ok(), "a word of the ledger, in memory that is there, can be written");
}

void SourceDriver::note_over() const {
  const auto noted = note_phase(StandbyPhase::kOver);
  ENSURE(noted.ok(), "a word of the ledger, in memory that is there, can be written");
}

// A guest that runs on here needs nobody; what an heir could not give away, it keeps.
void SourceDriver::note_end() {
  std::unique_ptr<StandbyLink> standby;
  {
    const base::Lock lock(mutex_);
    if (standby_ == nullptr || !is_final(status_of(state_))) {
      return;
    }
    note_over();
    past_standby_ = standby_->report();
    past_standby_->stands_by = false;
    standby = std::move(standby_);
  }
  // Its end closes the connection: the server reads the ledger, and goes.
}

bool SourceDriver::may_be_left() const {
  const base::Lock lock(mutex_);
  const bool elsewhere = kept_ ? kept_elsewhere_ : standby_ != nullptr && standby_->stands_by();
  return !before_order(state_) && !is_final(shown_) && elsewhere;
}

// ---- at the page server -------------------------------------------------------------------------

void SourceDriver::begin_from(Kept kept) {
  kept_ = true;
  kept_elsewhere_ = kept.kept_elsewhere;
  kept_regions_ = std::move(kept.regions);
  ledger_ = std::move(kept.ledger);
  begin();
}

void SourceDriver::begin_as_heir(Legacy legacy) {
  const bool serving = legacy.words.phase == StandbyPhase::kServing;
  heir_ = true;
  kept_ = true;
  kept_elsewhere_ = legacy.kept_elsewhere;
  ledger_ = std::move(legacy.ledger);
  identity_ = std::move(legacy.identity);
  session_secret_ = std::move(legacy.session_secret);
  target_incarnation_ = legacy.target_incarnation;
  parked_at_ = base::Instant(base::Duration(static_cast<std::int64_t>(legacy.words.parked_at_ns)));
  {
    const base::Lock lock(mutex_);
    started_ = clock_.now();
    set_up_ = started_;
    window_.at = started_;
    lost_at_ = started_;
    clock_offset_ = ClockOffset(legacy.words.clock_offset_ns, legacy.words.clock_error_ns);
    error_ = std::move(legacy.reason);
    state_ = serving ? SourceState::kServingPaused : SourceState::kOrderedPaused;
    base::log_owner(LogLevel::kWarning, "source.heir state={} epoch={} reason={}",
                    to_string(state_), identity_.epoch, error_);
    show(status_of(state_));
  }
  watch_thread_ = base::NamedThread("tl-watch", [this] { watch(); });
  thread_ = base::NamedThread("tl-source", [this] { run(); });
}

}  // namespace towline::runtime
