#include "runtime/source/driver.h"

#include <sys/socket.h>

#include <utility>

#include <fmt/format.h>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/core/description.h"
#include "runtime/source/guest_owner.h"
#include "runtime/source/owner_changes.h"
#include "runtime/source/trace.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using base::PageIndex;
using base::PageRange;

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
      options_(options),
      observer_(observer),
      clock_(base::system_clock()),
      layout_(machine.regions()),
      memory_(machine.regions(), layout_),
      owed_(layout_.pages()),
      order_(make_window_order(layout_.pages())),
      brain_(std::move(target), options, layout_.pages()) {
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
  [[maybe_unused]] const auto left = feed({.kind = SourceInput::Kind::kLeave});
  thread_.join();
  watch_thread_.join();
  std::unique_ptr<SourceEpoch> last;
  {
    const base::Lock lock(mutex_);
    last = std::move(epoch_);
  }
}

void SourceDriver::start() {
  const base::Lock lock(mutex_);
  statistics_.started = clock_.now();
  statistics_.window.at = statistics_.started;
  trace_brain(brain_.target(), options_, layout_.pages().value);
}

void SourceDriver::begin() {
  start();
  [[maybe_unused]] const auto begun = feed({.kind = SourceInput::Kind::kBegin});
  thread_ = base::NamedThread("tl-source", [this] { run(); });
}

void SourceDriver::begin_from(Kept kept) {
  standby_.keep(std::move(kept.ledger), std::move(kept.regions), kept.kept_elsewhere);
  begin();
}

void SourceDriver::begin_as_heir(Legacy legacy) {
  const bool serving = legacy.words.phase == StandbyPhase::kServing;
  standby_.keep(std::move(legacy.ledger), {}, legacy.kept_elsewhere);
  identity_ = std::move(legacy.identity);
  session_secret_ = std::move(legacy.session_secret);
  start();
  {
    const base::Lock lock(mutex_);
    statistics_.heir = true;
    statistics_.set_up = statistics_.started;
    statistics_.parked_at =
        base::Instant(base::Duration(static_cast<std::int64_t>(legacy.words.parked_at_ns)));
    statistics_.clock = ClockOffset(legacy.words.clock_offset_ns, legacy.words.clock_error_ns);
    base::log_owner(LogLevel::kWarning, "source.heir serving={} epoch={} reason={}", serving,
                    identity_.epoch, legacy.reason);
  }
  [[maybe_unused]] const auto begun = feed({.kind = SourceInput::Kind::kInherit,
                                            .text = std::move(legacy.reason),
                                            .number = legacy.target_incarnation,
                                            .epoch = identity_.epoch,
                                            .flag = serving});
  watch_thread_ = base::NamedThread("tl-watch", [this] { watch(); });
  thread_ = base::NamedThread("tl-source", [this] { run(); });
}

// ---- the brain ----------------------------------------------------------------------------------

Outcome SourceDriver::feed(SourceInput input) {
  const base::Lock lock(mutex_);
  return feed_locked(std::move(input));
}

Outcome SourceDriver::feed_locked(SourceInput input) {
  input.at = clock_.now();
  trace(input);
  const bool had_task = brain_.task().has_value() && input.kind != SourceInput::Kind::kDone;
  auto taken = brain_.on(input);
  for (const SourceEffect& effect : brain_.take_effects()) {
    trace(effect);
    perform(effect);
  }
  if (!had_task && brain_.task().has_value()) {
    trace(*brain_.task());
  }
  changed_.notify_all();
  return taken;
}

void SourceDriver::perform(const SourceEffect& effect) {
  using Kind = SourceEffect::Kind;
  BulkSender* const bulk = epoch_ != nullptr ? epoch_->bulk() : nullptr;
  switch (effect.kind) {
    case Kind::kShow:
      return observer_.on_status(effect.status);
    case Kind::kShowLink:
      return observer_.on_link(effect.link);
    case Kind::kReadControl:
      return epoch_->read_control([this, lane = epoch_->control(), number = epoch_->number()] {
        read_control(lane, number);
      });
    case Kind::kOweAll:
      return owed_.add(PageRange{PageIndex{0}, layout_.pages()});
    case Kind::kOweNothing:
      statistics_.left_before = statistics_.left_before.value_or(owed_.count());
      return owed_.clear();
    case Kind::kOweNamed:
      for (const PageRange& run : named_) {
        owed_.add(run);
      }
      return;
    case Kind::kOwedKnown:
      return statistics_.left_before.reset();
    case Kind::kCutPass:
      return bulk != nullptr ? bulk->cut_pass() : void();
    case Kind::kStopPass:
      return bulk != nullptr ? bulk->stop() : void();
    case Kind::kHoldBack:
      return bulk->hold_back();
    case Kind::kGoOn:
      return bulk->go_on();
    case Kind::kEndWaiting:
      return end_waiting();
    case Kind::kEndFlight:
    case Kind::kFinishSending:
      ::shutdown(epoch_->control()->fd(), SHUT_WR);
      return;
    case Kind::kCloseLanes:
      return epoch_ != nullptr ? epoch_->close() : void();
    case Kind::kOrder: {
      statistics_.bytes_before_flight = bytes_sent();
      ++statistics_.dirty_syncs;
      GuestOwner(machine_.gate(), standby_).change(OwnershipEvent::kOrder);
      return;
    }
    case Kind::kTargetRuns:
      return note_running();
    case Kind::kGiveBack:
      return give_back(effect.rule);
    case Kind::kRelease:
      return standby_.note_over();
    case Kind::kStepped:
    case Kind::kLinkLost:
    case Kind::kLaneLost:
    case Kind::kLaneNotReplaced:
    case Kind::kLaneReplaced:
    case Kind::kNoRoom:
    case Kind::kRoomAgain:
    case Kind::kEnds:
    case Kind::kAttemptFailed:
    case Kind::kRecovered:
    case Kind::kTakenBack:
      return tell(effect);
  }
}

