// Signs of life at the source: tl-watch.
#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/core/link_watch.h"
#include "runtime/link/link_device.h"
#include "runtime/source/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::LogLevel;
using wire::FrameHeader;
using wire::FrameType;

// Bulk lanes wait longer than the link: they are full, and nobody waits for what they carry.
constexpr int kBulkPatience = 4;

}  // namespace

struct SourceDriver::Watches {
  Watches(std::uint64_t epoch_now, const MigrationOptions& options, base::Instant now)
      : epoch(epoch_now),
        link(LinkWatch::Limits{.interval = options.heartbeat,
                               .patience = options.patience,
                               .frozen = options.frozen_patience},
             now),
        urgent(options.heartbeat, options.patience, now),
        bulk(options.bulk_lanes,
             LaneWatch(options.heartbeat, options.patience * kBulkPatience, now)) {}

  std::uint64_t epoch;
  LinkWatch link;
  LaneWatch urgent;
  std::vector<LaneWatch> bulk;
  std::optional<base::Instant> idle_since;  // Both ends wait for each other.
  base::Instant looked{};                   // At that, last.
  std::uint64_t moved = 0;                  // Bytes of the urgent lane, then.
  // As of this look.
  bool may_replace = false;
  bool serving = false;
  bool ordered = false;  // Nothing is pushed yet; what the loading machine asks for is answered.
  bool target_idle = false;
  std::uint32_t urgent_attempt = 0;
};

void SourceDriver::watch() {
  std::optional<Watches> watches;
  while (true) {
    SourceEpoch::Glance seen;
    {
      const base::Lock lock(mutex_);
      const base::Instant tick = clock_.now() + options_.heartbeat;
      const auto over = [this]() UNDER_LOCK {
        return brain_.wants_to_leave() || is_final(brain_.shown());
      };
      changed_.wait_until(mutex_, tick,
                          [&]() UNDER_LOCK { return over() || clock_.now() >= tick; });
      if (over()) {
        return;
      }
      if (brain_.owes_status(clock_.now())) {
        [[maybe_unused]] const auto told = feed_locked({.kind = SourceInput::Kind::kTime});
      }
      // While passes run the peer is not judged; a frame that was lost would be missed all the
      // same.
      const bool asks = brain_.in_pass() && epoch_ != nullptr &&
                        epoch_->control()->counts_frames() &&
                        statistics_.pongs >= statistics_.pings;
      const bool judges = brain_.is_watched() && epoch_ != nullptr;
      if (brain_.link_lost() || !(asks || judges)) {
        watches.reset();
        continue;
      }
      seen = epoch_->glance();
      if (asks) {
        watches.reset();
        ++statistics_.pings;
      } else if (!watches.has_value() || watches->epoch != seen.epoch) {
        watches.emplace(seen.epoch, options_, clock_.now());
      }
      if (watches.has_value()) {
        watches->serving = brain_.state() == SourceState::kServing;
        watches->ordered = brain_.state() == SourceState::kOrdered;
        watches->may_replace = brain_.may_replace();
        watches->target_idle = brain_.target_idle();
        watches->urgent_attempt = brain_.attempt_in_use({wire::LaneRole::kUrgent, 0});
      }
    }
    if (watches.has_value()) {
      judge(*watches, seen);
    } else {
      ping(*seen.control);
    }
  }
}

// A lane that is silent alone is a lane's loss; with the control lane, the link's. In a recovery
// the data lanes are not there yet.
void SourceDriver::judge(Watches& watches, const SourceEpoch::Glance& seen) {
  const base::Instant now = clock_.now();
  LinkWatch& link = watches.link;
  const LinkVerdict verdict =
      link.look(now, LinkSigns{seen.bytes_received, std::max(seen.of_control, seen.of_urgent)});
  const bool control_lives =
      link.hears() && seen.of_control.value_or(base::Duration{}) < options_.patience;
  const bool urgent_dead = watches.urgent.look(now, seen.of_urgent);
  judge_lanes(watches, seen, control_lives);
  if (verdict == LinkVerdict::kDead && control_lives && watches.may_replace) {
    if (urgent_dead) {
      lose_lane(LaneName{wire::LaneRole::kUrgent, 0}, watches.urgent_attempt, seen.epoch,
                base::Error{ErrorKind::kDisconnected, 0, "watch", watches.urgent.explain()});
    }
  } else if (verdict != LinkVerdict::kAlive) {
    return lose(seen.epoch, true,
                base::Error{ErrorKind::kDisconnected, 0, "watch",
                            link.explain(verdict, device_trouble(seen.control->fd()))});
  }
  if (const auto idle = idle_together(watches, seen);
      idle.has_value() && *idle >= options_.frozen_patience) {
    const std::string what = fmt::format(
        "all is sent, the target misses pages, and both ends wait for each other since {} ms",
        std::chrono::duration_cast<std::chrono::milliseconds>(*idle).count());
    note_overdue(what);
    return lose(seen.epoch, false, base::Error{ErrorKind::kCorrupt, 0, "watch", what});
  }
  ping(*seen.control);
}

