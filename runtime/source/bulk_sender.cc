#include "runtime/source/bulk_sender.h"

#include <utility>

#include "base/crc32c.h"
#include "base/ensure.h"
#include "runtime/core/link_watch.h"
#include "runtime/link/sockets.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::Outcome;
using base::PageCount;
using base::PageIndex;
using base::PageRange;
using wire::FrameHeader;
using wire::FrameType;

std::uint64_t page_size_of(PageRange run, std::span<const std::byte> bytes) {
  return bytes.size() / run.count.value;
}

}  // namespace

BulkSender::BulkSender(const SourceMemory& memory, OwedPages& owed, SourceCounters& counters,
                       std::uint64_t max_bandwidth)
    : memory_(memory), owed_(owed), counters_(counters), limiter_(max_bandwidth) {
}

BulkSender::~BulkSender() {
  stop();
  for (base::NamedThread& thread : push_threads_) {
    thread.join();
  }
}

void BulkSender::add_lane(std::unique_ptr<Lane> lane) {
  const base::Lock lock(lanes_mutex_);
  lanes_.push_back(Slot{std::move(lane), 0});
}

void BulkSender::stop() {
  {
    const base::Lock lock(lanes_mutex_);
    stopped_ = true;
    for (const Slot& slot : lanes_) {
      slot.lane->shutdown();
    }
    lanes_changed_.notify_all();
  }
  limiter_.stop();  // Last: whoever waits goes on, and must find its lane closed.
}

std::uint64_t BulkSender::bytes_sent() const {
  const base::Lock lock(lanes_mutex_);
  std::uint64_t sum = bytes_of_past_lanes_;
  for (const Slot& slot : lanes_) {
    sum += slot.lane->bytes_sent();
  }
  return sum;
}

void BulkSender::cut_pass() {
  cut_ = true;
  limiter_.set_rate(0);  // A frame that waits for its turn goes now.
}

// The patience of the lanes is not taken back in go_on(): their windows open a moment later, and
// the kernel counts from when they closed.
void BulkSender::hold_back() {
  const base::Lock lock(lanes_mutex_);
  held_ = true;
  for (const Slot& slot : lanes_) {
    bear_closed_window(slot.lane->fd(), true);
  }
}

void BulkSender::go_on() {
  const base::Lock lock(lanes_mutex_);
  held_ = false;
  lanes_changed_.notify_all();
}

void BulkSender::wait_while_held() {
  if (!held_) {
    return;
  }
  const base::Lock lock(lanes_mutex_);
  lanes_changed_.wait(lanes_mutex_, [this]() UNDER_LOCK { return stopped_ || !held_; });
}

// All that was sent before has arrived: the target said so, of each lane.
void BulkSender::begin_sending() {
  const base::Lock lock(lanes_mutex_);
  held_ = false;
  for (const Slot& slot : lanes_) {
    bear_closed_window(slot.lane->fd(), false);
  }
}

void BulkSender::end_lane(std::uint8_t number) {
  const base::Lock lock(lanes_mutex_);
  if (number < lanes_.size()) {
    lanes_[number].lane->shutdown();
  }
}

void BulkSender::replace(std::uint8_t number, std::unique_ptr<Lane> lane, std::uint32_t attempt) {
  // Holes may be among what is owed again; as pages they would be filled here.
  holes_taken_ = false;
  const base::Lock lock(lanes_mutex_);
  ENSURE(number < lanes_.size() && attempt > lanes_[number].attempt,
         "a lane is replaced by a later attempt at it");
  bytes_of_past_lanes_ += lanes_[number].lane->bytes_sent();
  lanes_[number] = Slot{std::move(lane), attempt};
  if (stopped_) {
    lanes_[number].lane->shutdown();
  }
  lanes_changed_.notify_all();
}

std::vector<BulkSender::Glance> BulkSender::glance() const {
  const base::Lock lock(lanes_mutex_);
  std::vector<Glance> seen;
  for (const Slot& slot : lanes_) {
    seen.push_back(Glance{slot.attempt, unacknowledged_for(slot.lane->fd()), slot.lane->waits(),
                          has_ended(slot.lane->fd())});
  }
  return seen;
}

// ---- frames -------------------------------------------------------------------------------------

Outcome BulkSender::send(Lane& lane, FrameBatch& batch) {
  if (batch.empty()) {
    return base::Done{};
  }
  wait_while_held();
  limiter_.take(batch.size().value);
  return batch.send(lane);
}

// `bytes` do not change any more before the batch is sent. Pages of zeros go as ranges.
void BulkSender::add_split(FrameBatch& batch, std::uint32_t round, PageRange run,
                           std::span<const std::byte> bytes) {
  const std::uint64_t size = page_size_of(run, bytes);
  std::uint64_t at = 0;
  while (at < run.count.value) {
    const bool zero = base::all_zero(bytes.subspan(at * size, size));
    std::uint64_t end = at + 1;
    while (end < run.count.value && base::all_zero(bytes.subspan(end * size, size)) == zero) {
      ++end;
    }
    const PageRange part{PageIndex{run.first.value + at}, PageCount{end - at}};
    if (zero) {
      add_zeros(batch, round, part);
    } else {
      FrameHeader header;
      header.type = FrameType::kPages;
      header.first = part.first.value;
      header.count = part.count.value;
      header.round = round;
      batch.add(header, bytes.subspan(at * size, (end - at) * size));
      counters_.normal += part.count.value;
      if (round == wire::kPostcopyRound) {
        counters_.after_switch += part.count.value;
      }
    }
    at = end;
  }
}

void BulkSender::add_zeros(FrameBatch& batch, std::uint32_t round, PageRange run) {
  FrameHeader header;
  header.type = FrameType::kZeros;
  header.first = run.first.value;
  header.count = run.count.value;
  header.round = round;
  batch.add(header);
  counters_.zeros += run.count.value;
}

Outcome BulkSender::send_marker(Lane& lane, std::uint32_t round) {
  FrameHeader header;
  header.type = FrameType::kMarker;
  header.round = round;
  return lane.send(header);
}

}  // namespace towline::runtime
