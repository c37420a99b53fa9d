#include "runtime/source_driver.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <utility>

#include <fmt/format.h>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/description.h"
#include "runtime/switch_flight.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using base::PageIndex;
using base::PageRange;
using wire::FrameHeader;
using wire::FrameType;

// Echoes at the start: the best of them bounds the error of the clock offset.
constexpr std::uint64_t kPings = 8;
// While the user has not asked for the switch, the stale sets keep up at this pace.
constexpr std::chrono::milliseconds kManualSyncPause{100};
// For what the target said before a lane broke. Guess: several round trips of a bad link.
constexpr std::chrono::milliseconds kLastWords{2000};

}  // namespace

base::Expected<std::unique_ptr<Outgoing>> Outgoing::start(Machine& machine, const Uri& target,
                                                          const MigrationOptions& options,
                                                          MigrationObserver& observer) {
  TRY(SourceDriver::check(machine));
  auto driver = std::make_unique<SourceDriver>(machine, target, options, observer);
  driver->begin();
  return std::unique_ptr<Outgoing>(std::move(driver));
}

Outcome SourceDriver::check(Machine& machine) {
  if (machine.gate().ownership() != Ownership::kHere) {
    return fail(ErrorKind::kRefused, "migrate",
                fmt::format("the guest cannot be moved from here: its ownership is '{}'",
                            to_string(machine.gate().ownership())));
  }
  for (const Region& region : machine.regions()) {
    if (region.backing == Backing::kAnonymous) {
      return fail(ErrorKind::kUnsupported, "migrate",
                  fmt::format("region '{}' is in no file; only such memory can be moved "
                              "(--memory-backing memfd or hugetlb)",
                              region.name));
    }
  }
  return base::Done{};
}

SourceDriver::SourceDriver(Machine& machine, Uri target, const MigrationOptions& options,
                           MigrationObserver& observer)
    : machine_(machine),
      target_(std::move(target)),
      options_(options),
      observer_(observer),
      clock_(base::system_clock()),
      layout_(machine.regions()),
      memory_(machine.regions(), layout_),
      owed_(layout_.pages()),
      order_(make_window_order(layout_.pages())) {
  random_bytes(identity_.id);
  identity_.incarnation = random_number();
  if (options_.secret.has_value()) {
    const auto bytes = bytes_of(*options_.secret);
    identity_.secret.assign(bytes.begin(), bytes.end());
  }
  session_secret_.resize(kSecretBytes);
  random_bytes(session_secret_);
}

SourceDriver::~SourceDriver() {
  {
    const base::Lock lock(mutex_);
    inbox_.cancel = true;
    inbox_.leave = true;
    changed_.notify_all();
    end_waiting();
    if (control_ != nullptr) {
      control_->shutdown();
    }
    if (bulk_ != nullptr) {
      bulk_->stop();
    }
  }
  thread_.join();
  watch_thread_.join();
  control_thread_.join();
}

void SourceDriver::begin() {
  {
    const base::Lock lock(mutex_);
    started_ = clock_.now();
    window_.at = started_;
    show(MigrationStatus::kSetup);
  }
  thread_ = base::NamedThread("tl-source", [this] { run(); });
}

// ---- phases, on tl-source -----------------------------------------------------------------------

void SourceDriver::run() {
  move();
  note_end();
}

void SourceDriver::move() {
  if (!heir_) {
    const auto moved = migrate();
    if (moved.ok()) {
      return;
    }
    end(moved.error());
  }
  while (const auto attempt = next_attempt()) {
    const auto moved = recover(*attempt);
    if (moved.ok()) {
      return;
    }
    end(moved.error());
  }
}

Outcome SourceDriver::migrate() {
  TRY(open_control());
  TRY(send_description());
  TRY(open_lanes());
  TRY(find_page_server());
  TRY(step(SourceEvent::kAccepted));
  TRY(run_passes());
  TRY(sync_until_switch());
  TRY(switch_over());
  TRY(await_running());
  return push_until_complete();
}

