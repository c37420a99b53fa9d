#include "runtime/source/driver.h"

#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/core/description.h"
#include "runtime/source/switch_flight.h"

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
  if (std::exchange(logging_, false)) {
    rounds_->end();
  }
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
                              [this](int fd, bool waits) { note_waiting_on(fd, waits); }));
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
    {
      const base::Lock lock(mutex_);
      pings_ = ping;
    }
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
  auto opened = TRY(open_data_lanes(
      target_, options_, proven, options_.bulk_lanes,
      [this](int fd, bool waits) { note_waiting_on(fd, waits); },
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
  }
  order_->on_recently_dirty(round.pages);
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
    // When the target has all or has said no, or this end's user did, it closes as agreed.
    const bool as_agreed = inbox_.complete || inbox_.never.has_value() ||
                           inbox_.refused.has_value() || inbox_.cancel || inbox_.held ||
                           inbox_.leave;
    if (!as_agreed) {
      base::log(LogLevel::kWarning, "link.lost reason={}", base::to_string(reason));
    }
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
