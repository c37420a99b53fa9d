// What the source carries out: tl-source, one task after the other.
#include <algorithm>
#include <future>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/core/description.h"
#include "runtime/owner_log.h"
#include "runtime/source/driver.h"
#include "runtime/source/guest_owner.h"
#include "runtime/source/owner_changes.h"
#include "runtime/source/switch_flight.h"

namespace towline::runtime {
namespace {

using base::Outcome;
using base::PageIndex;
using base::PageRange;
using wire::FrameType;

}  // namespace

void SourceDriver::run() {
  while (const auto task = next_task()) {
    SourceInput done{.kind = SourceInput::Kind::kDone, .task = task->kind};
    if (auto carried = carry_out(*task, done); !carried.ok()) {
      done.error = std::move(carried).error();
    }
    [[maybe_unused]] const auto told = feed(std::move(done));
  }
  // The log of the guest's writes is switched off when all is over: that takes as long as there is
  // memory, and between a loss and the next attempt the guest waits.
  if (rounds_ != nullptr) {
    rounds_->end();
  }
  {
    const base::Lock lock(mutex_);
    if (!is_final(brain_.shown())) {
      return;
    }
  }
  standby_.end();
}

std::optional<SourceTask> SourceDriver::next_task() {
  const base::Lock lock(mutex_);
  while (!brain_.task().has_value() && !brain_.over()) {
    const auto deadline = brain_.deadline();
    const auto something = [this]()
                               UNDER_LOCK { return brain_.task().has_value() || brain_.over(); };
    if (!deadline.has_value()) {
      changed_.wait(mutex_, [&]() UNDER_LOCK { return something() || brain_.deadline(); });
    } else if (!changed_.wait_until(mutex_, *deadline, [&]() UNDER_LOCK {
                 return something() || brain_.deadline() != deadline;
               })) {
      [[maybe_unused]] const auto told = feed_locked({.kind = SourceInput::Kind::kTime});
    }
  }
  return brain_.task();
}

Outcome SourceDriver::carry_out(const SourceTask& task, SourceInput& done) {
  using Kind = SourceTask::Kind;
  switch (task.kind) {
    case Kind::kOpenControl:
      return open_control(task, done);
    case Kind::kDescribe:
      return send_description();
    case Kind::kOpenLanes:
    case Kind::kOpenLanesAgain:
      return open_lanes(task);
    case Kind::kFindPageServer:
      return standby_.find(machine_, record(), options_.page_server);
    case Kind::kBeginLog:
      return begin_log();
    case Kind::kRunPass:
      return run_pass(task.pass, done);
    case Kind::kSendRound:
      return send_round(task, done);
    case Kind::kAwaitPageServer:
      return standby_.await(options_.handshake_timeout);
    case Kind::kPark:
      return park();
    case Kind::kPrepareFlight:
      return prepare_flight();
    case Kind::kSendFlight:
      return send_flight();
    case Kind::kStartPush:
      return start_push();
    case Kind::kEndLane:
      task.lane.role == wire::LaneRole::kBulk ? own_epoch().bulk()->end_lane(task.lane.number)
                                              : own_epoch().server()->stop();
      return base::Done{};
    case Kind::kOpenInPlace:
      return open_in_place(task);
    case Kind::kPutInPlace:
      return put_in_place(task);
    case Kind::kFinish:
      return finish();
    case Kind::kReadToTheEnd:
      return read_to_the_end();
    case Kind::kSayCancelled:
      return send_on_control(FrameType::kCancel, bytes_of("the user cancelled"));
    case Kind::kDropEpoch:
      drop_epoch(done);
      return base::Done{};
    case Kind::kResume:
      return resume_target(task);
    case Kind::kOrderAgain:
      return send_on_control(FrameType::kRun);
  }
  __builtin_unreachable();
}

// ---- until the order ----------------------------------------------------------------------------

Outcome SourceDriver::send_description() {
  const Description description = describe(machine_, options_.bulk_lanes, session_secret_);
  const auto encoded = TRY(encode_description(description));
  return send_on_control(FrameType::kDescribe, encoded);
}

StandbyRecord SourceDriver::record() const {
  StandbyRecord record;
  record.id = identity_.id;
  record.incarnation = identity_.incarnation;
  record.session_secret = session_secret_;
  record.shape = machine_.shape();
  const base::Lock lock(mutex_);
  record.options = options_;
  record.target_incarnation = brain_.target_incarnation();
  record.target = brain_.target();
  return record;
}

Outcome SourceDriver::begin_log() {
  rounds_ = std::make_unique<DirtyRounds>(machine_.dirty_log(), layout_);
  auto begun = rounds_->begin();
  if (!begun.ok()) {
    rounds_.reset();
  }
  return begun;
}

Outcome SourceDriver::run_pass(std::uint32_t pass, SourceInput& done) {
  observer_.on_pass(pass);
  {
    const base::Lock lock(mutex_);
    ++statistics_.dirty_syncs;
  }
  TRY(own_epoch().bulk()->run_pass(pass, *rounds_));
  done.flag = own_epoch().bulk()->was_cut();
  return base::Done{};
}

void SourceDriver::note_dirty(const DirtyRounds::Round& round) {
  for (const PageRange& run : round.pages) {
    owed_.add(run);
  }
  order_->on_recently_dirty(round.pages);
  const base::Lock lock(mutex_);
  const base::Instant now = clock_.now();
  const double seconds = std::chrono::duration<double>(now - statistics_.last_sync).count();
  statistics_.dirty_rate =
      static_cast<std::uint64_t>(static_cast<double>(round.count) / std::max(seconds, 1e-6));
  statistics_.last_sync = now;
}

Outcome SourceDriver::send_round(const SourceTask& task, SourceInput& done) {
  if (task.flag) {
    const base::Lock lock(mutex_);
    ++statistics_.dirty_syncs;
  }
  const auto round = TRY(rounds_->next_round());
  note_dirty(round);
  done.number = round.count;
  SwitchFlight frames;
  frames.add_stale(round.pages, round.count, task.pass, false);
  return frames.send(*own_epoch().control());
}

Outcome SourceDriver::park() {
  TRY(change_owner(machine_.gate(), OwnershipEvent::kHold));
  // Shared: the vCPU's thread is still inside set_value() when get() returns here.
  const auto parked = std::make_shared<std::promise<base::Instant>>();
  auto when = parked->get_future();
  machine_.park([this, parked] { parked->set_value(clock_.now()); });
  const base::Instant at = when.get();
  {
    const base::Lock lock(mutex_);
    statistics_.parked_at = at;
  }
  observer_.on_guest_stopped();
  return base::Done{};
}

// Everything that the target needs to run, in one flight. Nothing here grows with memory except
// the reading of the dirty log.
Outcome SourceDriver::prepare_flight() {
  const auto state = TRY(machine_.save());
  const auto encoded = TRY(encode(state));
  const std::vector<PageIndex> first = machine_.first_pages();
  flight_.emplace();
  last_round_ = {};
  if (rounds_ != nullptr) {
    last_round_ = TRY(rounds_->next_round());
    for (const PageRange& run : last_round_.pages) {
      owed_.add(run);
    }
  }
  StandbyLedger::Parked parked;
  std::uint32_t passes = 0;
  {
    const base::Lock lock(mutex_);
    passes = brain_.passes_done();
    parked = {.state = encoded,
              .at_ns = base::to_ns(statistics_.parked_at),
              .clock_offset_ns = statistics_.clock.offset_ns(),
              .clock_error_ns = statistics_.clock.error_ns()};
  }
  flight_->add_stale(last_round_.pages, last_round_.count, passes, true);
  TRY(flight_->add_first_pages(memory_, owed_, first, last_round_.pages, counters_));
  GuestOwner owner(machine_.gate(), standby_, parked);
  TRY(leave_to_heir(owner));
  flight_->add_state(encoded);
  flight_->add_run();
  own_epoch().server()->open();
  return base::Done{};
}

Outcome SourceDriver::send_flight() {
  auto sent = flight_->send(*own_epoch().control());
  flight_.reset();
  std::uint32_t passes = 0;
  {
    const base::Lock lock(mutex_);
    statistics_.bytes_after_flight = bytes_sent();
    passes = brain_.passes_done();
  }
  order_->on_recently_dirty(last_round_.pages);
  observer_.on_pass(passes + 1);
  return sent;
}

// ---- after the order ----------------------------------------------------------------------------

Outcome SourceDriver::start_push() {
  {
    // In one step with reading it: a limit that the user sets in between would be undone.
    const base::Lock lock(mutex_);
    own_epoch().bulk()->set_bandwidth(options_.max_postcopy_bandwidth);
  }
  // After a loss, holes may be among what the target misses.
  const bool holes_first =
      rounds_ == nullptr || own_epoch().number() > 1 || own_epoch().bulk()->was_cut();
  own_epoch().bulk()->start_push(
      *order_, holes_first,
      [this, epoch = own_epoch().number()](std::uint8_t lane, std::uint32_t attempt,
                                           const base::Error& reason) {
        lose_lane(LaneName{wire::LaneRole::kBulk, lane}, attempt, epoch, reason);
      });
  return base::Done{};
}

// The ledger before the target may go: a page server would wait for it for ever. The target does
// not depend on hearing this.
Outcome SourceDriver::finish() {
  standby_.note_over();
  return send_on_control(FrameType::kCompleteAck);
}

Outcome SourceDriver::resume_target(const SourceTask& task) {
  TRY(standby_.note_address(task.at));
  return send_on_control(FrameType::kResume);
}

}  // namespace towline::runtime