Outcome SourceDriver::open_control() {
  auto opened = TRY(open_lane(target_, options_, identity_, wire::LaneRole::kControl, 0,
                              [this](int fd) { note_waiting_on(fd); }));
  {
    const base::Lock lock(mutex_);
    control_ = std::move(opened.lane);
    target_incarnation_ = opened.reply.incarnation;
    replaces_lanes_ = (opened.reply.features & wire::kFeatureReplaceLane) != 0;
    waits_for_room_ = (opened.reply.features & wire::kFeatureWaitForRoom) != 0;
    TRY(interrupted());
    TRY(step_locked(SourceEvent::kLanesReady));
  }
  control_thread_ =
      base::NamedThread("tl-control", [this, lane = control_] { read_control(lane); });
  return base::Done{};
}

Outcome SourceDriver::send_description() {
  const Description description = describe(machine_, options_.bulk_lanes, session_secret_);
  const auto encoded = TRY(encode_description(description));
  FrameHeader header;
  header.type = FrameType::kDescribe;
  TRY(control_->send(header, encoded));
  return await_answer([this]() UNDER_LOCK { return inbox_.accepted; });
}

Outcome SourceDriver::measure_clock() {
  for (std::uint64_t ping = 1; ping <= kPings; ++ping) {
    const std::uint64_t now = base::to_ns(clock_.now());
    FrameHeader header;
    header.type = FrameType::kPing;
    TRY(control_->send(header, std::as_bytes(std::span(&now, 1))));
    TRY(await_answer([this, ping]() UNDER_LOCK { return inbox_.pongs >= ping; }));
  }
  return base::Done{};
}

Outcome SourceDriver::open_lanes() {
  // Ahead of its use: nothing is started within the blackout.
  watch_thread_ = base::NamedThread("tl-watch", [this] { watch(); });
  LaneIdentity proven = identity_;
  proven.secret = session_secret_;
  auto opened = TRY(open_data_lanes(target_, options_, proven, options_.bulk_lanes,
                                    [this] { return measure_clock(); }));
  auto bulk = std::make_unique<BulkSender>(memory_, owed_, counters_, options_.max_bandwidth);
  for (auto& lane : opened.bulk) {
    bulk->add_lane(std::move(lane));
  }
  const base::Lock lock(mutex_);
  bulk_ = std::move(bulk);
  server_ = serve(std::move(opened.urgent), 0);
  set_up_ = clock_.now();
  last_sync_ = set_up_;
  if (inbox_.switch_asked) {
    bulk_->cut_pass();
  }
  return interrupted();
}

Outcome SourceDriver::run_passes() {
  if (options_.passes == 0 || options_.switch_policy == SwitchPolicy::kImmediate) {
    owed_.add(PageRange{PageIndex{0}, layout_.pages()});
    return step(SourceEvent::kPassesDone);
  }
  rounds_ = std::make_unique<DirtyRounds>(machine_.dirty_log(), layout_);
  TRY(rounds_->begin());
  logging_ = true;
  for (std::uint32_t pass = 1; pass <= options_.passes; ++pass) {
    observer_.on_pass(pass);
    {
      const base::Lock lock(mutex_);
      ++dirty_syncs_;
    }
    TRY(bulk_->run_pass(pass, *rounds_));
    passes_done_ = pass;
    if (pass < options_.passes && !bulk_->was_cut()) {
      const auto round = TRY(rounds_->next_round());
      note_dirty(round);
      TRY(send_round(round, pass));
    }
    const base::Lock lock(mutex_);
    TRY(interrupted());
    if (inbox_.switch_asked) {
      break;
    }
  }
  return step(SourceEvent::kPassesDone);
}

void SourceDriver::note_dirty(const DirtyRounds::Round& round) {
  for (const PageRange& run : round.pages) {
    owed_.add(run);
    order_->on_recently_dirty(run);
  }
  const base::Lock lock(mutex_);
  const base::Instant now = clock_.now();
  const double seconds = std::chrono::duration<double>(now - last_sync_).count();
  dirty_rate_ =
      static_cast<std::uint64_t>(static_cast<double>(round.count) / std::max(seconds, 1e-6));
  last_sync_ = now;
}

