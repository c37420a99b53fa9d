// Signs of life at the target: tl-watch.
#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/link/link_device.h"
#include "runtime/target/driver.h"

namespace towline::runtime {
namespace {

using base::LogLevel;
using wire::FrameHeader;
using wire::FrameType;

}  // namespace

void TargetDriver::watch() {
  std::uint64_t epoch = 0;
  std::optional<LinkWatch> link;
  std::optional<LaneWatch> urgent;
  while (true) {
    std::shared_ptr<Lane> lane;
    {
      const base::Lock lock(mutex_);
      const base::Instant tick = clock_.now() + options_.heartbeat;
      [[maybe_unused]] const bool early = changed_.wait_until(mutex_, tick, [&]() UNDER_LOCK {
        return ending_ || is_final(shown_) || clock_.now() >= tick;
      });
      if (ending_ || is_final(shown_)) {
        return;
      }
      check_source_deadline();
      // While both ends compare, too: where the source takes signs of life then.
      const bool compares = link_ == Link::kComparing && control_->counts_frames();
      const bool judges = has_the_state(state_) && (link_ == Link::kTied || compares);
      if (judges) {
        lane = control_;
      } else {
        link.reset();
      }
    }
    if (lane == nullptr) {
      judge_markers();
      continue;
    }
    {
      const base::Lock lock(mutex_);
      if (!link.has_value() || epoch != control_hello_.epoch) {
        epoch = control_hello_.epoch;
        link.emplace(LinkWatch::Limits{.interval = options_.heartbeat,
                                       .patience = options_.patience,
                                       .frozen = options_.frozen_patience},
                     clock_.now());
        urgent.emplace(options_.heartbeat, options_.patience, clock_.now());
      }
    }
    if (!judge(*link, *urgent, *lane)) {
      lane->shutdown();
      transfer_->lanes.shutdown();
    }
  }
}

// False: the link is lost. A lane that is silent beside a control lane that is not is replaced.
bool TargetDriver::judge(LinkWatch& link, LaneWatch& urgent, Lane& control) {
  const base::Instant now = clock_.now();
  Receivers& lanes = transfer_->lanes;
  const auto of_control = unacknowledged_for(control.fd());
  const auto of_urgent = lanes.unacknowledged();
  const LinkVerdict verdict =
      link.look(now, LinkSigns{control.bytes_received() + lanes.bytes_received(),
                               std::max(of_control, of_urgent)});
  const bool urgent_dead = urgent.look(now, of_urgent);
  const auto waits = lanes.broken_for(now);
  const bool waits_in_vain = waits.has_value() && *waits >= options_.handshake_timeout;
  const std::string device =
      verdict == LinkVerdict::kDead ? device_trouble(control.fd()) : std::string();
  bool alive = verdict == LinkVerdict::kAlive && !waits_in_vain;
  {
    const base::Lock lock(mutex_);
    if (control_.get() != &control) {
      return true;  // Of an epoch that is over: the next one has its own signs.
    }
    const bool control_lives =
        link.hears() && of_control.value_or(base::Duration{}) < options_.patience;
    alive = alive ||
            (verdict == LinkVerdict::kDead && control_lives && replaces_lanes() && !waits_in_vain);
    if (!alive) {
      link_ = Link::kLost;
      error_ = waits_in_vain ? "a lane broke, and the source opens no other in its place"
                             : link.explain(verdict, device);
      base::log(LogLevel::kWarning, "link.lost reason={}", error_);
      return false;
    }
  }
  if (verdict == LinkVerdict::kDead && urgent_dead) {
    lanes.end_urgent(base::Error{base::ErrorKind::kDisconnected, 0, "watch", urgent.explain()});
  }
  FrameHeader beat;
  beat.type = FrameType::kBeat;
  if (control.counts_frames() && lanes.all_wait()) {
    beat.round = wire::kBeatIdle;
  }
  [[maybe_unused]] const auto sent = control.send_if_idle(beat);
  return true;
}

// Before the switch: a pass's marker that does not come, though the source has said behind it that
// the pass is over, and its lane brings nothing any more.
void TargetDriver::judge_markers() {
  const auto overdue = transfer_->lanes.overdue_marker(clock_.now(), options_.heartbeat);
  if (!overdue.has_value() || overdue->silent_for < options_.frozen_patience) {
    return;
  }
  const std::string what = fmt::format(
      "{} brings nothing since {} ms, and the marker of pass {} is due on it",
      to_string(overdue->lane),
      std::chrono::duration_cast<std::chrono::milliseconds>(overdue->silent_for).count(),
      overdue->pass);
  note_overdue("marker", what);
  transfer_->lanes.give_up_markers(what);
}

void TargetDriver::note_overdue(std::string_view awaited, const std::string& what) {
  const base::Lock lock(mutex_);
  overdue_ = fmt::format("{}: {}", awaited, what);
  base::log(LogLevel::kWarning, "progress.overdue answer={} state={} reason={}", awaited,
            to_string(state_), what);
}

}  // namespace towline::runtime
