#include "runtime/target/driver.h"

#include <utility>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/owner_log.h"
#include "runtime/target/trace.h"
#include "uffd/capabilities.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using wire::FrameHeader;
using wire::FrameType;

/// At most so much of `words` as a frame may have.
std::span<const std::byte> at_most_bytes(const std::string& words, std::size_t most) {
  return bytes_of(std::string_view(words).substr(0, most));
}

}  // namespace

base::Expected<std::unique_ptr<Incoming>> Incoming::listen(Machine& machine, const Uri& at,
                                                           const MigrationOptions& options,
                                                           MigrationObserver& observer) {
  return std::unique_ptr<Incoming>(TRY(TargetDriver::listen(machine, at, options, observer)));
}

TargetDriver::TargetDriver(Machine& machine, const MigrationOptions& options,
                           MigrationObserver& observer)
    : machine_(machine),
      options_(options),
      observer_(observer),
      layout_(machine.regions()),
      incarnation_(random_number()),
      clock_(base::system_clock()),
      brain_(options, layout_.pages()) {
  trace_target_brain(options, layout_.pages());
}

base::Expected<std::unique_ptr<TargetDriver>> TargetDriver::listen(Machine& machine, const Uri& at,
                                                                   const MigrationOptions& options,
                                                                   MigrationObserver& observer) {
  // Asked now, so that a host that cannot do it says so before any guest depends on it.
  TRY(uffd::capabilities());
  std::unique_ptr<TargetDriver> made(new TargetDriver(machine, options, observer));
  TargetDriver* self = made.get();
  Listener::Callbacks callbacks{
      .admit = [self](const wire::Hello& hello) { return self->admit(hello); },
      .deliver = [self](std::unique_ptr<Lane> lane,
                        const wire::Hello& hello) { self->deliver(std::move(lane), hello); }};
  made->listener_ =
      TRY(Listener::bind(at, options.handshake_timeout, made->incarnation_, std::move(callbacks)));
  TRY(made->set_source_loss(options.source_loss, options.source_loss_deadline));
  observer.on_status(MigrationStatus::kSetup);
  made->listener_->start();
  return made;
}

TargetDriver::~TargetDriver() {
  // Nobody is let in from here on, and nothing is posted to the listener.
  [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kEnding});
  listener_.reset();
  {
    const base::Lock lock(mutex_);
    shut_control();  // Of a source that tl-listen was just taking.
  }
  control_thread_.join();
  load_thread_.join();
  linger_thread_.join();
  watch_thread_.join();
}

// ---- the brain ----------------------------------------------------------------------------------

Outcome TargetDriver::feed(TargetInput input) {
  std::vector<TargetTask> tasks;
  {
    const base::Lock lock(mutex_);
    input.at = clock_.now();
    trace(input);
    TRY(brain_.on(input));
    const std::vector<TargetEffect> effects = brain_.take_effects();
    for (const TargetEffect& effect : effects) {
      trace(effect);
      perform(effect);
    }
    tasks = brain_.take_tasks();
    for (const TargetTask& task : tasks) {
      trace(task);
    }
    // Most frames are of no interest to who waits here: waking them all for each of the pages that
    // come with the switch would make the guest wait longer for the last of them.
    if (input.kind != TargetInput::Kind::kFrame || !effects.empty()) {
      changed_.notify_all();
    }
  }
  for (const TargetTask& task : tasks) {
    TRY(carry_out(task));
  }
  return base::Done{};
}

void TargetDriver::perform(const TargetEffect& effect) {
  using Kind = TargetEffect::Kind;
  // clang-format off
  switch (effect.kind) {
    case Kind::kStepped: return log_step(effect.rule);
    case Kind::kShow: return observer_.on_status(effect.status);
    case Kind::kShowLink: return observer_.on_link(effect.link);
    case Kind::kTombstone: return;  // The brain's own memory: it dies with this process.
    case Kind::kUseLane: control_ = std::exchange(next_control_, nullptr); return;
    case Kind::kShutControl: return shut_control();
    case Kind::kShutLanes:
      if (published_ != nullptr) { published_.load()->lanes.shutdown(); }
      return;
    case Kind::kShutLane: return transfer_->lanes.shutdown(effect.lane);
    case Kind::kLanesLost: return transfer_->lanes.lose();
    case Kind::kEndUrgent:
      return transfer_->lanes.end_urgent({ErrorKind::kDisconnected, 0, "watch", effect.text});
    case Kind::kOpenPostcopy: return transfer_->lanes.open_postcopy();
    case Kind::kGiveUpMarkers: return transfer_->lanes.give_up_markers(effect.text);
    case Kind::kOpenGate: return open_gate();
    case Kind::kLinger:
      linger_thread_ = base::NamedThread("tl-linger", [this] { linger(); });
      return;
    case Kind::kShutOut: return give_up(effect.policy);
    case Kind::kSourceAway: return tell_source_away();
    case Kind::kFence:
      return base::log(LogLevel::kInfo, "target.fence epoch={}", effect.epoch);
    case Kind::kLinkLost:
      return base::log(LogLevel::kWarning, "link.lost reason={}", effect.text);
    case Kind::kControlEnded:
      return base::log(LogLevel::kInfo, "control.ended reason={}", effect.text);
    case Kind::kLaneReplaced:
      return base::log(LogLevel::kInfo, "lane.replaced lane={} attempt={}",
                       to_string(effect.lane), effect.number);
    case Kind::kOverdue:
      return base::log(LogLevel::kWarning, "progress.overdue answer={} state={} reason={}",
                       effect.awaited, to_string(brain_.state()), effect.text);
    case Kind::kNoRoom:
      return base::log(LogLevel::kWarning, "memory.no_room reason={}", effect.text);
    case Kind::kRoomAgain: return base::log(LogLevel::kInfo, "memory.room_again");
  }
  // clang-format on
}

