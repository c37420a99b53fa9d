#include "runtime/target/receivers.h"

#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/log.h"
#include "runtime/core/link_watch.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

// Room is asked for so often: a part of the reserve that is kept, however fast the link.
constexpr std::uint64_t kBytesBetweenLooks = 8U << 20U;

}  // namespace

Receivers::Receivers(const MemoryLayout& layout, const PageMap& map, std::size_t bulk_lanes,
                     Owner& owner)
    : layout_(layout),
      owner_(owner),
      epoch_(std::make_unique<Epoch>(bulk_lanes)),
      sweep_(layout, map) {
}

Receivers::~Receivers() {
  shutdown();
  join();  // While everything that they use is there.
}

Receivers::Epoch::Epoch(std::size_t bulk_lanes) : bulk(bulk_lanes) {
  for (std::size_t i = 0; i < bulk.size(); ++i) {
    bulk[i].name = LaneName{wire::LaneRole::kBulk, static_cast<std::uint8_t>(i)};
  }
}

// Nobody puts another thread in the place of one of them: the lanes are shut.
void Receivers::join() {
  Epoch* ending = nullptr;
  {
    const base::Lock lock(mutex_);
    ending = epoch_.get();
  }
  ending->urgent.thread.join();
  for (Slot& slot : ending->bulk) {
    slot.thread.join();
  }
}

Receivers::Slot& Receivers::slot_of(LaneName name) {
  return name.role == wire::LaneRole::kUrgent ? epoch_->urgent : epoch_->bulk.at(name.number);
}

base::NamedThread Receivers::lane_thread(const Slot& slot, std::function<void()> body) {
  const bool urgent = slot.name.role == wire::LaneRole::kUrgent;
  return {urgent ? "tl-urgent" : fmt::format("tl-bulk-{}", slot.name.number), std::move(body)};
}

void Receivers::attach(LaneName name, std::unique_ptr<Lane> lane) {
  const base::Lock lock(mutex_);
  if (epoch_->lost) {
    return;  // Meanwhile.
  }
  Slot& slot = slot_of(name);
  slot.lane = std::move(lane);
  if (epoch_->asks && name.role == wire::LaneRole::kUrgent) {
    sender_->use(slot.lane);
  }
  changed_.notify_all();
  slot.thread = lane_thread(slot, [this, &slot] { run(slot, 0); });
}

void Receivers::replace(LaneName name, std::unique_ptr<Lane> lane, std::uint32_t attempt) {
  const base::Lock lock(mutex_);
  if (epoch_->lost) {
    return;  // Meanwhile.
  }
  Slot& slot = slot_of(name);
  slot.attempt = attempt;
  slot.lane->shutdown();
  // Shared: what a thread runs must be copyable.
  const auto before = std::make_shared<base::NamedThread>(std::move(slot.thread));
  const auto again = std::make_shared<std::unique_ptr<Lane>>(std::move(lane));
  slot.thread = lane_thread(slot, [this, &slot, before, again, attempt] {
    before->join();
    run_in_place(slot, std::move(*again), attempt);
  });
}

// The receiver before this one has ended: here the fence of one lane is behind us.
void Receivers::run_in_place(Slot& slot, std::unique_ptr<Lane> lane, std::uint32_t attempt) {
  {
    const base::Lock lock(mutex_);
    if (epoch_->lost || slot.attempt != attempt) {
      return;  // The link was lost meanwhile, or this lane too, and another one comes.
    }
    bytes_of_past_lanes_ += slot.lane->bytes_received();
    slot.lane = std::move(lane);
    slot.pushed_all = false;
    slot.ended_for.reset();
  }
  owner_.on_lane_replaced(slot.name, attempt);
  run(slot, attempt);
}

void Receivers::renew() {
  shutdown();  // Whatever was attached since the last one: nobody is joined who is not ending.
  join();
  sweep_.forget();
  const base::Lock lock(mutex_);
  bytes_of_past_lanes_ += bytes_of_lanes();
  sender_->use(nullptr);
  epoch_ = std::make_unique<Epoch>(epoch_->bulk.size());
}

Outcome Receivers::wait_attached(std::chrono::milliseconds patience) {
  const base::Lock lock(mutex_);
  const auto is_here = [](const Slot& slot) { return slot.lane != nullptr; };
  const auto deadline = base::system_clock().now() + patience;
  changed_.wait_until(mutex_, deadline,
                      [&]() UNDER_LOCK { return epoch_->lost || all_lanes(is_here); });
  if (!all_lanes(is_here)) {
    return fail(ErrorKind::kDisconnected, "wait for lanes", "the source did not open every lane");
  }
  return base::Done{};
}

void Receivers::open_postcopy() {
  const base::Lock lock(mutex_);
  postcopy_ = true;
  epoch_->asks = true;
  sender_->use(epoch_->urgent.lane);
}

