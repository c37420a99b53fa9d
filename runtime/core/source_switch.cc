// What the source decides until the run order: description, passes, rounds, and when to switch.
#include <fmt/format.h>

#include "runtime/core/source_protocol.h"
#include "runtime/wire/format.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;

// While the user has not asked for the switch, the stale sets keep up at this pace.
constexpr std::chrono::milliseconds kManualSyncPause{100};

}  // namespace

void SourceProtocol::note_opened(const SourceInput& input) {
  link_.control_open = true;
  link_.replaces_lanes = (input.features & wire::kFeatureReplaceLane) != 0;
  link_.counts_frames = (input.features & wire::kFeatureCountFrames) != 0;
}

void SourceProtocol::on_opened(const SourceInput& input) {
  note_opened(input);
  target_incarnation_ = input.number;
  waits_for_room_ = (input.features & wire::kFeatureWaitForRoom) != 0;
  if (proceed()) {
    emit(SourceEffect::Kind::kReadControl);
    step(SourceEvent::kLanesReady);
  }
}

void SourceProtocol::on_lanes_open() {
  lanes_open_ = true;
  if (switch_asked_) {
    emit(SourceEffect::Kind::kCutPass);
  }
  if (proceed()) {
    give({.kind = SourceTask::Kind::kFindPageServer});
  }
}

void SourceProtocol::begin_pass() {
  if (options_.passes != 0 && options_.switch_policy != SwitchPolicy::kImmediate) {
    return give({.kind = SourceTask::Kind::kBeginLog});
  }
  emit(SourceEffect::Kind::kOweAll);
  step(SourceEvent::kPassesDone);
}

void SourceProtocol::run_pass(std::uint32_t pass) {
  give({.kind = SourceTask::Kind::kRunPass, .pass = pass});
}

void SourceProtocol::on_pass(std::uint32_t pass, bool cut) {
  passes_done_ = pass;
  if (pass < options_.passes && !cut) {
    return send_round(false);
  }
  after_pass();
}

void SourceProtocol::after_pass() {
  if (!proceed()) {
    return;
  }
  if (switch_asked_ || passes_done_ >= options_.passes) {
    return step(SourceEvent::kPassesDone);
  }
  run_pass(passes_done_ + 1);
}

// Bitmaps only, until the user wants the switch and what is left fits the pause.
void SourceProtocol::begin_sync() {
  if (has_rounds_) {
    return send_round(false);
  }
  wait_for(Wait::kSwitchWord);
}

void SourceProtocol::send_round(bool after_pause) {
  rounds_expected_ = rounds_applied_ + 1;
  if (state_ == SourceState::kSyncing && wants_switch() && !wanted_since_.has_value()) {
    wanted_since_ = now_;
  }
  give({.kind = SourceTask::Kind::kSendRound, .pass = passes_done_, .flag = after_pause});
}

bool SourceProtocol::wants_switch() const {
  return options_.switch_policy != SwitchPolicy::kManual || switch_asked_;
}

void SourceProtocol::after_round() {
  if (state_ == SourceState::kPassing) {
    return after_pass();
  }
  if (!wants_switch()) {
    return wait_for(Wait::kManualPause, kManualSyncPause);
  }
  wanted_since_ = wanted_since_.value_or(now_);
  if (last_round_ <= options_.switch_page_budget || now_ - *wanted_since_ >= options_.switch_wait) {
    return step(SourceEvent::kSwitchNow);
  }
  send_round(false);
}

// Its manager may want to do something with the guest that stands still, and still in its place.
void SourceProtocol::on_parked() {
  if (!options_.pause_before_switchover) {
    return prepare_flight();
  }
  wait_for(Wait::kSwitchover);
  show(status_at(now_));
}

void SourceProtocol::prepare_flight() {
  continued_ = true;
  give({.kind = SourceTask::Kind::kPrepareFlight});
  show(status_at(now_));
}

bool SourceProtocol::advance_to_switch() {
  if (wait_ == Wait::kAccept && accepted_) {
    give({.kind = SourceTask::Kind::kOpenLanes, .at = target_});
    return true;
  }
  // A target that waits for room has not applied it either; nothing goes on by its word alone.
  if (wait_ == Wait::kRoundApplied && rounds_applied_ >= rounds_expected_ &&
      !no_room_.has_value()) {
    after_round();
    return true;
  }
  if (!proceed()) {
    return true;
  }
  if (wait_ == Wait::kSwitchover && continued_) {
    prepare_flight();
    return true;
  }
  if (wait_ == Wait::kSwitchWord && wants_switch()) {
    step(SourceEvent::kSwitchNow);
    return true;
  }
  if (wait_ == Wait::kManualPause && (switch_asked_ || late())) {
    send_round(!switch_asked_ || late());
    return true;
  }
  if (wait_ == Wait::kAccept && late()) {
    end(silent_error());
    return true;
  }
  return false;
}

base::Error SourceProtocol::silent_error() const {
  return base::Error{ErrorKind::kDisconnected, 0, "handshake",
                     fmt::format("'{}' is silent since {} ms; is the target alive?",
                                 target_.to_string(), options_.handshake_timeout.count())};
}

}  // namespace towline::runtime