Outcome SourceDriver::send_round(const DirtyRounds::Round& round, std::uint32_t pass) {
  std::uint64_t expected = 0;
  {
    const base::Lock lock(mutex_);
    expected = inbox_.rounds_applied + 1;
  }
  SwitchFlight frames;
  frames.add_stale(round.pages, round.count, pass, false);
  TRY(frames.send(*control_));
  // A target that waits for room has not applied it either; nothing goes on by its word alone.
  return await([this, expected]() UNDER_LOCK {
    return inbox_.rounds_applied >= expected && !inbox_.no_room.has_value();
  });
}

// Stale rounds: bitmaps only, until the user wants the switch and what is left fits the pause.
Outcome SourceDriver::sync_until_switch() {
  if (rounds_ == nullptr) {
    if (options_.switch_policy == SwitchPolicy::kManual) {
      TRY(await([this]() UNDER_LOCK { return inbox_.switch_asked; }));
    }
    return step(SourceEvent::kSwitchNow);
  }
  std::optional<base::Instant> wanted_since;
  while (true) {
    const auto round = TRY(rounds_->next_round());
    note_dirty(round);
    bool wanted = options_.switch_policy != SwitchPolicy::kManual;
    {
      const base::Lock lock(mutex_);
      TRY(interrupted());
      wanted = wanted || inbox_.switch_asked;
    }
    const base::Instant now = clock_.now();
    if (wanted && !wanted_since.has_value()) {
      wanted_since = now;
    }
    TRY(send_round(round, passes_done_));
    if (wanted && (round.count <= options_.switch_page_budget ||
                   now - *wanted_since >= options_.switch_wait)) {
      return step(SourceEvent::kSwitchNow);
    }
    if (!wanted) {
      const base::Lock lock(mutex_);
      ++dirty_syncs_;
      const base::Instant pause_end = clock_.now() + kManualSyncPause;
      [[maybe_unused]] const bool told = changed_.wait_until(
          mutex_, pause_end,
          [this]() UNDER_LOCK { return inbox_.switch_asked || !interrupted().ok(); });
    }
  }
}

Outcome SourceDriver::switch_over() {
  if (standby_ != nullptr) {
    TRY(standby_->await(options_.handshake_timeout));
  }
  TRY(park());
  observer_.on_guest_stopped();
  return send_flight();
}

Outcome SourceDriver::park() {
  TRY(machine_.gate().step(OwnershipEvent::kHold));
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
    TRY(machine_.gate().step(OwnershipEvent::kOrder));
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
  for (const PageRange& run : last.pages) {
    order_->on_recently_dirty(run);
  }
  return base::Done{};
}

Outcome SourceDriver::await_running() {
  observer_.on_pass(passes_done_ + 1);
  TRY(await([this]() UNDER_LOCK { return inbox_.running_at_ns.has_value(); }));
  const base::Lock lock(mutex_);
  return note_running();
}

Outcome SourceDriver::note_running() {
  TRY(machine_.gate().step(OwnershipEvent::kTargetRuns));
  TRY(note_phase(StandbyPhase::kServing));
  const auto running_at =
      static_cast<std::int64_t>(*inbox_.running_at_ns) - clock_offset_.offset_ns();
  downtime_ms_ =
      static_cast<double>(running_at - static_cast<std::int64_t>(base::to_ns(parked_at_))) / 1e6;
  return step_locked(SourceEvent::kTargetRunning);
}

Outcome SourceDriver::push_until_complete() {
  std::uint64_t limit = 0;
  {
    const base::Lock lock(mutex_);
    limit = options_.max_postcopy_bandwidth;
  }
  // After a loss, holes may be among what the target misses.
  const bool holes_first = rounds_ == nullptr || identity_.epoch > 1 || bulk_->was_cut();
  bulk_->start_push(*order_, limit, holes_first,
                    [this](std::uint8_t lane, std::uint32_t attempt, const base::Error& reason) {
                      lose_lane(LaneName{wire::LaneRole::kBulk, lane}, attempt, reason);
                    });
  TRY(replace_lanes_until([this]() UNDER_LOCK { return inbox_.complete; }));
  note_over();  // Before the target may go: a page server would wait for it for ever.
  FrameHeader header;
  header.type = FrameType::kCompleteAck;
  // The target does not depend on hearing this.
  [[maybe_unused]] const auto told = control_->send(header);
  TRY(step(SourceEvent::kTargetComplete));
  close_lanes();
  return base::Done{};
}