void SourceDriver::judge_lanes(Watches& watches, const SourceEpoch::Glance& seen,
                               bool control_lives) {
  for (std::size_t i = 0; i < seen.bulk.size(); ++i) {
    const BulkSender::Glance& one = seen.bulk[i];
    const bool dead = watches.bulk[i].look(clock_.now(), one.unacknowledged);
    if (!watches.may_replace || !control_lives || !(dead || one.ended)) {
      continue;
    }
    lose_lane(LaneName{wire::LaneRole::kBulk, static_cast<std::uint8_t>(i)}, one.attempt,
              seen.epoch,
              base::Error{ErrorKind::kDisconnected, 0, "watch",
                          one.ended ? "it was closed or reset" : watches.bulk[i].explain()});
  }
}

// How long nobody does anything: all that may be is pushed, answered and acknowledged here, each
// receiver over there waits and says so, and it is not complete. Before the push the target says so
// only if somebody waits for a page. A target that is busy, with room for a page or
// whatever else, has a receiver that does not wait. What is told is at most one beat old.
std::optional<base::Duration> SourceDriver::idle_together(Watches& watches,
                                                          const SourceEpoch::Glance& seen) const {
  const bool pushed =
      watches.ordered ||
      (watches.serving &&
       std::all_of(seen.bulk.begin(), seen.bulk.end(), [](const BulkSender::Glance& lane) {
         return lane.waits && !lane.unacknowledged.has_value();
       }));
  const bool idle = pushed && watches.target_idle && seen.open && seen.urgent_waits &&
                    !seen.of_urgent.has_value();
  const base::Instant now = clock_.now();
  const bool late = now - watches.looked > options_.heartbeat * 2;
  watches.looked = now;
  if (!idle || late || seen.urgent_bytes != watches.moved) {
    watches.moved = seen.urgent_bytes;
    watches.idle_since.reset();
    return std::nullopt;
  }
  if (!watches.idle_since.has_value()) {
    watches.idle_since = now;
  }
  return now - *watches.idle_since;
}

void SourceDriver::ping(Lane& control) const {
  const auto sent_at = base::to_ns(clock_.now());
  FrameHeader sign;
  sign.type = FrameType::kPing;
  // Behind a flight that the network does not take, this thread would wait as long as that does.
  [[maybe_unused]] const auto sent =
      control.send_if_idle(sign, std::as_bytes(std::span(&sent_at, 1)));
}

// What was seen of one epoch is of no interest to the next.
void SourceDriver::lose(std::uint64_t epoch, bool silent, const base::Error& reason) {
  [[maybe_unused]] const auto told =
      feed({.kind = SourceInput::Kind::kLinkLost, .error = reason, .epoch = epoch, .flag = silent});
}

void SourceDriver::lose_lane(LaneName lane, std::uint32_t attempt, std::uint64_t epoch,
                             const base::Error& reason) {
  [[maybe_unused]] const auto told = feed({.kind = SourceInput::Kind::kLaneBroken,
                                           .error = reason,
                                           .lane = lane,
                                           .epoch = epoch,
                                           .attempt = attempt});
}

void SourceDriver::note_overdue(const std::string& what) {
  const base::Lock lock(mutex_);
  statistics_.overdue = fmt::format("{}: {}", brain_.awaited(), what);
  base::log(LogLevel::kWarning, "progress.overdue answer={} state={} reason={}", brain_.awaited(),
            to_string(brain_.state()), what);
}

}  // namespace towline::runtime
