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
using base::PageCount;
using base::PageIndex;
using base::PageRange;

// Requests under way. Guess: enough to keep a link of 1 ms busy with 64 KiB answers, and little to
// hold. A demanded page waits behind as much, so that of huge pages there are two.
constexpr std::uint64_t kSweepWindow = RequestSender::kMostSweeps;
constexpr std::uint64_t kSweepWindowOfHugePages = 2;

// Room is asked for so often: a part of the reserve that is kept, however fast the link.
constexpr std::uint64_t kBytesBetweenLooks = 8U << 20U;

}  // namespace

Receivers::Receivers(const MemoryLayout& layout, const PageMap& map, std::size_t bulk_lanes,
                     std::uint64_t epoch, Owner& owner)
    : layout_(layout), map_(map), owner_(owner), epoch_(epoch), bulk_(bulk_lanes) {
  for (std::size_t i = 0; i < bulk_.size(); ++i) {
    bulk_[i].name = LaneName{wire::LaneRole::kBulk, static_cast<std::uint8_t>(i)};
  }
}

Receivers::~Receivers() {
  shutdown();
  join();
}

void Receivers::join() {
  urgent_.thread.join();
  for (Slot& slot : bulk_) {
    slot.thread.join();
  }
}

base::Expected<Receivers::Slot*> Receivers::slot_for(const Lane& lane, std::uint8_t number,
                                                     std::uint64_t epoch) {
  const bool urgent = lane.role() == wire::LaneRole::kUrgent;
  if (lane.role() == wire::LaneRole::kControl || (!urgent && number >= bulk_.size())) {
    return fail(ErrorKind::kRefused, "attach lane",
                fmt::format("there is no {} lane {}", wire::to_string(lane.role()), number));
  }
  if (epoch != epoch_) {
    return fail(ErrorKind::kRefused, "attach lane",
                fmt::format("epoch {} is over; the present one is {}", epoch, epoch_));
  }
  return urgent ? &urgent_ : &bulk_[number];
}

base::NamedThread Receivers::lane_thread(const Slot& slot, std::function<void()> body) {
  const bool urgent = slot.name.role == wire::LaneRole::kUrgent;
  return {urgent ? "tl-urgent" : fmt::format("tl-bulk-{}", slot.name.number), std::move(body)};
}

Outcome Receivers::attach(std::unique_ptr<Lane> lane, std::uint8_t number, std::uint64_t epoch) {
  const base::Lock lock(mutex_);
  Slot& slot = *TRY(slot_for(*lane, number, epoch));
  if (slot.lane != nullptr || lost_) {
    return fail(ErrorKind::kRefused, "attach lane",
                fmt::format("{} is taken", to_string(slot.name)));
  }
  slot.lane = std::move(lane);
  if (asks_ && slot.lane->role() == wire::LaneRole::kUrgent) {
    sender_->use(slot.lane);
  }
  changed_.notify_all();
  slot.thread = lane_thread(slot, [this, &slot] { run(slot, 0); });
  return base::Done{};
}

Outcome Receivers::replace(std::unique_ptr<Lane> lane, std::uint8_t number, std::uint64_t epoch,
                           std::uint32_t attempt) {
  const base::Lock lock(mutex_);
  Slot& slot = *TRY(slot_for(*lane, number, epoch));
  if (slot.lane == nullptr || lost_ || !postcopy_) {
    return fail(ErrorKind::kRefused, "replace lane",
                fmt::format("{} cannot be replaced now", to_string(slot.name)));
  }
  if (attempt <= slot.attempt) {
    return fail(ErrorKind::kRefused, "replace lane",
                fmt::format("attempt {} at {} is over; attempt {} is in its place", attempt,
                            to_string(slot.name), slot.attempt));
  }
  slot.attempt = attempt;
  slot.lane->shutdown();
  // Shared: what a thread runs must be copyable.
  const auto before = std::make_shared<base::NamedThread>(std::move(slot.thread));
  const auto again = std::make_shared<std::unique_ptr<Lane>>(std::move(lane));
  slot.thread = lane_thread(slot, [this, &slot, before, again, attempt] {
    before->join();
    run_in_place(slot, std::move(*again), attempt);
  });
  return base::Done{};
}

// The receiver before this one has ended: here the fence of one lane is behind us.
void Receivers::run_in_place(Slot& slot, std::unique_ptr<Lane> lane, std::uint32_t attempt) {
  {
    const base::Lock lock(mutex_);
    if (lost_ || slot.attempt != attempt) {
      return;  // The link was lost meanwhile, or this lane too, and another one comes.
    }
    bytes_of_past_lanes_ += slot.lane->bytes_received();
    slot.lane = std::move(lane);
    slot.pushed_all = false;
    slot.broken_since.reset();
    slot.ended_for.reset();
  }
  owner_.on_lane_replaced(slot.name, attempt);
  run(slot, attempt);
}