// For the log alone.
void SourceDriver::tell(const SourceEffect& effect) {
  using Kind = SourceEffect::Kind;
  const SourceRule& rule = effect.rule;
  if (effect.kind == Kind::kStepped) {
    base::log(LogLevel::kInfo, "source.state from={} event={} to={}", to_string(rule.from),
              to_string(rule.on), to_string(rule.to));
    statistics_.ended = clock_.now();
  } else if (effect.kind == Kind::kLinkLost && !effect.flag) {
    base::log(LogLevel::kWarning, "link.lost reason={}", effect.text);
  } else if (effect.kind == Kind::kLaneLost) {
    base::log(LogLevel::kInfo, "lane.lost lane={} attempt={} reason={}", to_string(effect.lane),
              effect.attempt, effect.text);
  } else if (effect.kind == Kind::kLaneNotReplaced) {
    base::log(LogLevel::kInfo, "lane.not_replaced lane={} attempt={} reason={}",
              to_string(effect.lane), effect.attempt, effect.text);
  } else if (effect.kind == Kind::kLaneReplaced) {
    base::log(LogLevel::kInfo, "lane.replaced lane={} attempt={} reason={}", to_string(effect.lane),
              effect.attempt, effect.text);
  } else if (effect.kind == Kind::kNoRoom) {
    base::log(LogLevel::kWarning, "target.no_room reason={}", effect.text);
  } else if (effect.kind == Kind::kRoomAgain) {
    base::log(LogLevel::kInfo, "target.room_again");
  } else if (effect.kind == Kind::kEnds) {
    base::log_owner(LogLevel::kInfo, "source.ends state={} event={} to={} reason={}",
                    to_string(rule.from), to_string(rule.on), to_string(rule.to), effect.text);
  } else if (effect.kind == Kind::kAttemptFailed) {
    base::log(LogLevel::kInfo, "source.attempt_failed epoch={} attempt={} reason={}",
              brain_.epoch(), brain_.attempts(), effect.text);
  } else if (effect.kind == Kind::kRecovered) {
    base::log(LogLevel::kInfo, "source.recovered epoch={} attempts={} ms={:.3f} owed_pages={}",
              brain_.epoch(), effect.attempt, *brain_.last_recovery_ms(), brain_.missing_pages());
  } else if (effect.kind == Kind::kTakenBack) {
    base::log_owner(LogLevel::kWarning, "source.taken_back epoch={}", brain_.epoch());
  }
}

// In the critical section in which the word was read.
void SourceDriver::note_running() {
  GuestOwner owner(machine_.gate(), standby_);
  note_target_runs(owner);
  const auto running_at =
      static_cast<std::int64_t>(*brain_.running_at_ns()) - statistics_.clock.offset_ns();
  const auto parked_at = static_cast<std::int64_t>(base::to_ns(statistics_.parked_at));
  statistics_.downtime_ms = static_cast<double>(running_at - parked_at) / 1e6;
}

void SourceDriver::give_back(const SourceRule& rule) {
  GuestOwner owner(machine_.gate(), standby_);
  give_guest_back(owner, rule);
  machine_.unpark();
  observer_.on_guest_started();
}

// A connection or a handshake that nobody wants any more does not keep tl-source waiting.
void SourceDriver::end_waiting() {
  for (const int fd : waits_on_) {
    ::shutdown(fd, SHUT_RDWR);
  }
}

// ---- the user's calls ---------------------------------------------------------------------------

void SourceDriver::start_postcopy() {
  [[maybe_unused]] const auto asked = feed({.kind = SourceInput::Kind::kSwitchWord});
}

Outcome SourceDriver::continue_switch() {
  return feed({.kind = SourceInput::Kind::kContinue});
}

Outcome SourceDriver::cancel() {
  return feed({.kind = SourceInput::Kind::kCancel});
}

Outcome SourceDriver::pause() {
  return feed({.kind = SourceInput::Kind::kPause});
}

Outcome SourceDriver::resume(const std::optional<Uri>& target) {
  return feed({.kind = SourceInput::Kind::kResume, .address = target});
}

Outcome SourceDriver::take_back() {
  return feed({.kind = SourceInput::Kind::kTakeBack});
}

void SourceDriver::set_bandwidth(std::uint64_t max_bandwidth, std::uint64_t max_postcopy) {
  const base::Lock lock(mutex_);
  options_.max_bandwidth = max_bandwidth;
  options_.max_postcopy_bandwidth = max_postcopy;
  if (epoch_ != nullptr && epoch_->bulk() != nullptr) {
    epoch_->bulk()->set_bandwidth(before_order(brain_.state()) ? max_bandwidth : max_postcopy);
  }
}

bool SourceDriver::holds_the_guest() const {
  const base::Lock lock(mutex_);
  return !before_order(brain_.state()) && brain_.state() != SourceState::kCompleted &&
         machine_.gate().ownership() != Ownership::kHere;
}

bool SourceDriver::may_be_left() const {
  const base::Lock lock(mutex_);
  return !before_order(brain_.state()) && !is_final(brain_.shown()) && standby_.kept_elsewhere();
}

}  // namespace towline::runtime