// ---- the end that nobody wanted -----------------------------------------------------------------

// A lane broke, but the control lane may still hold the target's last words: that it runs, that it
// is complete, that it never will. They are heard before anything follows from the loss.
void SourceDriver::hear_the_target_out() {
  if (!control_thread_.joinable()) {
    return;
  }
  ::shutdown(control_->fd(), SHUT_WR);
  const base::Lock lock(mutex_);
  if (state_ == SourceState::kSwitching || inbox_.silent) {
    return;  // Its guest is parked and ours: it goes on at once; or nobody speaks.
  }
  // A peer that neither speaks nor closes is not waited for any longer.
  const base::Instant patience = clock_.now() + kLastWords;
  [[maybe_unused]] const bool all_heard =
      changed_.wait_until(mutex_, patience, [this]() UNDER_LOCK { return inbox_.control_ended; });
  if (state_ == SourceState::kOrdered && inbox_.running_at_ns.has_value()) {
    const auto noted = note_running();
    ENSURE(noted.ok(), "an ordered guest may run at its target");
  }
}

void SourceDriver::close_lanes() {
  if (bulk_ != nullptr) {
    bulk_->stop();
  }
  if (server_ != nullptr) {
    server_->stop();
  }
  if (control_ != nullptr) {
    control_->shutdown();
  }
}

void SourceDriver::end(const base::Error& reason) {
  if (attempt_failed(reason)) {
    return;
  }
  if (reason.kind == ErrorKind::kDisconnected) {
    hear_the_target_out();
  }
  SourceRule rule;
  bool before = false;
  {
    const base::Lock lock(mutex_);
    before = before_order(state_);
    rule = rule_of_end(reason);
    error_ = rule.on == SourceEvent::kTargetComplete ? "" : words_of_end(reason);
    base::log(LogLevel::kInfo, "source.ends state={} event={} to={} reason={}",
              to_string(rule.from), to_string(rule.on), to_string(rule.to), error_);
  }
  // Only this thread steps the session, so that the rule stays right without the lock, which
  // nobody holds while the kernel or the peer takes its time.
  if (rule.on == SourceEvent::kCancel && control_ != nullptr) {
    FrameHeader header;
    header.type = FrameType::kCancel;
    [[maybe_unused]] const auto told = control_->send(header, bytes_of("the user cancelled"));
  }
  if (!before && rule.act == SourceAction::kResumeGuest) {
    // The target's own word, from the incarnation that has the order: it never will.
    note_release();
    const auto back = machine_.gate().step(OwnershipEvent::kTargetRefused);
    ENSURE(back.ok(), "only an ordered guest can be given back by its target");
  }
  if (rule.act == SourceAction::kResumeGuest) {
    resume_guest();
  }
  if (logging_) {
    rounds_->end();
    logging_ = false;
  }
  close_lanes();
  if (rule.to == SourceState::kCompleted) {
    note_over();
  }
  const base::Lock lock(mutex_);
  state_ = rule.to;
  ended_ = clock_.now();
  if (!is_final(status_of(state_)) && !lost_at_.has_value()) {
    lost_at_ = ended_;
  }
  show(status_of(state_));
}

SourceRule SourceDriver::rule_of_end(const base::Error& reason) const {
  SourceEvent event = SourceEvent::kLinkLost;
  if (inbox_.cancel && before_order(state_)) {
    event = SourceEvent::kCancel;
  } else if (inbox_.complete) {
    event = SourceEvent::kTargetComplete;
  } else if (inbox_.never.has_value()) {
    event = SourceEvent::kTargetNever;
  } else if (inbox_.refused.has_value() || reason.kind == ErrorKind::kRefused) {
    event = SourceEvent::kRefused;
  }
  // What a peer says out of its turn is worth as much as its silence.
  const auto said = runtime::step(state_, event);
  const auto lost = said.ok() ? said : runtime::step(state_, SourceEvent::kLinkLost);
  ENSURE(lost.ok(), "every state that can end has a rule for a lost link");
  return lost.value();
}