void Receivers::renew(std::uint64_t epoch) {
  shutdown();  // Whatever was attached since the last one: nobody is joined who is not ending.
  renew(urgent_);
  for (Slot& slot : bulk_) {
    renew(slot);
  }
  {
    const base::Lock lock(sweep_mutex_);
    forget_sweep();
  }
  const base::Lock lock(mutex_);
  asks_ = false;
  sender_->use(nullptr);
  epoch_ = epoch;
  lost_ = false;
}

void Receivers::renew(Slot& slot) {
  slot.thread.join();
  const base::Lock lock(mutex_);
  if (slot.lane != nullptr) {
    bytes_of_past_lanes_ += slot.lane->bytes_received();
    slot.lane.reset();
  }
  slot.pushed_all = false;
  slot.attempt = 0;
  slot.broken_since.reset();
  slot.ended_for.reset();
}

Outcome Receivers::wait_attached(std::chrono::milliseconds patience) {
  const base::Lock lock(mutex_);
  const auto all_here = [this]() UNDER_LOCK {
    return urgent_.lane != nullptr && std::all_of(bulk_.begin(), bulk_.end(), [](const Slot& slot) {
             return slot.lane != nullptr;
           });
  };
  const auto deadline = base::system_clock().now() + patience;
  changed_.wait_until(mutex_, deadline, [&]() UNDER_LOCK { return lost_ || all_here(); });
  if (!all_here()) {
    return fail(ErrorKind::kDisconnected, "wait for lanes", "the source did not open every lane");
  }
  return base::Done{};
}

void Receivers::open_postcopy() {
  const base::Lock lock(mutex_);
  postcopy_ = true;
  asks_ = true;
  sender_->use(urgent_.lane);
}

std::size_t Receivers::ask_again() {
  const base::Lock lock(mutex_);
  asks_ = true;
  return sender_->use(urgent_.lane);
}

Outcome Receivers::wait_for_markers(std::uint32_t pass) {
  const base::Lock lock(mutex_);
  const auto all_seen = [&]() UNDER_LOCK {
    return std::all_of(bulk_.begin(), bulk_.end(),
                       [&](const Slot& slot) { return slot.markers >= pass; });
  };
  awaited_pass_ = pass;
  changed_.wait(mutex_, [&]() UNDER_LOCK { return lost_ || !given_up_.empty() || all_seen(); });
  awaited_pass_ = 0;
  // A lane that broke after its marker has delivered all of the pass: the order behind it counts.
  if (!all_seen() && !given_up_.empty()) {
    return fail(ErrorKind::kCorrupt, "wait for markers", given_up_);
  }
  if (!all_seen()) {
    return fail(ErrorKind::kDisconnected, "wait for markers", "a lane broke during the pre-pass");
  }
  return base::Done{};
}

std::optional<Receivers::OverdueMarker> Receivers::overdue_marker(base::Instant now,
                                                                  base::Duration interval) {
  const base::Lock lock(mutex_);
  const bool late = now - markers_looked_ > interval * 2;
  markers_looked_ = now;
  std::optional<OverdueMarker> longest;
  for (Slot& slot : bulk_) {
    if (awaited_pass_ == 0 || slot.lane == nullptr || slot.markers >= awaited_pass_) {
      slot.silent_since = now;
      continue;
    }
    const std::uint64_t bytes = slot.lane->bytes_received();
    if (late || bytes != slot.bytes_seen || !slot.lane->waits()) {
      slot.bytes_seen = bytes;
      slot.silent_since = now;
    }
    const base::Duration silent = now - slot.silent_since;
    if (!longest.has_value() || silent > longest->silent_for) {
      longest = OverdueMarker{slot.name, awaited_pass_, silent};
    }
  }
  return longest;
}

void Receivers::give_up_markers(const std::string& reason) {
  const base::Lock lock(mutex_);
  given_up_ = reason;
  changed_.notify_all();
}

bool Receivers::all_wait() const {
  const base::Lock lock(mutex_);
  const auto waits = [](const Slot& slot) { return slot.lane != nullptr && slot.lane->waits(); };
  return waits(urgent_) && std::all_of(bulk_.begin(), bulk_.end(), waits);
}

void Receivers::finish_sending() {
  const base::Lock lock(mutex_);
  if (urgent_.lane != nullptr) {
    ::shutdown(urgent_.lane->fd(), SHUT_WR);
  }
  for (const Slot& slot : bulk_) {
    if (slot.lane != nullptr) {
      ::shutdown(slot.lane->fd(), SHUT_WR);
    }
  }
}

void Receivers::shutdown() {
  const base::Lock lock(mutex_);
  lost_ = true;
  changed_.notify_all();
  if (urgent_.lane != nullptr) {
    urgent_.lane->shutdown();
  }
  for (const Slot& slot : bulk_) {
    if (slot.lane != nullptr) {
      slot.lane->shutdown();
    }
  }
}

