// What the source does when the link was lost after the order: a new epoch.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/owner_log.h"
#include "runtime/source/driver.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using base::PageRange;
using wire::FrameHeader;
using wire::FrameType;

// Guess: far more than a round trip, less than TCP's first repetition of an unanswered request.
constexpr std::chrono::milliseconds kFirstPatience{500};

bool is_paused(SourceState state) {
  return state == SourceState::kOrderedPaused || state == SourceState::kServingPaused;
}

bool is_recovering(SourceState state) {
  return state == SourceState::kOrderedRecovering || state == SourceState::kServingRecovering;
}

}  // namespace

// ---- between two epochs -------------------------------------------------------------------------

// An attempt that came to nothing while the session was paused changes nothing but its words.
bool SourceDriver::attempt_failed(const base::Error& reason) {
  bool over = false;
  {
    const base::Lock lock(mutex_);
    over = is_final(status_of(state_));
    if (!over && !is_paused(state_)) {
      return false;
    }
  }
  if (over) {  // Taken back meanwhile: the attempt found nothing to do.
    close_lanes();
    return true;
  }
  {
    const base::Lock lock(mutex_);
    attempt_error_ = base::to_string(reason);
    base::log(LogLevel::kInfo, "source.attempt_failed epoch={} attempt={} reason={}",
              identity_.epoch, attempts_, attempt_error_);
  }
  close_lanes();
  return true;
}

// Every thread of the old epoch has ended when this returns: nothing of it can reach what the next
// one builds.
void SourceDriver::drop_epoch() {
  close_lanes();
  control_thread_.join();
  std::shared_ptr<Lane> control;
  std::unique_ptr<BulkSender> bulk;
  std::unique_ptr<RequestServer> server;
  {
    const base::Lock lock(mutex_);
    changed_.wait(mutex_, [this]() UNDER_LOCK { return !watching_; });
    bytes_of_past_epochs_ = bytes_sent();
    control = std::exchange(control_, nullptr);
    bulk = std::move(bulk_);
    server = std::move(server_);
  }
  bulk.reset();
  server.reset();
  const base::Lock lock(mutex_);
  inbox_.begin_epoch();
  last_attempt_ = 0;
  urgent_attempt_ = 0;
  bulk_attempts_.fill(0);
}

std::optional<SourceDriver::Attempt> SourceDriver::next_attempt() {
  {
    const base::Lock lock(mutex_);
    if (!is_paused(state_)) {
      return std::nullopt;
    }
  }
  drop_epoch();
  const bool first = attempts_ == 0;
  const base::Instant due =
      clock_.now() + (first ? base::Duration{} : base::Duration(backoff_.take(random_number())));
  bool by_hand = false;
  std::optional<Uri> at;
  {
    const base::Lock lock(mutex_);
    const bool over = options_.reconnect_deadline.count() > 0 && lost_at_.has_value() &&
                      clock_.now() - *lost_at_ >= options_.reconnect_deadline;
    if (over && !std::exchange(inbox_.held, true)) {
      attempt_error_ =
          fmt::format("no longer tried: {} s are over; migrate with resume tries again",
                      options_.reconnect_deadline.count());
    }
    const auto told = [this]() UNDER_LOCK {
      return inbox_.leave || !is_paused(state_) || inbox_.resume_at.has_value();
    };
    if (!options_.auto_recover || inbox_.held) {
      changed_.wait(mutex_, told);
    } else {
      [[maybe_unused]] const bool early = changed_.wait_until(mutex_, due, told);
    }
    if (inbox_.leave || !is_paused(state_)) {
      return std::nullopt;
    }
    at = std::exchange(inbox_.resume_at, std::nullopt);
    by_hand = at.has_value();
    if (by_hand) {
      inbox_.held = false;
      backoff_.reset();
    }
  }
  if (!by_hand) {
    const std::size_t turn = attempts_ % (options_.alternates.size() + 1);
    at = turn == 0 ? target_ : options_.alternates[turn - 1];
  }
  ++attempts_;
  return Attempt{*std::move(at), by_hand};
}

// ---- a new epoch --------------------------------------------------------------------------------

Outcome SourceDriver::recover(const Attempt& attempt) {
  TRY(reconnect(attempt));
  TRY(await_comparison());
  return go_on(attempt);
}

