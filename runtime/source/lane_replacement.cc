// What the source does when one data lane is lost alone after the switch: a new one in its place.
#include <sys/socket.h>

#include <utility>

#include <fmt/format.h>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/source/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using wire::FrameHeader;
using wire::LaneRole;

// Tries at one loss. Guess: whatever is not back by then is the link's loss.
constexpr int kMostTries = 3;
// Guess: far more than a round trip; the control lane is alive.
constexpr std::chrono::milliseconds kPatience{500};
// So many in one epoch: lanes that break again and again are a matter for the next one, which
// waits longer every time.
constexpr std::uint32_t kMostAttempts = 1000;

bool is_of_the_lane(const base::Error& reason) {
  return reason.kind == ErrorKind::kDisconnected || reason.kind == ErrorKind::kCorrupt;
}

}  // namespace

// ---- from any thread ----------------------------------------------------------------------------

void SourceDriver::lose_lane(LaneName lane, std::uint32_t attempt, const base::Error& reason) {
  const base::Lock lock(mutex_);
  lose_lane_locked(lane, attempt, reason);
}

// After the switch one lane may be lost alone. Before it a pass's marker speaks for the frames of
// its own lane; two lanes are more than chance.
void SourceDriver::lose_lane_locked(LaneName lane, std::uint32_t attempt,
                                    const base::Error& reason) {
  if (state_ != SourceState::kServing || !replaces_lanes_ || !is_of_the_lane(reason)) {
    return lose_locked(reason);
  }
  if (inbox_.lost.has_value() || inbox_.complete || attempt < attempt_of(lane)) {
    return;  // Of no interest any more; or of a lane that was replaced meanwhile.
  }
  for (SourceInbox::BrokenLane& known : inbox_.broken) {
    if (known.lane == lane) {
      if (attempt > known.attempt) {  // The one that was to take its place broke too.
        known.attempt = attempt;
        known.reason = reason;
        changed_.notify_all();
      }
      return;
    }
  }
  base::log(LogLevel::kInfo, "lane.lost lane={} attempt={} reason={}", to_string(lane), attempt,
            base::to_string(reason));
  inbox_.broken.push_back(SourceInbox::BrokenLane{lane, attempt, reason});
  if (inbox_.broken.size() > 1) {
    return lose_locked(reason);
  }
  changed_.notify_all();
}

Outcome SourceDriver::on_lane_lost(const FrameHeader& header, std::span<const std::byte> payload) {
  const auto lane = lane_of_code(header.first);
  if (!lane.has_value() || before_order(state_) ||
      (lane->role == LaneRole::kBulk && lane->number >= options_.bulk_lanes)) {
    return fail(ErrorKind::kCorrupt, "control frame",
                fmt::format("a lane is lost that there is not: {:#x}", header.first));
  }
  lose_lane_locked(*lane, header.round,
                   base::Error{ErrorKind::kDisconnected, 0, "lane",
                               fmt::format("the target lost it: {}", text_of(payload))});
  return base::Done{};
}

std::uint32_t& SourceDriver::attempt_of(LaneName lane) {
  return lane.role == LaneRole::kBulk ? bulk_attempts_.at(lane.number) : urgent_attempt_;
}

// ---- on tl-source -------------------------------------------------------------------------------

std::unique_ptr<RequestServer> SourceDriver::serve(std::unique_ptr<Lane> urgent,
                                                   std::uint32_t attempt) {
  return std::make_unique<RequestServer>(
      std::move(urgent), memory_, owed_, *order_, counters_,
      [this, attempt](const base::Error& reason) {
        lose_lane(LaneName{LaneRole::kUrgent, 0}, attempt, reason);
      });
}

Outcome SourceDriver::replace_lanes_until(const std::function<bool()>& done) {
  while (true) {
    TRY(await([&]() UNDER_LOCK { return done() || !inbox_.broken.empty(); }));
    std::optional<SourceInbox::BrokenLane> broken;
    {
      const base::Lock lock(mutex_);
      if (done()) {
        return base::Done{};
      }
      TRY(interrupted());
      broken = inbox_.broken.front();
    }
    TRY(replace_lane(*broken));
  }
}

