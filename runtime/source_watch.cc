// Signs of life at the source: tl-watch.
#include <algorithm>

#include "runtime/link_device.h"
#include "runtime/source_driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
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
  // As of this look.
  bool may_replace = false;
  std::uint32_t urgent_attempt = 0;
};

void SourceDriver::watch() {
  std::optional<Watches> watches;
  while (true) {
    {
      const base::Lock lock(mutex_);
      const base::Instant tick = clock_.now() + options_.heartbeat;
      [[maybe_unused]] const bool early = changed_.wait_until(mutex_, tick, [&]() UNDER_LOCK {
        return inbox_.leave || is_final(shown_) || clock_.now() >= tick;
      });
      if (inbox_.leave || is_final(shown_)) {
        return;
      }
      const bool tied = state_ == SourceState::kOrdered || state_ == SourceState::kServing;
      if (!tied || inbox_.lost.has_value() || control_ == nullptr || server_ == nullptr) {
        watches.reset();
        continue;
      }
      watching_ = true;  // The lanes stay as long as that.
      if (!watches.has_value() || watches->epoch != identity_.epoch) {
        watches.emplace(identity_.epoch, options_, clock_.now());
      }
      watches->may_replace = replaces_lanes_ && state_ == SourceState::kServing;
      watches->urgent_attempt = urgent_attempt_;
    }
    judge(*watches, *control_, *server_, *bulk_);
    const base::Lock lock(mutex_);
    watching_ = false;
    changed_.notify_all();
  }
}

// A lane that is silent alone is a lane's loss; with the control lane, the link's.
void SourceDriver::judge(Watches& watches, Lane& control, const PageServer& server,
                         const BulkSender& bulk) {
  const base::Instant now = clock_.now();
  LinkWatch& link = watches.link;
  const auto of_control = unacknowledged_for(control.fd());
  const auto of_urgent = unacknowledged_for(server.fd());
  const LinkVerdict verdict =
      link.look(now, LinkSigns{control.bytes_received() + server.bytes_received(),
                               std::max(of_control, of_urgent)});
  const bool control_lives =
      link.hears() && of_control.value_or(base::Duration{}) < options_.patience;
  const bool urgent_dead = watches.urgent.look(now, of_urgent);
  const auto lanes = bulk.glance();
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const bool dead = watches.bulk[i].look(now, lanes[i].unacknowledged);
    if (!watches.may_replace || !control_lives || !(dead || lanes[i].ended)) {
      continue;
    }
    const LaneName lane{wire::LaneRole::kBulk, static_cast<std::uint8_t>(i)};
    lose_lane(lane, lanes[i].attempt,
              base::Error{ErrorKind::kDisconnected, 0, "watch",
                          lanes[i].ended ? "it was closed or reset" : watches.bulk[i].explain()});
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
  const auto sent_at = base::to_ns(now);
  FrameHeader ping;
  ping.type = FrameType::kPing;
  // Behind a flight that the network does not take, this thread would wait as long as that does.
  [[maybe_unused]] const auto sent =
      control.send_if_idle(ping, std::as_bytes(std::span(&sent_at, 1)));
}

}  // namespace towline::runtime