std::size_t Receivers::ask_again() {
  const base::Lock lock(mutex_);
  epoch_->asks = true;
  return sender_->use(epoch_->urgent.lane);
}

bool Receivers::all_wait() const {
  const base::Lock lock(mutex_);
  return all_lanes([](const Slot& slot) { return slot.lane != nullptr && slot.lane->waits(); });
}

bool Receivers::all_lanes(const std::function<bool(const Slot&)>& is) const {
  return is(epoch_->urgent) && std::all_of(epoch_->bulk.begin(), epoch_->bulk.end(), is);
}

void Receivers::each_lane(const std::function<void(Lane&)>& with) const {
  const auto visit = [&with](const Slot& slot) {
    if (slot.lane != nullptr) {
      with(*slot.lane);
    }
  };
  visit(epoch_->urgent);
  std::for_each(epoch_->bulk.begin(), epoch_->bulk.end(), visit);
}

void Receivers::finish_sending() {
  const base::Lock lock(mutex_);
  each_lane([](const Lane& lane) { ::shutdown(lane.fd(), SHUT_WR); });
}

void Receivers::shutdown() {
  const base::Lock lock(mutex_);
  epoch_->lost = true;
  changed_.notify_all();
  each_lane([](Lane& lane) { lane.shutdown(); });
}

std::optional<base::Duration> Receivers::unacknowledged() const {
  const base::Lock lock(mutex_);
  return epoch_->urgent.lane == nullptr ? std::nullopt
                                        : unacknowledged_for(epoch_->urgent.lane->fd());
}

std::uint64_t Receivers::bytes_received() const {
  const base::Lock lock(mutex_);
  return bytes_of_past_lanes_ + bytes_of_lanes();
}

std::uint64_t Receivers::bytes_of_lanes() const {
  std::uint64_t sum = 0;
  each_lane([&sum](const Lane& lane) { sum += lane.bytes_received(); });
  return sum;
}

void Receivers::report_end(const Slot& slot, std::uint32_t attempt, base::Error reason) {
  {
    const base::Lock lock(mutex_);
    if (slot.attempt != attempt) {
      return;  // Another one is about to take its place, and waits for this thread.
    }
    if (slot.ended_for.has_value()) {
      reason = *slot.ended_for;
    }
  }
  base::log(base::LogLevel::kInfo, "lane.ended lane={} attempt={} reason={}", to_string(slot.name),
            attempt, base::to_string(reason));
  owner_.on_lane_ended(slot.name, attempt, reason);
}

void Receivers::run(Slot& slot, std::uint32_t attempt) {
  report_end(slot, attempt, read_until_end(slot));
}

base::Error Receivers::read_until_end(Slot& slot) {
  const bool urgent = slot.name.role == wire::LaneRole::kUrgent;
  while (true) {
    auto header = slot.lane->receive_header();
    if (!header.ok()) {
      return header.error();
    }
    if (!header.value().has_value()) {
      return base::Error{
          ErrorKind::kDisconnected, 0, "receive",
          urgent ? "the source closed the urgent lane" : "the source closed a bulk lane"};
    }
    const auto handled =
        urgent ? on_urgent_frame(slot, *header.value()) : on_bulk_frame(slot, *header.value());
    if (!handled.ok()) {
      return handled.error();
    }
    owner_.on_progress();
  }
}

void Receivers::end_urgent(const base::Error& reason) {
  const base::Lock lock(mutex_);
  if (epoch_->urgent.lane != nullptr) {
    epoch_->urgent.ended_for = reason;
    epoch_->urgent.lane->shutdown();
  }
}

void Receivers::shutdown(LaneName name) {
  const base::Lock lock(mutex_);
  if (const Slot& slot = slot_of(name); slot.lane != nullptr) {
    slot.lane->shutdown();
  }
}

void Receivers::lose() {
  const base::Lock lock(mutex_);
  epoch_->lost = true;
  changed_.notify_all();
}

// Answers to earlier sweeps that are still to come on the lost lane never will.
void Receivers::sweep_again() {
  bool all_pushed = false;
  {
    const base::Lock lock(mutex_);
    all_pushed = std::all_of(epoch_->bulk.begin(), epoch_->bulk.end(),
                             [](const Slot& one) { return one.pushed_all; });
  }
  sweep_.forget();
  if (all_pushed) {
    sweep_.more();
  }
}

Outcome Receivers::check_room(std::uint64_t bytes) {
  const std::uint64_t before = page_bytes_.fetch_add(bytes);
  const bool due = before == 0 || waiting_ != 0 ||
                   before / kBytesBetweenLooks != (before + bytes) / kBytesBetweenLooks;
  return due ? owner_.room() : Outcome(base::Done{});
}

}  // namespace towline::runtime