// An error ends the epoch; the next one has all lanes anew.
Outcome SourceDriver::replace_lane(const SourceInbox::BrokenLane& broken) {
  // Whatever was sent on it was sent before the target is greeted: it arrives before the target's
  // fence, or never.
  end_lane(broken.lane);
  std::string last;
  for (int tries = 1; tries <= kMostTries; ++tries) {
    std::uint32_t attempt = 0;
    {
      const base::Lock lock(mutex_);
      TRY(interrupted());
      if (inbox_.complete) {
        return base::Done{};
      }
      if (last_attempt_ == kMostAttempts) {
        last = "it was replaced too often";
        break;
      }
      attempt = ++last_attempt_;
    }
    auto opened = open_in_place(broken, attempt, kPatience * tries);
    if (opened.ok()) {
      return put_in_place(broken.lane, attempt, std::move(opened).value());
    }
    last = base::to_string(opened.error());
    base::log(LogLevel::kInfo, "lane.not_replaced lane={} attempt={} reason={}",
              to_string(broken.lane), attempt, last);
  }
  return fail(ErrorKind::kDisconnected, "replace lane",
              fmt::format("{} broke ({}) and could not be replaced: {}", to_string(broken.lane),
                          base::to_string(broken.reason), last));
}

// The new lane; for a bulk lane, when what the target misses is owed: of what the old lane carried
// nobody else knows what arrived.
base::Expected<std::unique_ptr<Lane>> SourceDriver::open_in_place(
    const SourceInbox::BrokenLane& broken, std::uint32_t attempt,
    std::chrono::milliseconds patience) {
  LaneIdentity proven = identity_;
  proven.secret = session_secret_;
  proven.attempt = attempt;
  MigrationOptions options;
  options.connect_timeout = std::min(options_.connect_timeout, patience);
  options.handshake_timeout = std::min(options_.handshake_timeout, patience);
  auto opened = TRY(open_lane(target_, options, proven, broken.lane.role, broken.lane.number,
                              [this](int fd, bool waits) { note_waiting_on(fd, waits); }));
  if (broken.lane.role != LaneRole::kBulk) {
    return std::move(opened.lane);
  }
  const base::Lock lock(mutex_);
  const base::Instant deadline = clock_.now() + options_.handshake_timeout;
  const auto told = [&]() UNDER_LOCK { return inbox_.missing_attempt == attempt; };
  const auto over = [&]() UNDER_LOCK {
    return !interrupted().ok() || inbox_.complete || inbox_.leave ||
           inbox_.broken.front().attempt >= attempt;
  };
  [[maybe_unused]] const bool in_time =
      changed_.wait_until(mutex_, deadline, [&]() UNDER_LOCK { return told() || over(); });
  if (!told()) {
    return fail(ErrorKind::kDisconnected, "replace lane", "the target did not say what it misses");
  }
  return std::move(opened.lane);
}

Outcome SourceDriver::put_in_place(LaneName lane, std::uint32_t attempt,
                                   std::unique_ptr<Lane> opened) {
  std::unique_ptr<RequestServer> server;
  if (lane.role == LaneRole::kUrgent) {
    server = serve(std::move(opened), attempt);
    server->open();
  }
  {
    const base::Lock lock(mutex_);
    changed_.wait(mutex_, [this]() UNDER_LOCK { return !watching_; });
    const SourceInbox::BrokenLane& broken = inbox_.broken.front();
    ENSURE(broken.lane == lane, "one lane is replaced at a time");
    base::log(LogLevel::kInfo, "lane.replaced lane={} attempt={} reason={}", to_string(lane),
              attempt, base::to_string(broken.reason));
    if (broken.attempt < attempt) {
      inbox_.broken.erase(inbox_.broken.begin());
    }
    attempt_of(lane) = attempt;
    ++lanes_replaced_;
    if (lane.role == LaneRole::kUrgent) {
      bytes_of_past_epochs_ += server_->bytes_sent();
      std::swap(server_, server);
    } else {
      bulk_->replace(lane.number, std::move(opened), attempt);
    }
  }
  return base::Done{};  // The old urgent lane's thread is joined here.
}

// A connection or a handshake that nobody wants any more does not keep this thread waiting.
void SourceDriver::note_waiting_on(int fd, bool waits) {
  const base::Lock lock(mutex_);
  if (!waits) {
    waits_on_.erase(fd);
    return;
  }
  waits_on_.insert(fd);
  if (!interrupted().ok() || inbox_.leave) {
    end_waiting();
  }
}

void SourceDriver::end_waiting() {
  for (const int fd : waits_on_) {
    ::shutdown(fd, SHUT_RDWR);
  }
}

void SourceDriver::end_lane(LaneName lane) {
  if (lane.role == LaneRole::kBulk) {
    bulk_->end_lane(lane.number);
  } else {
    server_->stop();
  }
}

}  // namespace towline::runtime
