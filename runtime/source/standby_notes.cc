#include "runtime/source/standby_notes.h"

#include <algorithm>
#include <utility>

#include "base/ensure.h"
#include "base/log.h"
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

void StandbyNotes::keep(std::shared_ptr<StandbyLedger> ledger,
                        std::vector<StandbyRecord::MemoryRegion> regions, bool kept_elsewhere) {
  kept_ = true;
  kept_elsewhere_ = kept_elsewhere;
  regions_ = std::move(regions);
  const base::Lock lock(mutex_);
  ledger_ = std::move(ledger);
}

Outcome StandbyNotes::find(const Machine& machine, StandbyRecord record,
                           const PageServerChoice& choice) {
  if (kept_) {
    record.regions = regions_;
    const auto encoded = TRY(encode_record(record));
    return ledger()->renew(encoded);
  }
  if (choice.kind == PageServerChoice::Kind::kNone) {
    return base::Done{};
  }
  GivenFiles files;
  record.regions = memory_of(machine, files);
  const auto encoded = TRY(encode_record(record));
  auto ledger =
      std::make_shared<StandbyLedger>(TRY(StandbyLedger::create(encoded, files.fds.size())));
  auto link = TRY(StandbyLink::open(choice, ledger, std::move(files.fds)));
  const base::Lock lock(mutex_);
  ledger_ = std::move(ledger);
  link_ = std::move(link);
  return base::Done{};
}

std::shared_ptr<StandbyLedger> StandbyNotes::ledger() const {
  const base::Lock lock(mutex_);
  return ledger_;
}

Outcome StandbyNotes::await(std::chrono::milliseconds patience) const {
  std::shared_ptr<StandbyLink> link;
  {
    const base::Lock lock(mutex_);
    link = link_;
  }
  return link == nullptr ? Outcome(base::Done{}) : link->await(patience);
}

Outcome StandbyNotes::leave_state(const StandbyLedger::Parked& parked) const {
  const auto into = ledger();
  if (into == nullptr) {
    return base::Done{};
  }
  return kept_ ? into->set_times(parked) : into->park(parked);
}

Outcome StandbyNotes::note(StandbyPhase phase) const {
  const auto into = ledger();
  return into == nullptr ? Outcome(base::Done{}) : into->set_phase(phase);
}

Outcome StandbyNotes::note_epoch(std::uint64_t epoch) const {
  const auto into = ledger();
  return into == nullptr ? Outcome(base::Done{}) : into->set_epoch(epoch);
}

Outcome StandbyNotes::note_address(const Uri& at) const {
  const auto into = ledger();
  return into == nullptr ? Outcome(base::Done{}) : into->set_address(at.to_string());
}

void StandbyNotes::note_running() const {
  if (const auto noted = note(StandbyPhase::kServing); !noted.ok()) {
    base::log(LogLevel::kError, "page_server.not_told reason={} so={}",
              base::to_string(noted.error()),
              "the target runs the guest, and an heir would have to ask it");
  }
}

void StandbyNotes::note_release() const {
  const auto noted = note(kept_ ? StandbyPhase::kParked : StandbyPhase::kRunning);
  ENSURE(noted.ok(), "a word of the ledger, in memory that is there, can be written");
}

void StandbyNotes::note_over() const {
  const auto noted = note(StandbyPhase::kOver);
  ENSURE(noted.ok(), "a word of the ledger, in memory that is there, can be written");
}

void StandbyNotes::end() {
  std::shared_ptr<StandbyLink> link;
  {
    const base::Lock lock(mutex_);
    if (link_ == nullptr) {
      return;
    }
    link = link_;
  }
  note_over();
  const base::Lock lock(mutex_);
  past_ = link->report();
  past_->stands_by = false;
  link_.reset();
  // Its end closes the connection: the server reads the ledger, and goes.
}

bool StandbyNotes::kept_elsewhere() const {
  const base::Lock lock(mutex_);
  return kept_ ? kept_elsewhere_ : link_ != nullptr && link_->stands_by();
}

std::optional<PageServerReport> StandbyNotes::report() const {
  const base::Lock lock(mutex_);
  return link_ != nullptr ? link_->report() : past_;
}

}  // namespace towline::runtime
