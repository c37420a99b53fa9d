// What the source decides while it pushes, and when one data lane is lost alone: a new one in its
// place.
#include <fmt/format.h>

#include "base/ensure.h"
#include "runtime/core/source_protocol.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;

// Tries at one loss. Guess: whatever is not back by then is the link's loss.
constexpr int kMostTries = 3;
// Guess: far more than a round trip; the control lane is alive.
constexpr std::chrono::milliseconds kPatience{500};
// So many in one epoch: lanes that break again and again are a matter for the next one, which
// waits longer every time.
constexpr std::uint32_t kMostAttempts = 1000;

}  // namespace

void SourceProtocol::lose(const base::Error& reason) {
  if (!link_.lost.has_value()) {
    link_.lost = reason;
    // When the target has all or has said no, or this end's user did, it closes as agreed.
    SourceEffect& lost = emit(SourceEffect::Kind::kLinkLost);
    lost.flag = complete_ || never_.has_value() || link_.refused.has_value() || cancel_ || held_ ||
                leave_ || is_final(status_of(state_));
    lost.text = base::to_string(reason);
  }
  if (lanes_open_ && before_order(state_)) {
    emit(SourceEffect::Kind::kStopPass);  // It may be blocked on a lane that nobody reads.
  }
  emit(SourceEffect::Kind::kEndWaiting);  // No lane of this epoch is of use any more.
  if (task_.has_value() && task_->kind == SourceTask::Kind::kSendFlight) {
    // Its sender may be blocked in it. What the target said is read on.
    emit(SourceEffect::Kind::kEndFlight);
  }
}

// After the switch one lane may be lost alone. Before it a pass's marker speaks for the frames of
// its own lane; two lanes are more than chance.
void SourceProtocol::lose_lane(LaneName lane, std::uint32_t attempt, const base::Error& reason) {
  if (!may_replace() || !is_of_the_lane(reason)) {
    return lose(reason);
  }
  if (link_.lost.has_value() || complete_ || attempt < attempt_of(lane)) {
    return;  // Of no interest any more; or of a lane that was replaced meanwhile.
  }
  for (BrokenLane& known : link_.broken) {
    if (known.lane == lane) {
      if (attempt > known.attempt) {  // The one that was to take its place broke too.
        known.attempt = attempt;
        known.reason = reason;
      }
      return;
    }
  }
  SourceEffect& lost = emit(SourceEffect::Kind::kLaneLost);
  lost.lane = lane;
  lost.attempt = attempt;
  lost.text = base::to_string(reason);
  link_.broken.push_back(BrokenLane{lane, attempt, reason});
  if (link_.broken.size() > 1) {
    lose(reason);
  }
}

std::uint32_t& SourceProtocol::attempt_of(LaneName lane) {
  return lane.role == wire::LaneRole::kBulk ? link_.bulk_attempts.at(lane.number)
                                            : link_.urgent_attempt;
}

std::uint32_t SourceProtocol::attempt_in_use(LaneName lane) const {
  return lane.role == wire::LaneRole::kBulk ? link_.bulk_attempts.at(lane.number)
                                            : link_.urgent_attempt;
}

bool SourceProtocol::advance_push() {
  using Kind = SourceTask::Kind;
  if (wait_ == Wait::kRunning && running_at_ns_.has_value()) {
    give({.kind = Kind::kStartPush});
    return true;
  }
  if (wait_ == Wait::kPushed && complete_) {
    give({.kind = Kind::kFinish});
    return true;
  }
  if (wait_ == Wait::kLaneMissing) {
    const std::uint32_t attempt = link_.last_attempt;
    if (link_.missing_attempt == attempt) {
      give({.kind = Kind::kPutInPlace, .lane = link_.broken.front().lane, .attempt = attempt});
      return true;
    }
    if (late() || complete_ || leave_ || !interrupted().ok() ||
        link_.broken.front().attempt >= attempt) {
      not_replaced("the target did not say what it misses");
      return true;
    }
    return false;
  }
  if (!proceed()) {
    return true;
  }
  if (wait_ == Wait::kPushed && !link_.broken.empty()) {
    tries_ = 0;
    last_try_.clear();
    // Whatever was sent on it was sent before the target is greeted: it arrives before the target's
    // fence, or never.
    give({.kind = Kind::kEndLane, .lane = link_.broken.front().lane});
    return true;
  }
  return false;
}

void SourceProtocol::next_try() {
  if (complete_) {
    return wait_for(Wait::kPushed);
  }
  if (!proceed()) {
    return;
  }
  if (tries_ == kMostTries) {
    return fail_replacement();
  }
  if (link_.last_attempt == kMostAttempts) {
    last_try_ = "it was replaced too often";
    return fail_replacement();
  }
  ++tries_;
  ++link_.last_attempt;
  give({.kind = SourceTask::Kind::kOpenInPlace,
        .at = target_,
        .lane = link_.broken.front().lane,
        .attempt = link_.last_attempt,
        .patience = kPatience * tries_});
}

// For a bulk lane, first what the target misses is owed: of what the old lane carried nobody else
// knows what arrived.
void SourceProtocol::on_opened_in_place(const SourceTask& task) {
  if (task.lane.role == wire::LaneRole::kBulk) {
    return wait_for(Wait::kLaneMissing, options_.handshake_timeout);
  }
  give({.kind = SourceTask::Kind::kPutInPlace, .lane = task.lane, .attempt = task.attempt});
}

void SourceProtocol::not_replaced(const std::string& reason) {
  last_try_ = reason;
  SourceEffect& failed = emit(SourceEffect::Kind::kLaneNotReplaced);
  failed.lane = link_.broken.front().lane;
  failed.attempt = link_.last_attempt;
  failed.text = reason;
  next_try();
}

// An error ends the epoch; the next one has all lanes anew.
void SourceProtocol::fail_replacement() {
  const BrokenLane& broken = link_.broken.front();
  end(base::Error{ErrorKind::kDisconnected, 0, "replace lane",
                  fmt::format("{} broke ({}) and could not be replaced: {}", to_string(broken.lane),
                              base::to_string(broken.reason), last_try_)});
}

void SourceProtocol::on_put_in_place(const SourceTask& task) {
  const BrokenLane& broken = link_.broken.front();
  ENSURE(broken.lane == task.lane, "one lane is replaced at a time");
  SourceEffect& replaced = emit(SourceEffect::Kind::kLaneReplaced);
  replaced.lane = task.lane;
  replaced.attempt = task.attempt;
  replaced.text = base::to_string(broken.reason);
  attempt_of(task.lane) = task.attempt;
  ++lanes_replaced_;
  if (broken.attempt < task.attempt) {
    link_.broken.erase(link_.broken.begin());
  }
  wait_for(Wait::kPushed);
}

}  // namespace towline::runtime
