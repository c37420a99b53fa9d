// Signs of life at the target, and the time: tl-watch looks, the brain judges.
#include <algorithm>

#include "base/log.h"
#include "runtime/link/link_device.h"
#include "runtime/target/driver.h"

namespace towline::runtime {
namespace {

using wire::FrameHeader;
using wire::FrameType;

}  // namespace

void TargetDriver::watch() {
  std::uint64_t seen = 0;
  std::optional<LinkWatch> link;
  std::optional<LaneWatch> urgent;
  while (true) {
    std::shared_ptr<Lane> lane;
    std::uint64_t epoch = 0;
    bool alone = false;
    {
      const base::Lock lock(mutex_);
      const base::Instant tick = clock_.now() + options_.heartbeat;
      [[maybe_unused]] const bool early = changed_.wait_until(mutex_, tick, [&]() UNDER_LOCK {
        return brain_.watch_is_over() || clock_.now() >= tick;
      });
      if (brain_.watch_is_over()) {
        return;
      }
      alone = brain_.counts_time_alone() || brain_.owes_status(clock_.now());
      epoch = brain_.epoch();
      lane = brain_.is_watched() ? control_ : nullptr;
    }
    if (alone) {
      [[maybe_unused]] const auto fed =
          feed({.kind = TargetInput::Kind::kTime, .flag = room().ok()});
    }
    if (lane == nullptr) {
      link.reset();
      judge_markers();
      continue;
    }
    if (!link.has_value() || epoch != seen) {
      seen = epoch;
      link.emplace(LinkWatch::Limits{.interval = options_.heartbeat,
                                     .patience = options_.patience,
                                     .frozen = options_.frozen_patience},
                   clock_.now());
      urgent.emplace(options_.heartbeat, options_.patience, clock_.now());
    }
    judge(*link, *urgent, *lane, epoch);
  }
}

void TargetDriver::judge(LinkWatch& link, LaneWatch& urgent, Lane& control, std::uint64_t epoch) {
  const base::Instant now = clock_.now();
  Receivers& lanes = transfer_->lanes;
  const auto of_control = unacknowledged_for(control.fd());
  const auto of_urgent = lanes.unacknowledged();
  TargetSigns signs;
  signs.verdict = link.look(now, LinkSigns{control.bytes_received() + lanes.bytes_received(),
                                           std::max(of_control, of_urgent)});
  signs.urgent_dead = urgent.look(now, of_urgent);
  signs.hears = link.hears();
  signs.control_unacknowledged = of_control.value_or(base::Duration{});
  signs.words =
      link.explain(signs.verdict, signs.verdict == LinkVerdict::kDead ? device_trouble(control.fd())
                                                                      : std::string());
  signs.urgent_words = urgent.explain();
  const auto fed =
      feed({.kind = TargetInput::Kind::kSigns, .signs = std::move(signs), .epoch = epoch});
  bool entered = false;
  {
    const base::Lock lock(mutex_);
    if (!fed.ok() || !brain_.is_watched()) {
      return;  // It is lost, or its epoch is over.
    }
    entered = brain_.entered_at().has_value();
  }
  // Until the guest runs, a machine that is being loaded may keep the lanes idle for long; only who
  // waits for a page waits for the source.
  const bool waits = entered || transfer_->requests.size() != 0;
  FrameHeader beat;
  beat.type = FrameType::kBeat;
  if (control.counts_frames() && waits && lanes.all_wait()) {
    beat.round = wire::kBeatIdle;
  }
  [[maybe_unused]] const auto sent = control.send_if_idle(beat);
}

// Before the switch.
void TargetDriver::judge_markers() {
  const auto overdue = transfer_->lanes.overdue_marker(clock_.now(), options_.heartbeat);
  if (overdue.has_value()) {
    [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kMarkerSilent,
                                            .lane = overdue->lane,
                                            .number = overdue->pass,
                                            .silent = overdue->silent_for});
  }
}

}  // namespace towline::runtime