std::optional<base::Duration> Receivers::unacknowledged() const {
  const base::Lock lock(mutex_);
  return urgent_.lane == nullptr ? std::nullopt : unacknowledged_for(urgent_.lane->fd());
}

std::uint64_t Receivers::bytes_received() const {
  const base::Lock lock(mutex_);
  std::uint64_t sum = bytes_of_past_lanes_;
  sum += urgent_.lane != nullptr ? urgent_.lane->bytes_received() : 0;
  for (const Slot& slot : bulk_) {
    sum += slot.lane != nullptr ? slot.lane->bytes_received() : 0;
  }
  return sum;
}

// A lane that is replaced leaves the others alone; every other end is the link's.
void Receivers::report_end(Slot& slot, std::uint32_t attempt, base::Error reason) {
  std::shared_ptr<Lane> lane;
  bool alone = false;
  {
    const base::Lock lock(mutex_);
    lane = slot.lane;
    if (slot.attempt != attempt) {
      return;  // Another one is about to take its place, and waits for this thread.
    }
    if (slot.ended_for.has_value()) {
      reason = *slot.ended_for;
    }
    alone = !lost_;
  }
  base::log(base::LogLevel::kInfo, "lane.ended lane={} attempt={} reason={}", to_string(slot.name),
            attempt, base::to_string(reason));
  if (alone && owner_.on_lane_broken(slot.name, attempt, reason)) {
    lane->shutdown();  // The source sees it too.
    const base::Lock lock(mutex_);
    if (slot.attempt == attempt) {
      slot.broken_since = base::system_clock().now();
    }
    return;
  }
  {
    const base::Lock lock(mutex_);
    lost_ = true;
    changed_.notify_all();
  }
  owner_.on_lane_lost(reason);
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
  if (urgent_.lane != nullptr && !urgent_.broken_since.has_value()) {
    urgent_.ended_for = reason;
    urgent_.lane->shutdown();
  }
}

std::optional<base::Duration> Receivers::broken_for(base::Instant now) const {
  const base::Lock lock(mutex_);
  std::optional<base::Duration> longest;
  const auto look = [&](const Slot& slot) {
    if (slot.broken_since.has_value()) {
      longest = std::max(longest, std::optional(now - *slot.broken_since));
    }
  };
  look(urgent_);
  std::for_each(bulk_.begin(), bulk_.end(), look);
  return longest;
}

Outcome Receivers::check_room(std::uint64_t bytes) {
  const std::uint64_t before = page_bytes_.fetch_add(bytes);
  const bool due = before == 0 || waiting_ != 0 ||
                   before / kBytesBetweenLooks != (before + bytes) / kBytesBetweenLooks;
  return due ? owner_.room() : Outcome(base::Done{});
}

// Both ends agree on what was sent only up to the pages that arrived when nobody could take them:
// once nothing more is pushed, the target collects what it still misses itself.
void Receivers::sweep() {
  const base::Lock lock(sweep_mutex_);
  begin_sweep();
  sweep_more();
}

void Receivers::begin_sweep() {
  sweep_at_ = PageIndex{0};
  sweep_found_ = false;
}

// Answers to earlier sweeps that are still to come on the lost lane never will.
void Receivers::sweep_again() {
  bool all_pushed = false;
  {
    const base::Lock lock(mutex_);
    all_pushed =
        std::all_of(bulk_.begin(), bulk_.end(), [](const Slot& one) { return one.pushed_all; });
  }
  const base::Lock lock(sweep_mutex_);
  forget_sweep();
  if (all_pushed) {
    sweep_more();
  }
}

void Receivers::forget_sweep() {
  begin_sweep();
  sweep_outstanding_ = 0;
  sender_->forget_sweeps();
}

void Receivers::sweep_more() {
  const std::uint64_t size = layout_.largest_page().value;
  const std::uint64_t window =
      size == base::kSmallPage.value ? kSweepWindow : kSweepWindowOfHugePages;
  const PageCount most{wire::pages_in_frame(size, wire::kMaxPagesPerRequest)};
  while (sweep_outstanding_ < window) {
    const auto run = next_to_sweep(most);
    if (!run.has_value()) {
      return;
    }
    const PageRange part = layout_.clip(*run);
    sweep_at_ = part.end();
    ++sweep_outstanding_;
    sender_->sweep(part);
  }
}

// Memory is looked through once, however many answers come after that; and once more when the last
// of them was heard, for pages that somebody was bringing when their turn came and then gave up.
std::optional<PageRange> Receivers::next_to_sweep(PageCount most) {
  while (true) {
    if (const auto run = map_.next_missing(sweep_at_, most)) {
      sweep_found_ = true;
      return run;
    }
    sweep_at_ = PageIndex{map_.pages().value};
    if (sweep_outstanding_ != 0 || !sweep_found_) {
      return std::nullopt;
    }
    begin_sweep();
  }
}

}  // namespace towline::runtime