// The user's attempt shows from its beginning; one made by itself, once somebody answers.
Outcome SourceDriver::reconnect(const Attempt& attempt) {
  {
    const base::Lock lock(mutex_);
    ++identity_.epoch;
    TRY(note_epoch());
    if (attempt.by_hand) {
      TRY(step_locked(SourceEvent::kReconnect));
    }
  }
  LaneIdentity proven = identity_;
  proven.secret = session_secret_;
  auto opened = TRY(open_lane(attempt.at, patient(), proven, wire::LaneRole::kControl, 0,
                              [this](int fd, bool waits) { note_waiting_on(fd, waits); }));
  if (opened.reply.incarnation != target_incarnation_) {
    return fail(ErrorKind::kRefused, "reconnect",
                fmt::format("'{}' is another process than the one that holds the guest; what it "
                            "says proves nothing",
                            attempt.at.to_string()));
  }
  {
    const base::Lock lock(mutex_);
    if (!left_before_.has_value()) {
      left_before_ = owed_.count();
    }
    owed_.clear();
    control_ = std::move(opened.lane);
    replaces_lanes_ = (opened.reply.features & wire::kFeatureReplaceLane) != 0;
    if (!attempt.by_hand) {
      TRY(step_locked(SourceEvent::kReconnect));
    }
    TRY(step_locked(SourceEvent::kReconnected));
  }
  control_thread_ =
      base::NamedThread("tl-control", [this, lane = control_] { read_control(lane); });
  return base::Done{};
}

// An address that is silent is not waited for long at first: the next one may answer, and a network
// that is back answers a new request sooner than TCP repeats an old one.
MigrationOptions SourceDriver::patient() const {
  MigrationOptions options;
  {
    const base::Lock lock(mutex_);
    options = options_;
  }
  const auto patience = kFirstPatience * static_cast<int>(std::min<std::size_t>(attempts_, 100));
  options.connect_timeout = std::min(options.connect_timeout, patience);
  options.handshake_timeout = std::min(options.handshake_timeout, patience);
  return options;
}

// What the target is, and what it misses: exactly that is owed from here on. However long that
// takes to say: a target that counts its frames gives signs of life meanwhile, and tl-watch judges
// those.
Outcome SourceDriver::await_comparison() {
  const auto told = [this]() UNDER_LOCK {
    return inbox_.missing_told || (inbox_.runs && inbox_.complete);
  };
  TRY(control_->counts_frames() ? await(told) : await_answer(told));
  const base::Lock lock(mutex_);
  if (!inbox_.runs && state_ == SourceState::kServingRecovering) {
    return fail(ErrorKind::kCorrupt, "recover", "the target ran the guest, and denies it now");
  }
  return base::Done{};
}

Outcome SourceDriver::on_missing(const FrameHeader& header, std::span<const std::byte> payload) {
  // In a new epoch once; otherwise for each lane that was replaced.
  if (inbox_.complete) {
    return base::Done{};  // A lane was replaced when the last page came.
  }
  const bool of_a_lane = state_ == SourceState::kServing && last_attempt_ != 0;
  if (!of_a_lane && (!is_recovering(state_) || inbox_.missing_told)) {
    return fail(ErrorKind::kCorrupt, "control frame", "missing pages out of turn");
  }
  if (header.type == FrameType::kMissingEnd) {
    inbox_.missing_pages = std::exchange(inbox_.missing_so_far, 0);
    if (header.count != inbox_.missing_pages) {
      return fail(ErrorKind::kCorrupt, "control frame",
                  fmt::format("{} missing pages were named, the end says {}", inbox_.missing_pages,
                              header.count));
    }
    inbox_.missing_told = true;
    inbox_.missing_attempt = header.round;
    left_before_.reset();
    return base::Done{};
  }
  if (header.count > layout_.pages().value ||
      inbox_.missing_so_far > layout_.pages().value - header.count) {
    return fail(ErrorKind::kCorrupt, "control frame", "more pages are missing than there are");
  }
  inbox_.missing_so_far += header.count;
  for (const PageRange& run : TRY(wire::decode_missing(header, payload, layout_.pages()))) {
    owed_.add(run);
  }
  return base::Done{};
}

