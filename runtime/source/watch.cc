// Signs of life at the source: tl-watch.
#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
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

// Both ends give signs of life then, and judge each other by them.
bool is_tied_or_comparing(SourceState state) {
  return state == SourceState::kOrdered || state == SourceState::kServing ||
         state == SourceState::kOrderedRecovering || state == SourceState::kServingRecovering;
}

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
  bool target_idle = false;
  std::uint32_t urgent_attempt = 0;
};

void SourceDriver::watch() {
  std::optional<Watches> watches;
  while (true) {
    Lane* control = nullptr;
    const RequestServer* server = nullptr;
    const BulkSender* bulk = nullptr;
    {
      const base::Lock lock(mutex_);
      const base::Instant tick = clock_.now() + options_.heartbeat;
      [[maybe_unused]] const bool early = changed_.wait_until(mutex_, tick, [&]() UNDER_LOCK {
        return inbox_.leave || is_final(shown_) || clock_.now() >= tick;
      });
      if (inbox_.leave || is_final(shown_)) {
        return;
      }
      // While passes run the peer is not judged; a frame that was lost would be missed all the
      // same.
      const bool passing = state_ == SourceState::kPassing || state_ == SourceState::kSyncing;
      const bool asks =
          passing && control_ != nullptr && control_->counts_frames() && inbox_.pongs >= pings_;
      const bool judges = is_tied_or_comparing(state_) && control_ != nullptr;
      if (inbox_.lost.has_value() || !(asks || judges)) {
        watches.reset();
        continue;
      }
      watching_ = true;  // The lanes stay as long as that.
      control = control_.get();
      server = server_.get();
      bulk = bulk_.get();
      if (asks) {
        watches.reset();
        ++pings_;
      } else if (!watches.has_value() || watches->epoch != identity_.epoch) {
        watches.emplace(identity_.epoch, options_, clock_.now());
      }
      if (watches.has_value()) {
        watches->serving = state_ == SourceState::kServing;
        watches->may_replace = replaces_lanes_ && watches->serving;
        watches->target_idle = inbox_.target_idle;
        watches->urgent_attempt = urgent_attempt_;
      }
    }
    if (watches.has_value()) {
      judge(*watches, *control, server, bulk);
    } else {
      ping(*control);
    }
    const base::Lock lock(mutex_);
    watching_ = false;
    changed_.notify_all();
  }
}

// A lane that is silent alone is a lane's loss; with the control lane, the link's. In a recovery
// the data lanes are not there yet.
void SourceDriver::judge(Watches& watches, Lane& control, const RequestServer* server,
                         const BulkSender* bulk) {
  const base::Instant now = clock_.now();
  LinkWatch& link = watches.link;
  const auto of_control = unacknowledged_for(control.fd());
  const auto of_urgent = server != nullptr ? unacknowledged_for(server->fd()) : std::nullopt;
  const LinkVerdict verdict = link.look(
      now, LinkSigns{control.bytes_received() + (server != nullptr ? server->bytes_received() : 0),
                     std::max(of_control, of_urgent)});
  const bool control_lives =
      link.hears() && of_control.value_or(base::Duration{}) < options_.patience;
  const bool urgent_dead = watches.urgent.look(now, of_urgent);
  if (bulk != nullptr) {
    judge_lanes(watches, *bulk, control_lives);
  }
  if (verdict == LinkVerdict::kDead && control_lives && watches.may_replace) {
    if (urgent_dead) {
      lose_lane(LaneName{wire::LaneRole::kUrgent, 0}, watches.urgent_attempt,
                base::Error{ErrorKind::kDisconnected, 0, "watch", watches.urgent.explain()});
    }
  } else if (verdict != LinkVerdict::kAlive) {
    {
      const base::Lock lock(mutex_);
      inbox_.silent = true;
    }
    lose(base::Error{ErrorKind::kDisconnected, 0, "watch",
                     link.explain(verdict, device_trouble(control.fd()))});
    return;
  }
  if (const auto idle = idle_together(watches, control, server, bulk);
      idle.has_value() && *idle >= options_.frozen_patience) {
    const std::string what = fmt::format(
        "all is sent, the target misses pages, and both ends wait for each other since {} ms",
        std::chrono::duration_cast<std::chrono::milliseconds>(*idle).count());
    note_overdue(what);
    lose(base::Error{ErrorKind::kCorrupt, 0, "watch", what});
    return;
  }
  ping(control);
}

void SourceDriver::judge_lanes(Watches& watches, const BulkSender& bulk, bool control_lives) {
  const auto lanes = bulk.glance();
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const bool dead = watches.bulk[i].look(clock_.now(), lanes[i].unacknowledged);
    if (!watches.may_replace || !control_lives || !(dead || lanes[i].ended)) {
      continue;
    }
    const LaneName lane{wire::LaneRole::kBulk, static_cast<std::uint8_t>(i)};
    lose_lane(lane, lanes[i].attempt,
              base::Error{ErrorKind::kDisconnected, 0, "watch",
                          lanes[i].ended ? "it was closed or reset" : watches.bulk[i].explain()});
  }
}

// How long nobody does anything: all is pushed, answered and acknowledged here, each receiver over
// there waits and says so, and it is not complete. A target that is busy, with room for a page or
// whatever else, has a receiver that does not wait. What is told is at most one beat old.
std::optional<base::Duration> SourceDriver::idle_together(Watches& watches, const Lane& control,
                                                          const RequestServer* server,
                                                          const BulkSender* bulk) {
  bool idle = watches.serving && watches.target_idle && control.counts_frames() &&
              server != nullptr && bulk != nullptr && server->waits() &&
              !unacknowledged_for(server->fd()).has_value();
  if (idle) {
    const auto lanes = bulk->glance();
    idle = std::all_of(lanes.begin(), lanes.end(), [](const BulkSender::Glance& lane) {
      return lane.waits && !lane.unacknowledged.has_value();
    });
  }
  const std::uint64_t moved =
      server != nullptr ? server->bytes_received() + server->bytes_sent() : 0;
  const base::Instant now = clock_.now();
  const bool late = now - watches.looked > options_.heartbeat * 2;
  watches.looked = now;
  if (!idle || late || moved != watches.moved) {
    watches.moved = moved;
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

void SourceDriver::note_overdue(const std::string& what) {
  const base::Lock lock(mutex_);
  overdue_ = fmt::format("{}: {}", awaited(), what);
  base::log(LogLevel::kWarning, "progress.overdue answer={} state={} reason={}", awaited(),
            to_string(state_), what);
}

// The answer without which this state does not end.
std::string_view SourceDriver::awaited() const {
  switch (state_) {
    case SourceState::kConnecting:
    case SourceState::kDescribing:
      return "accept";
    case SourceState::kPassing:
    case SourceState::kSyncing:
    case SourceState::kSwitching:
      return "stale-applied";
    case SourceState::kOrdered:
    case SourceState::kOrderedPaused:
      return "running";
    case SourceState::kServing:
    case SourceState::kServingPaused:
      return "complete";
    case SourceState::kOrderedReconnecting:
    case SourceState::kServingReconnecting:
    case SourceState::kOrderedRecovering:
    case SourceState::kServingRecovering:
      return "missing-end";
    case SourceState::kCompleted:
    case SourceState::kFailed:
    case SourceState::kCancelled:
      return "none";
  }
  __builtin_unreachable();
}

}  // namespace towline::runtime
