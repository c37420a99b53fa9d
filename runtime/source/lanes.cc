// How the source's lanes are opened, replaced and ended: tasks of tl-source.
#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/core/description.h"
#include "runtime/link/handshake.h"
#include "runtime/source/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;
using wire::FrameHeader;
using wire::FrameType;

// Echoes at the start: the best of them bounds the error of the clock offset.
constexpr std::uint64_t kPings = 8;

}  // namespace

LaneIdentity SourceDriver::identity_of(const SourceTask& task) const {
  LaneIdentity proven = identity_;
  proven.epoch = task.epoch;
  proven.attempt = task.attempt;
  // The first control lane is proven by what the users gave to both ends, every other one by what
  // it carried.
  const bool control = task.kind == SourceTask::Kind::kOpenControl;
  if (!control || task.epoch > 1) {
    proven.secret = session_secret_;
  }
  if (!control) {
    const base::Lock lock(mutex_);
    proven.target_incarnation = brain_.target_incarnation();
  }
  return proven;
}

MigrationOptions SourceDriver::patient(const SourceTask& task) const {
  const base::Lock lock(mutex_);
  MigrationOptions options = options_;
  if (task.patience.has_value()) {
    options.connect_timeout = std::min(options.connect_timeout, *task.patience);
    options.handshake_timeout = std::min(options.handshake_timeout, *task.patience);
  }
  return options;
}

WaitingOn SourceDriver::waiting_on() {
  return [this](int fd, bool waits) {
    const base::Lock lock(mutex_);
    if (!waits) {
      waits_on_.erase(fd);
      return;
    }
    waits_on_.insert(fd);
    if (brain_.wants_no_lane()) {
      end_waiting();
    }
  };
}

Outcome SourceDriver::open_control(const SourceTask& task, SourceInput& done) {
  TRY(standby_.note_epoch(task.epoch));
  auto opened = TRY(open_lane(task.at, patient(task), identity_of(task), wire::LaneRole::kControl,
                              0, waiting_on()));
  done.number = opened.reply.incarnation;
  done.features = opened.reply.features;
  const base::Lock lock(mutex_);
  epoch_ = std::make_unique<SourceEpoch>(task.epoch, std::move(opened.lane));
  return base::Done{};
}

Outcome SourceDriver::open_lanes(const SourceTask& task) {
  const bool again = task.kind == SourceTask::Kind::kOpenLanesAgain;
  if (!again) {
    // Ahead of its use: nothing is started within the blackout.
    watch_thread_ = base::NamedThread("tl-watch", [this] { watch(); });
  }
  const MigrationOptions options = patient(task);
  auto opened =
      TRY(open_data_lanes(task.at, options, identity_of(task), options.bulk_lanes, waiting_on(),
                          [&] { return again ? Outcome(base::Done{}) : measure_clock(); }));
  auto bulk = std::make_unique<BulkSender>(
      memory_, owed_, counters_, again ? options.max_postcopy_bandwidth : options.max_bandwidth);
  for (auto& lane : opened.bulk) {
    bulk->add_lane(std::move(lane));
  }
  auto server = serve(std::move(opened.urgent), task);
  const base::Lock lock(mutex_);
  // The user may have set another one while the lanes were being opened.
  bulk->set_bandwidth(again ? options_.max_postcopy_bandwidth : options_.max_bandwidth);
  epoch_->open(std::move(bulk), std::move(server));
  if (!again) {
    statistics_.set_up = clock_.now();
    statistics_.last_sync = statistics_.set_up;
  }
  return base::Done{};
}

Outcome SourceDriver::measure_clock() {
  for (std::uint64_t ping = 1; ping <= kPings; ++ping) {
    const std::uint64_t now = base::to_ns(clock_.now());
    {
      const base::Lock lock(mutex_);
      statistics_.pings = ping;
    }
    TRY(send_on_control(FrameType::kPing, std::as_bytes(std::span(&now, 1))));
    const base::Lock lock(mutex_);
    const auto answered = [&]() UNDER_LOCK { return statistics_.pongs >= ping; };
    const bool in_time =
        changed_.wait_until(mutex_, clock_.now() + options_.handshake_timeout,
                            [&]() UNDER_LOCK { return answered() || brain_.wants_no_lane(); });
    if (!in_time) {
      return base::Err{brain_.silent_error()};
    }
    if (!answered()) {
      TRY(brain_.interrupted());
      return fail(ErrorKind::kRefused, "migrate", "this process ends");
    }
  }
  return base::Done{};
}

std::unique_ptr<RequestServer> SourceDriver::serve(std::unique_ptr<Lane> urgent,
                                                   const SourceTask& task) {
  return std::make_unique<RequestServer>(
      std::move(urgent), memory_, owed_, *order_, counters_,
      task.kind != SourceTask::Kind::kOpenLanes,
      [this, attempt = task.attempt, epoch = task.epoch](const base::Error& reason) {
        lose_lane(LaneName{wire::LaneRole::kUrgent, 0}, attempt, epoch, reason);
      });
}

Outcome SourceDriver::send_on_control(FrameType type, std::span<const std::byte> payload) {
  FrameHeader header;
  header.type = type;
  return own_epoch().control()->send(header, payload);
}

Outcome SourceDriver::open_in_place(const SourceTask& task) {
  in_place_.reset();
  auto opened = TRY(open_lane(task.at, patient(task), identity_of(task), task.lane.role,
                              task.lane.number, waiting_on()));
  in_place_ = std::move(opened.lane);
  return base::Done{};
}

Outcome SourceDriver::put_in_place(const SourceTask& task) {
  if (task.lane.role == wire::LaneRole::kBulk) {
    own_epoch().bulk()->replace(task.lane.number, std::move(in_place_), task.attempt);
    return base::Done{};
  }
  auto server = serve(std::move(in_place_), task);
  std::unique_ptr<RequestServer> old;
  const base::Lock lock(mutex_);
  old = epoch_->replace(std::move(server));
  return base::Done{};  // The old urgent lane's thread is joined here, without the mutex.
}

Outcome SourceDriver::read_to_the_end() {
  own_epoch().close();
  own_epoch().read_to_the_end();
  return base::Done{};
}

void SourceDriver::drop_epoch(SourceInput& done) {
  done.number = random_number();
  std::unique_ptr<SourceEpoch> old;
  {
    const base::Lock lock(mutex_);
    statistics_.bytes_of_past_epochs = bytes_sent();
    old = std::move(epoch_);
  }
  in_place_.reset();
}

}  // namespace towline::runtime