Outcome SourceDriver::go_on(const Attempt& attempt) {
  {
    const base::Lock lock(mutex_);
    if (inbox_.complete) {
      note_over();
      TRY(step_locked(SourceEvent::kTargetComplete));
      error_.clear();
    }
  }
  if (state_now() == SourceState::kCompleted) {
    close_lanes();
    return base::Done{};
  }
  TRY(open_lanes_again(attempt.at));
  FrameHeader resume;
  resume.type = FrameType::kResume;
  TRY(control_->send(resume));
  bool runs = false;
  {
    // *Running* may have come while the lanes were being opened.
    const base::Lock lock(mutex_);
    runs = state_ == SourceState::kServingRecovering;
    TRY(step_locked(runs ? SourceEvent::kCompared : SourceEvent::kTargetLoaded));
  }
  if (!runs) {  // The order is obeyed once, however often it is given.
    FrameHeader order;
    order.type = FrameType::kRun;
    TRY(control_->send(order));
  }
  {
    const base::Lock lock(mutex_);
    target_ = attempt.at;
    TRY(note_address());
    ++recoveries_;
    last_recovery_ms_ = std::chrono::duration<double, std::milli>(clock_.now() - *lost_at_).count();
    error_.clear();
    attempt_error_.clear();
    base::log(LogLevel::kInfo, "source.recovered epoch={} attempts={} ms={:.3f} owed_pages={}",
              identity_.epoch, attempts_, *last_recovery_ms_, inbox_.missing_pages);
    lost_at_.reset();
  }
  attempts_ = 0;
  backoff_.reset();
  if (!runs) {
    TRY(await_running());
  }
  return push_until_complete();
}

Outcome SourceDriver::open_lanes_again(const Uri& at) {
  LaneIdentity proven = identity_;
  proven.secret = session_secret_;
  auto opened = TRY(open_data_lanes(at, patient(), proven, options_.bulk_lanes,
                                    [this](int fd, bool waits) { note_waiting_on(fd, waits); }));
  std::uint64_t limit = 0;
  {
    const base::Lock lock(mutex_);
    limit = options_.max_postcopy_bandwidth;
  }
  auto bulk = std::make_unique<BulkSender>(memory_, owed_, counters_, limit);
  for (auto& lane : opened.bulk) {
    bulk->add_lane(std::move(lane));
  }
  auto server = serve(std::move(opened.urgent), 0);
  server->open();
  const base::Lock lock(mutex_);
  bulk_ = std::move(bulk);
  server_ = std::move(server);
  return interrupted();
}

// ---- the user's calls ---------------------------------------------------------------------------

Outcome SourceDriver::pause() {
  const base::Lock lock(mutex_);
  if (before_order(state_) || is_final(shown_) || is_paused(state_)) {
    return fail(ErrorKind::kRefused, "pause",
                "migrate-pause is currently only supported during postcopy-active or "
                "postcopy-recover state");
  }
  inbox_.held = true;
  // What a target says in the middle of a recovery is asked for again in the next one.
  inbox_.silent = inbox_.silent || is_recovering(state_);
  lose_locked(base::Error{ErrorKind::kDisconnected, 0, "pause", "paused by the user"});
  return base::Done{};
}

Outcome SourceDriver::resume(const std::optional<Uri>& target) {
  const base::Lock lock(mutex_);
  if (!is_paused(state_)) {
    return fail(ErrorKind::kRefused, "resume", "Cannot resume if there is no paused migration");
  }
  inbox_.resume_at = target.has_value() ? *target : target_;
  end_waiting();  // What is tried by itself may be an address that never answers.
  changed_.notify_all();
  return base::Done{};
}

// At once, in the user's thread: an attempt that is under way finds the session over, and no order
// can follow.
Outcome SourceDriver::take_back() {
  {
    const base::Lock lock(mutex_);
    if (machine_.gate().ownership() == Ownership::kGone) {
      return fail(ErrorKind::kRefused, "take back",
                  "refused for good: the target said that the guest runs there; what it did since "
                  "would be undone, and only the target can have its present memory");
    }
    const auto stepped = runtime::step(state_, SourceEvent::kTakeBack);
    if (!stepped.ok()) {
      return fail(ErrorKind::kRefused, "take back",
                  fmt::format("the source is '{}'; only a guest whose run order may be lost can be "
                              "taken back (migrate-pause ends an attempt to reconnect)",
                              to_string(state_)));
    }
    note_release();
    const auto back = change_owner(machine_.gate(), OwnershipEvent::kTakeBack);
    ENSURE(back.ok(), "an ordered guest is its user's to take back");
    state_ = stepped.value().to;
    ended_ = clock_.now();
    error_ = "taken back by the user, who vouches that the target does not run the guest";
    attempt_error_.clear();
    base::log_owner(LogLevel::kWarning, "source.taken_back epoch={}", identity_.epoch);
    end_waiting();
    changed_.notify_all();
  }
  resume_guest();
  const base::Lock lock(mutex_);
  show(status_of(state_));
  return base::Done{};
}

SourceState SourceDriver::state_now() const {
  const base::Lock lock(mutex_);
  return state_;
}

}  // namespace towline::runtime
