#include "runtime/target/driver.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/target/fault_report.h"
#include "uffd/capabilities.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using base::PageCount;
using base::PageIndex;
using base::PageRange;
using wire::FrameHeader;
using wire::FrameType;

base::Error corrupt_control(std::string detail) {
  return base::Error{ErrorKind::kCorrupt, 0, "control frame", std::move(detail)};
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
      clock_(base::system_clock()) {
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
  listener_.reset();
  {
    const base::Lock lock(mutex_);
    ending_ = true;
    changed_.notify_all();
    if (control_ != nullptr) {
      control_->shutdown();
    }
  }
  if (published_.load() != nullptr) {
    published_.load()->lanes.shutdown();
  }
  control_thread_.join();
  load_thread_.join();
  linger_thread_.join();
  watch_thread_.join();
}

std::shared_ptr<Lane> TargetDriver::control() const {
  const base::Lock lock(mutex_);
  return control_;
}

// ---- the session, on tl-control -----------------------------------------------------------------

void TargetDriver::run_control() {
  const auto described = receive_description();
  if (!described.ok()) {
    base::log(LogLevel::kWarning, "migration.refused reason={}",
              base::to_string(described.error()));
    // Free first, told afterwards: who reads the refusal may try again at once.
    back_to_listening();
    if (described.error().kind != ErrorKind::kDisconnected) {
      refuse(base::to_string(described.error()));
    }
    control()->shutdown();
    return;
  }
  const auto accepted = send(FrameType::kAccept);
  const auto ended = accepted.ok() ? receive_until_end() : accepted;
  end_of_control(ended.ok() ? base::Error{ErrorKind::kDisconnected, 0, "receive",
                                          "the source closed the connection"}
                            : ended.error());
}

void TargetDriver::back_to_listening() {
  const base::Lock lock(mutex_);
  control_taken_ = false;
}

Outcome TargetDriver::receive_description() {
  const auto lane = control();
  const auto header = TRY(lane->receive_header());
  if (!header.has_value() || header->type != FrameType::kDescribe) {
    return base::Err{corrupt_control("the first frame is no description")};
  }
  const auto payload = TRY(lane->receive_payload(*header));
  const auto description = TRY(decode_description(payload));
  std::vector<std::string> reasons = memory_refusals(description, layout_);
  for (std::string& reason : machine_.refusals(description.machine)) {
    reasons.push_back(std::move(reason));
  }
  if (!reasons.empty()) {
    return fail(ErrorKind::kRefused, "description", fmt::format("{}", fmt::join(reasons, "\n")));
  }
  return accept(description);
}

void TargetDriver::refuse(const std::string& reasons) {
  const std::string_view bounded = std::string_view(reasons).substr(0, wire::kMaxTextPayload);
  if (!send(FrameType::kRefuse, bytes_of(bounded)).ok()) {
    base::log(LogLevel::kInfo, "migration.refusal_unsent reason={}", "the source is gone");
  }
}

Outcome TargetDriver::accept(const Description& description) {
  std::uint64_t epoch = 0;
  {
    const base::Lock lock(mutex_);
    epoch = control_hello_.epoch;
  }
  auto transfer = std::make_unique<Transfer>(
      layout_, description.bulk_lanes, epoch,
      Receivers::Hooks{
          .progress = [this] { on_progress(); },
          .lost = [this](const base::Error& reason) { on_lane_lost(reason); },
          .room = [this] { return memory_room(); },
          .wait_for_room = [this](const base::Error& reason) { return wait_for_room(reason); },
          .found_room = [this] { found_room(); },
          .broken =
              [this](LaneName lane, std::uint32_t attempt, const base::Error& reason) {
                return on_lane_broken(lane, attempt, reason);
              },
          .replaced = [this](LaneName lane,
                             std::uint32_t attempt) { on_lane_replaced(lane, attempt); }});
  transfer->memory = TRY(TargetMemory::prepare(machine_.regions(), layout_));
  transfer->sender = TRY(RequestSender::start(transfer->requests));
  const auto ask = [&sender = *transfer->sender] { sender.ask(); };
  transfer->receiver = std::make_unique<PageReceiver>(layout_, *transfer->memory, transfer->map,
                                                      transfer->requests, clock_, ask);
  transfer->lanes.deliver_to(*transfer->receiver, *transfer->sender);
  transfer->faults = TRY(FaultService::start(
      *transfer->memory, *transfer->receiver, ask, [this](const std::string& reason) {
        base::log(LogLevel::kError, "fault.read_failed reason={}", reason);
        machine_.guest_failed(fmt::format("page faults cannot be served any more: {}", reason));
      }));
  TRY(transfer->memory->guard_for_good());
  transfer_ = std::move(transfer);
  // Ahead of their use: nothing is started within the blackout.
  load_thread_ = base::NamedThread("tl-load", [this] { load_and_run(); });
  watch_thread_ = base::NamedThread("tl-watch", [this] { watch(); });
  {
    const base::Lock lock(mutex_);
    secret_ = description.secret;
    published_ = transfer_.get();
    TRY(advance_locked(TargetEvent::kDescriptionAccepted));
  }
  return base::Done{};
}

Outcome TargetDriver::receive_until_end() {
  const auto lane = control();
  while (true) {
    const auto header = TRY(lane->receive_header());
    if (!header.has_value()) {
      return base::Done{};
    }
    TRY(on_frame(*lane, *header));
  }
}

Outcome TargetDriver::on_frame(Lane& lane, const FrameHeader& header) {
  // clang-format off
  switch (header.type) {
    case FrameType::kPing: return on_ping(lane, header);
    case FrameType::kStale: return on_stale(lane, header);
    case FrameType::kRoundEnd: return on_round_end(lane, header);
    case FrameType::kPages: return on_first_pages(lane, header);
    case FrameType::kState: return on_state(lane, header);
    case FrameType::kRun: return on_run();
    case FrameType::kCancel: return on_cancel(lane, header);
    case FrameType::kResume: return on_resume();
    case FrameType::kCompleteAck: return base::Done{};
    case FrameType::kHello: case FrameType::kHelloReply: case FrameType::kProof:
    case FrameType::kLaneReady: case FrameType::kRefuse: case FrameType::kDescribe:
    case FrameType::kAccept: case FrameType::kStaleApplied: case FrameType::kRunning:
    case FrameType::kNever: case FrameType::kComplete: case FrameType::kPong:
    case FrameType::kZeros: case FrameType::kMarker: case FrameType::kRequest:
    case FrameType::kMissing: case FrameType::kMissingEnd: case FrameType::kBeat:
    case FrameType::kLaneLost: case FrameType::kNoRoom: case FrameType::kRoomAgain:
      break;
  }
  // clang-format on
  return base::Err{corrupt_control(fmt::format("{} is not due now", wire::to_string(header.type)))};
}

Outcome TargetDriver::on_ping(Lane& lane, const FrameHeader& header) {
  auto echoed = TRY(lane.receive_payload(header));
  const std::uint64_t now = base::to_ns(clock_.now());
  const auto bytes = std::as_bytes(std::span(&now, 1));
  echoed.insert(echoed.end(), bytes.begin(), bytes.end());
  return send(FrameType::kPong, echoed);
}

Outcome TargetDriver::on_stale(Lane& lane, const FrameHeader& header) {
  const auto payload = TRY(lane.receive_payload(header));
  const auto runs = TRY(wire::decode_runs(header, payload, layout_.pages()));
  stale_pages_ += header.count;
  if (stale_pages_ > layout_.pages().value || final_delta_applied_) {
    return base::Err{
        corrupt_control("a stale set names more pages than there are, or comes too late")};
  }
  stale_.insert(stale_.end(), runs.begin(), runs.end());
  return base::Done{};
}

Outcome TargetDriver::on_round_end(Lane& lane, const FrameHeader& header) {
  if (header.count != stale_pages_ || final_delta_applied_) {
    return base::Err{corrupt_control(fmt::format("a round ends with {} stale pages, {} were named",
                                                 header.count, stale_pages_))};
  }
  // A page copied before it was dirtied may arrive after the set that names it: the set is applied
  // when every lane has delivered all that was copied in this pass.
  TRY(transfer_->lanes.wait_for_markers(header.round));
  for (const PageRange& run : stale_) {
    transfer_->receiver->on_stale(run);
  }
  stale_.clear();
  stale_pages_ = 0;
  if ((header.flags & wire::kFlagFinal) != 0) {
    // Marked before any page of the time after the switch can be accepted.
    if (transfer_->map.claimed().value != 0) {
      // An honest source names the pass whose markers were waited for.
      return base::Err{corrupt_control("the last round ended while pages of a pass were arriving")};
    }
    final_delta_applied_ = true;
    {
      const base::Lock lock(mutex_);
      order_possible_ = true;
    }
    transfer_->lanes.open_postcopy();
    return base::Done{};
  }
  {
    const base::Lock lock(mutex_);
    order_possible_ = true;  // The source waits for this answer, and may switch after it.
  }
  FrameHeader applied;
  applied.type = FrameType::kStaleApplied;
  applied.round = header.round;
  applied.count = header.count;
  return lane.send(applied);
}

Outcome TargetDriver::on_first_pages(Lane& lane, const FrameHeader& header) {
  const PageRange range{PageIndex{header.first}, PageCount{header.count}};
  if (!final_delta_applied_ || !layout_.valid(range)) {
    return base::Err{corrupt_control("pages on the control lane outside the switch's flight")};
  }
  const auto payload = TRY(lane.receive_payload(header));
  const auto& region = layout_.entries()[layout_.region_of(range.first)];
  if (payload.size() != region.page_size.value * header.count) {
    return base::Err{corrupt_control("a pages frame has the wrong length")};
  }
  auto stored = transfer_->receiver->on_pages(range, payload);
  if (!stored.ok() && stored.error().kind == ErrorKind::kOverloaded) {
    // They only save time: who touches one that has no room asks for it, as for any other.
    base::log(LogLevel::kWarning, "first_pages.no_room reason={}", base::to_string(stored.error()));
    return base::Done{};
  }
  return stored;
}

Outcome TargetDriver::on_state(Lane& lane, const FrameHeader& header) {
  if (!final_delta_applied_) {
    return base::Err{corrupt_control("the machine's state came before the last delta")};
  }
  auto encoded = TRY(lane.receive_payload(header));
  // Loading and running may need pages: whoever answers must be there to be asked.
  TRY(transfer_->lanes.wait_attached(options_.handshake_timeout));
  {
    const base::Lock lock(mutex_);
    if (never_) {
      return fail(ErrorKind::kRefused, "state", error_);  // A lane said so meanwhile.
    }
    TRY(advance_locked(TargetEvent::kStateReceived));
    encoded_state_ = std::move(encoded);
    changed_.notify_all();
  }
  return base::Done{};
}

// One step, once; tl-load starts the guest. A second order finds no rule, except the one that a new
// epoch's source sends because it was not told that the guest runs.
Outcome TargetDriver::on_run() {
  const base::Lock lock(mutex_);
  if (state_ == TargetState::kFailed) {
    return base::Done{};  // The load failed, and the source is being told.
  }
  if (order_read_ && std::exchange(may_repeat_order_, false)) {
    return base::Done{};
  }
  if (state_ != TargetState::kLoading || order_read_) {
    TRY(advance_locked(TargetEvent::kRunOrdered));
  }
  order_read_ = true;
  changed_.notify_all();
  return base::Done{};
}

Outcome TargetDriver::on_cancel(Lane& lane, const FrameHeader& header) {
  const std::string reason = text_of(TRY(lane.receive_payload(header)));
  {
    const base::Lock lock(mutex_);
    error_ = "cancelled by the source: " + reason;
    TRY(advance_locked(TargetEvent::kCancelled));
  }
  return fail(ErrorKind::kRefused, "cancel", "cancelled by the source");
}

Outcome TargetDriver::send(FrameType type, std::span<const std::byte> payload) {
  FrameHeader header;
  header.type = type;
  return control()->send(header, payload);
}

// Everything that the source sent was read. Only now it is known whether the order was among it.
void TargetDriver::end_of_control(const base::Error& reason) {
  base::Error cause = reason;
  bool drop = false;
  {
    const base::Lock lock(mutex_);
    if (lane_error_.has_value() && lane_error_->kind != ErrorKind::kDisconnected) {
      cause = *lane_error_;
    }
    const bool told = std::exchange(link_, Link::kLost) == Link::kLost;  // By tl-watch.
    if (state_ == TargetState::kFailed && reason.kind == ErrorKind::kDisconnected &&
        reason.errno_value == 0) {
      told_never_ = true;  // Closed in order: the source has read to the end.
      changed_.notify_all();
    }
    if (state_ != TargetState::kCompleted && state_ != TargetState::kFailed && !shuts_out(state_)) {
      if (error_.empty()) {
        error_ = base::to_string(cause);
      }
      if (!told && !held_ && state_ != TargetState::kListening) {
        base::log(LogLevel::kWarning, "link.lost reason={}", base::to_string(cause));
      }
      drop = lose_locked();
    } else {
      drop = state_ == TargetState::kFailed;
    }
    never_ = never_ || drop;  // The tombstone, before anything is freed.
  }
  base::log(LogLevel::kInfo, "control.ended reason={}", base::to_string(cause));
  if (control()->lost_a_frame()) {
    note_overdue(drop ? "round-end" : "run", reason.detail);
  }
  if (drop && cause.kind == ErrorKind::kCorrupt) {
    tell_never(cause);
  }
  transfer_->lanes.finish_sending();
  if (cause.kind == ErrorKind::kCorrupt || drop) {
    transfer_->lanes.shutdown();
  }
  control()->shutdown();
  if (drop) {
    transfer_->lanes.join();  // Or a page that is being stored stays behind.
    transfer_->memory->discard();
  }
}

// The guest runs at the source, or is parked there, and its user is to know why.
void TargetDriver::tell_never(const base::Error& reason) {
  const std::string words = base::to_string(reason);
  const auto bounded = std::string_view(words).substr(0, wire::kMaxTextPayload);
  if (!send(FrameType::kNever, bytes_of(bounded)).ok()) {
    base::log_owner(LogLevel::kInfo, "never.unsent reason={}", "the source is gone");
  }
}

// True: what arrived is of no use. While the machine is being loaded the loss waits for its end.
bool TargetDriver::lose_locked() {
  if (state_ == TargetState::kLoading) {
    return false;
  }
  lingers_ = state_ == TargetState::kReceiving && order_possible_ && !ending_;
  const auto action = step_locked(TargetEvent::kLinkLost);
  if (lingers_) {
    linger_thread_ = base::NamedThread("tl-linger", [this] { linger(); });
  }
  return action.ok() && action.value() == TargetAction::kDropHalf;
}

// ---- from any thread of the migration -----------------------------------------------------------

void TargetDriver::on_lane_lost(const base::Error& reason) {
  bool still_moving = false;
  bool never = false;
  {
    const base::Lock lock(mutex_);
    if (reason.kind == ErrorKind::kOverloaded && state_ == TargetState::kReceiving && !never_) {
      // The guest runs at the source, and its user is to know why it stays there.
      never = true;
      never_ = true;
      error_ = base::to_string(reason);
    }
    still_moving = state_ != TargetState::kCompleted;
    if (still_moving && !lane_error_.has_value()) {
      lane_error_ = reason;
    }
  }
  if (!still_moving) {
    return;
  }
  if (never) {
    tell_never(reason);
  }
  // The source notices, closes, and tl-control reads its lane to the end.
  ::shutdown(control()->fd(), reason.kind == ErrorKind::kCorrupt ? SHUT_RDWR : SHUT_WR);
  transfer_->lanes.finish_sending();
}

void TargetDriver::on_progress() {
  // The guest's first steps may bring the last page: the source hears first that it runs.
  if (!told_running_ || published_.load()->map.missing().value != 0) {
    return;
  }
  {
    const base::Lock lock(mutex_);
    if (state_ != TargetState::kRunning && state_ != TargetState::kRunningAlone &&
        state_ != TargetState::kRunningRecovering && state_ != TargetState::kAbandoning) {
      return;
    }
    const auto action = step_locked(TargetEvent::kNothingMissing);
    ENSURE(action.ok() && action.value() == TargetAction::kFinish, "a full target is complete");
  }
  finish();
}

void TargetDriver::finish() {
  FrameHeader complete;
  complete.type = FrameType::kComplete;
  complete.count = layout_.pages().value;
  if (!control()->send(complete).ok()) {
    base::log(LogLevel::kInfo, "complete.unsent reason={}",
              "the source is gone; nothing is missing here");
  }
  const auto released = transfer_->memory->release();
  if (!released.ok()) {
    base::log(LogLevel::kWarning, "memory.release_failed reason={}",
              base::to_string(released.error()));
  }
}

Outcome TargetDriver::advance(TargetEvent event) {
  const base::Lock lock(mutex_);
  return advance_locked(event);
}

// For callers who know the rule's action and do it next.
Outcome TargetDriver::advance_locked(TargetEvent event) {
  auto stepped = step_locked(event);
  return stepped.ok() ? Outcome(base::Done{}) : Outcome(base::Err{std::move(stepped).error()});
}

base::Expected<TargetAction> TargetDriver::step_locked(TargetEvent event) {
  const TargetRule rule = TRY(runtime::step(state_, event));
  state_ = rule.to;
  if (rule.act == TargetAction::kNeverWill || rule.act == TargetAction::kDropHalf) {
    base::log_owner(LogLevel::kInfo, "guest.never event={}", to_string(event));
  }
  base::log(LogLevel::kInfo, "target.state from={} event={} to={}", to_string(rule.from),
            to_string(event), to_string(rule.to));
  if (is_final(status_of(state_))) {
    ended_ = clock_.now();
  }
  if (state_ == TargetState::kRunning) {
    alone_since_.reset();
  } else if (state_ == TargetState::kRunningAlone && !alone_since_.has_value()) {
    alone_since_ = clock_.now();
    tell_source_lost();
  }
  if (!lingers_) {
    show_locked();
  }
  changed_.notify_all();
  return rule.act;
}

void TargetDriver::show_locked() {
  const MigrationStatus status = status_of(state_);
  if (status != shown_) {
    shown_ = status;
    observer_.on_status(status);
  }
}

}  // namespace towline::runtime