// The side that knew the cause explains it.
std::string SourceDriver::words_of_end(const base::Error& reason) const {
  if (inbox_.cancel && before_order(state_)) {
    return "cancelled by the user";
  }
  if (inbox_.never.has_value() || inbox_.refused.has_value()) {
    return base::to_string(interrupted().error());
  }
  return base::to_string(reason);
}

void SourceDriver::resume_guest() {
  if (machine_.gate().ownership() == Ownership::kHeld) {
    note_release();
    const auto released = machine_.gate().step(OwnershipEvent::kRelease);
    ENSURE(released.ok(), "a held guest is ours to release");
  }
  machine_.unpark();
  observer_.on_guest_started();
}

// ---- shared -------------------------------------------------------------------------------------

Outcome SourceDriver::await(const std::function<bool()>& ready) {
  const base::Lock lock(mutex_);
  changed_.wait(mutex_, [&]() UNDER_LOCK { return ready() || !interrupted().ok(); });
  return ready() ? Outcome(base::Done{}) : interrupted();
}

Outcome SourceDriver::await_answer(const std::function<bool()>& ready) {
  const base::Lock lock(mutex_);
  const base::Instant patience = clock_.now() + options_.handshake_timeout;
  const bool in_time = changed_.wait_until(
      mutex_, patience, [&]() UNDER_LOCK { return ready() || !interrupted().ok(); });
  if (!in_time) {
    return fail(ErrorKind::kDisconnected, "handshake",
                fmt::format("'{}' is silent since {} ms; is the target alive?", target_.to_string(),
                            options_.handshake_timeout.count()));
  }
  return ready() ? Outcome(base::Done{}) : interrupted();
}

// The user's cancel counts before the order only; the target's words explain a lost lane.
Outcome SourceDriver::interrupted() const {
  if (inbox_.cancel && before_order(state_)) {
    return fail(ErrorKind::kRefused, "migrate", "cancelled by the user");
  }
  if (inbox_.never.has_value()) {
    return fail(ErrorKind::kRefused, "migrate",
                fmt::format("the target cannot run this guest: {}", *inbox_.never));
  }
  if (inbox_.refused.has_value()) {
    return fail(ErrorKind::kRefused, "migrate",
                fmt::format("the target refused the guest: {}", *inbox_.refused));
  }
  if (inbox_.lost.has_value() && !inbox_.complete) {
    return base::Err{*inbox_.lost};
  }
  return base::Done{};
}

void SourceDriver::lose(const base::Error& reason) {
  const base::Lock lock(mutex_);
  lose_locked(reason);
}

void SourceDriver::lose_locked(const base::Error& reason) {
  if (!inbox_.lost.has_value()) {
    inbox_.lost = reason;
    base::log(LogLevel::kInfo, "link.lost reason={}", base::to_string(reason));
  }
  if (bulk_ != nullptr && before_order(state_)) {
    bulk_->stop();  // A pass may be blocked on a lane that nobody reads.
  }
  end_waiting();  // No lane of this epoch is of use any more.
  if (flight_leaves_) {
    // Its sender may be blocked in it. What the target said is read on.
    ::shutdown(control_->fd(), SHUT_WR);
  }
  changed_.notify_all();
}

Outcome SourceDriver::step(SourceEvent event) {
  const base::Lock lock(mutex_);
  return step_locked(event);
}

Outcome SourceDriver::step_locked(SourceEvent event) {
  const SourceRule rule = TRY(runtime::step(state_, event));
  base::log(LogLevel::kInfo, "source.state from={} event={} to={}", to_string(rule.from),
            to_string(event), to_string(rule.to));
  state_ = rule.to;
  if (is_final(status_of(state_))) {
    ended_ = clock_.now();
  }
  show(status_of(state_));
  return base::Done{};
}

void SourceDriver::show(MigrationStatus status) {
  if (status != shown_) {
    shown_ = status;
    observer_.on_status(status);
  }
}

}  // namespace towline::runtime