void TargetDriver::log_step(const TargetRule& rule) {
  if (rule.to == TargetState::kFailed) {
    base::log_owner(LogLevel::kInfo, "guest.never event={}", to_string(rule.on));
  }
  base::log(LogLevel::kInfo, "target.state from={} event={} to={}", to_string(rule.from),
            to_string(rule.on), to_string(rule.to));
}

void TargetDriver::open_gate() {
  const auto taken = change_owner(machine_.gate(), OwnershipEvent::kTake);
  ENSURE(taken.ok(), "one order opens the gate, once");
  running_here_ = true;
}

void TargetDriver::shut_control() {
  if (control_ != nullptr) {
    control_->shutdown();
  }
}

Outcome TargetDriver::carry_out(const TargetTask& task) {
  using Kind = TargetTask::Kind;
  // clang-format off
  switch (task.kind) {
    case Kind::kTakeSource:     take_source(); break;
    case Kind::kBeginEpoch:     begin_epoch(task.epoch); break;
    case Kind::kAttachLane:
      published_.load()->lanes.attach(task.lane, std::move(arrived_));
      break;
    case Kind::kReplaceLane:
      published_.load()->lanes.replace(task.lane, std::move(arrived_),
                                       static_cast<std::uint32_t>(task.number));
      break;
    case Kind::kAnswerPing:     return answer_ping();
    case Kind::kKeepStale:      return keep_stale();
    case Kind::kAwaitMarkers:
      TRY(transfer_->lanes.wait_for_markers(static_cast<std::uint32_t>(task.number)));
      return feed({.kind = TargetInput::Kind::kDone, .task = task});
    case Kind::kApplyStale:     return apply_stale();
    case Kind::kSayApplied: {
      FrameHeader applied;
      applied.type = FrameType::kStaleApplied;
      applied.round = static_cast<std::uint32_t>(task.number);
      applied.count = task.count;
      return control()->send(applied);
    }
    case Kind::kStorePages:     return store_pages();
    case Kind::kAwaitLanes:     return await_lanes(task);
    case Kind::kAskAgain:       ask_again(task.flag); break;
    case Kind::kEndReading:     return fail(ErrorKind::kRefused, "cancel", task.text);
    case Kind::kAnswerNever:    return answer_never(task);
    case Kind::kAnswerComplete: return answer_complete();
    case Kind::kTellMissing:    return tell_missing(static_cast<std::uint32_t>(task.number));
    case Kind::kTellNever:      tell_never(task.text); break;
    case Kind::kFinishSending:  finish_sending(task.flag); break;
    case Kind::kCloseLanes:     close_lanes(task.flag); break;
    case Kind::kDropHalf:
      transfer_->lanes.join();  // Or a page that is being stored stays behind.
      transfer_->memory->discard();
      break;
    case Kind::kTellLaneLost:   tell_lane_lost(task); break;
    case Kind::kTellNoRoom:
      tell_room(FrameType::kNoRoom, at_most_bytes(task.text, wire::kMaxNoRoomPayload));
      break;
    case Kind::kTellRoomAgain:  tell_room(FrameType::kRoomAgain, {}); break;
    case Kind::kTellRunning:    return tell_running(task);
    case Kind::kFinish:         finish(); break;
    case Kind::kPoison:         return poison(task);
    case Kind::kEndGuest:       return end_guest(task);
    case Kind::kLoad:           return load(task);
    case Kind::kStartGuest:     return start_guest();
  }
  // clang-format on
  return base::Done{};
}

// Unsent: the control lane has ended, and its own thread knows.
void TargetDriver::tell_room(FrameType type, std::span<const std::byte> words) {
  [[maybe_unused]] const auto told = send(type, words);
}

std::shared_ptr<Lane> TargetDriver::control() const {
  const base::Lock lock(mutex_);
  return control_;
}

Outcome TargetDriver::send(FrameType type, std::span<const std::byte> payload) {
  FrameHeader header;
  header.type = type;
  return control()->send(header, payload);
}

void TargetDriver::tell_never(const std::string& reason) {
  if (!send(FrameType::kNever, at_most_bytes(reason, wire::kMaxTextPayload)).ok()) {
    base::log_owner(LogLevel::kInfo, "never.unsent reason={}", "the source is gone");
  }
}

// ---- the user's calls ---------------------------------------------------------------------------

Outcome TargetDriver::pause() {
  return feed({.kind = TargetInput::Kind::kPause});
}

Outcome TargetDriver::recover_at(const Uri& at) {
  {
    const base::Lock lock(mutex_);
    TRY(brain_.may_let_in());
  }
  TRY(listener_->add(at));
  [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kLetIn});
  return base::Done{};
}

}  // namespace towline::runtime
