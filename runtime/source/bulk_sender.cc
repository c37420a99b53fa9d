#include "runtime/source/bulk_sender.h"

#include <algorithm>
#include <bit>
#include <utility>

#include <fmt/format.h>

#include "base/crc32c.h"
#include "base/ensure.h"
#include "runtime/core/link_watch.h"
#include "runtime/link/sockets.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;
using base::PageCount;
using base::PageIndex;
using base::PageRange;
using wire::FrameHeader;
using wire::FrameType;

// One clear of the dirty log each. Smaller ones cost more calls; larger ones stretch the time in
// which a page that was armed is written before it is read.
constexpr base::Bytes kChunk{8U << 20U};
// After the switch a demanded page waits at most for this much on its way through the kernel.
constexpr base::Bytes kMostInABatch{64U << 10U};

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

// ---- the pre-pass -------------------------------------------------------------------------------

Outcome BulkSender::run_pass(std::uint32_t pass, DirtyRounds& rounds) {
  begin_sending();
  {
    const base::Lock lock(mutex_);
    cursor_ = PageIndex{0};
  }
  counters_.scanned = 0;
  std::vector<Slot> lanes;
  {
    const base::Lock lock(lanes_mutex_);
    lanes = lanes_;
  }
  std::vector<Outcome> outcomes(lanes.size(), Outcome(base::Done{}));
  std::vector<base::NamedThread> threads;
  threads.reserve(lanes.size());
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    threads.emplace_back(fmt::format("tl-bulk-{}", i), [this, i, pass, &lanes, &rounds, &outcomes] {
      outcomes[i] = pass_worker(*lanes[i].lane, pass, rounds);
      if (!outcomes[i].ok()) {
        stop();  // A pass without one lane's part is no pass.
      }
    });
  }
  for (base::NamedThread& thread : threads) {
    thread.join();
  }
  for (const Outcome& outcome : outcomes) {
    TRY(Outcome(outcome));
  }
  const base::Lock lock(mutex_);
  const std::uint64_t total = memory_.layout().pages().value;
  if (pass == 1 && cursor_.value < total) {
    owed_.add(PageRange{cursor_, PageCount{total - cursor_.value}});
  }
  return base::Done{};
}

std::optional<PageRange> BulkSender::next_chunk() {
  const MemoryLayout& layout = memory_.layout();
  const base::Lock lock(mutex_);
  if (cut_ || cursor_ >= PageIndex{layout.pages().value}) {
    return std::nullopt;
  }
  const std::uint64_t pages = kChunk.value / layout.page_size(cursor_).value;
  const PageRange chunk = layout.clip(
      PageRange{cursor_, PageCount{std::min(pages, layout.pages().value - cursor_.value)}});
  cursor_ = chunk.end();
  return chunk;
}

Outcome BulkSender::pass_worker(Lane& lane, std::uint32_t pass, DirtyRounds& rounds) {
  std::vector<std::byte> buffer;  // Grows to one frame.
  while (const auto chunk = next_chunk()) {
    if (stopped_) {
      return fail(ErrorKind::kDisconnected, "pre-pass", "the pre-pass was stopped");
    }
    TRY(send_chunk(lane, pass, rounds, *chunk, buffer));
    counters_.scanned += chunk->count.value;
  }
  return send_marker(lane, pass);
}

Outcome BulkSender::send_chunk(Lane& lane, std::uint32_t pass, DirtyRounds& rounds, PageRange chunk,
                               std::vector<std::byte>& buffer) {
  const std::vector<std::uint64_t> wanted = rounds.dirty(chunk);
  if (std::all_of(wanted.begin(), wanted.end(), [](std::uint64_t word) { return word == 0; })) {
    return base::Done{};
  }
  // Armed first, read afterwards: a write in between is in the log, and the copy counts as stale.
  TRY(rounds.clear_for_read(chunk));
  const auto is_wanted = [&](std::uint64_t page) {
    return ((wanted[page / 64] >> (page % 64)) & 1U) != 0;
  };
  std::uint64_t at = 0;
  while (at < chunk.count.value) {
    if (!is_wanted(at)) {
      ++at;
      continue;
    }
    std::uint64_t end = at + 1;
    while (end < chunk.count.value && is_wanted(end)) {
      ++end;
    }
    TRY(send_run(lane, pass, PageRange{PageIndex{chunk.first.value + at}, PageCount{end - at}},
                 buffer));
    at = end;
  }
  return base::Done{};
}

// A run as holes and data, in the order of the file.
Outcome BulkSender::send_run(Lane& lane, std::uint32_t pass, PageRange run,
                             std::vector<std::byte>& buffer) {
  while (!run.empty()) {
    const auto data = TRY(memory_.next_data(run));
    const PageIndex hole_end = data.has_value() ? data->first : run.end();
    if (hole_end > run.first) {
      FrameBatch hole;
      add_zeros(hole, pass, PageRange{run.first, PageCount{hole_end.value - run.first.value}});
      TRY(send(lane, hole));
    }
    if (!data.has_value()) {
      return base::Done{};
    }
    TRY(send_copied(lane, pass, *data, buffer));
    run = PageRange{data->end(), PageCount{run.end().value - data->end().value}};
  }
  return base::Done{};
}

Outcome BulkSender::send_copied(Lane& lane, std::uint32_t pass, PageRange run,
                                std::vector<std::byte>& buffer) {
  while (!run.empty()) {
    if (cut_) {
      owed_.add(run);
      return base::Done{};
    }
    const std::uint64_t size = memory_.layout().page_size(run.first).value;
    const std::uint64_t most = wire::pages_in_frame(size, wire::kMaxPagesPerFrame);
    const PageRange part{run.first, PageCount{std::min(run.count.value, most)}};
    const auto copy = TRY(memory_.copy(part, buffer));
    FrameBatch batch;
    add_split(batch, pass, part, copy);
    TRY(send(lane, batch));
    if (pass > 1) {
      for (std::uint64_t page = part.first.value; page < part.end().value; ++page) {
        [[maybe_unused]] const bool was_owed = owed_.take(PageIndex{page});
      }
    }
    run = PageRange{part.end(), PageCount{run.count.value - part.count.value}};
  }
  return base::Done{};
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

// ---- the push -----------------------------------------------------------------------------------

void BulkSender::start_push(PushOrder& order, std::uint64_t max_bandwidth, bool holes_first,
                            const Lost& lost) {
  begin_sending();
  limiter_.set_rate(max_bandwidth);
  std::size_t lanes = 0;
  {
    const base::Lock lock(lanes_mutex_);
    lanes = lanes_.size();
  }
  for (std::size_t i = 0; i < lanes; ++i) {
    push_threads_.emplace_back(fmt::format("tl-bulk-{}", i), [this, i, &order, holes_first, lost] {
      push_thread(static_cast<std::uint8_t>(i), order, holes_first, lost);
    });
  }
}

// One lane after the other: each but the first takes the place of one that was lost.
void BulkSender::push_thread(std::uint8_t number, PushOrder& order, bool holes_first,
                             const Lost& lost) {
  auto slot = next_lane(number, std::nullopt);
  while (slot.has_value()) {
    const auto pushed = push_worker(*slot->lane, order, holes_first);
    ENSURE(!pushed.ok(), "a lane that is not replaced is pushed on until it ends");
    if (stopped_) {
      return;
    }
    lost(number, slot->attempt, pushed.error());
    slot = next_lane(number, slot->attempt);
  }
}

std::optional<BulkSender::Slot> BulkSender::next_lane(std::uint8_t number,
                                                      std::optional<std::uint32_t> after) {
  const base::Lock lock(lanes_mutex_);
  lanes_changed_.wait(lanes_mutex_, [&]() UNDER_LOCK {
    return stopped_ || !after.has_value() || lanes_[number].attempt > *after;
  });
  return stopped_ ? std::nullopt : std::optional(lanes_[number]);
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

Outcome BulkSender::push_worker(Lane& lane, PushOrder& order, bool holes_first) {
  if (holes_first) {
    const base::Lock lock(holes_mutex_);  // The other lanes wait: they would fill the holes.
    if (!holes_taken_.exchange(true)) {
      auto pushed = push_holes(lane);
      if (!pushed.ok()) {
        holes_taken_ = false;  // The next one goes on with what is left of them.
        return pushed;
      }
    }
  }
  TRY(push_owed(lane, order));
  TRY(send_marker(lane, wire::kPostcopyRound));
  return wait_for_end(lane);
}

Outcome BulkSender::push_owed(Lane& lane, PushOrder& order) {
  FrameBatch batch;
  std::vector<PageRange> taken;
  // One for a batch: a page that has to be copied fills it.
  std::vector<std::byte> buffer;
  const PageCount most{
      wire::pages_in_frame(memory_.layout().largest_page().value, wire::kMaxPagesPerPostcopyFrame)};
  while (const auto run = order.next(owed_, most)) {
    taken.push_back(*run);
    auto added = add_owed(batch, *run, buffer);
    if (!added.ok()) {
      owe_again(taken);
      return added;
    }
    if (batch.pages().value >= wire::kMaxPagesPerPostcopyFrame || batch.size() >= kMostInABatch) {
      TRY(send_taken(lane, batch, taken));
    }
  }
  return send_taken(lane, batch, taken);
}

// What cannot be sent is owed again, by whom it was taken: whatever the target says that it misses
// was said before, or may have been.
Outcome BulkSender::send_taken(Lane& lane, FrameBatch& batch, std::vector<PageRange>& taken) {
  auto sent = send(lane, batch);
  if (!sent.ok()) {
    owe_again(taken);
  }
  taken.clear();
  return sent;
}

void BulkSender::owe_again(const std::vector<PageRange>& taken) {
  for (const PageRange& run : taken) {
    owed_.add(run);
  }
}

// Nothing comes on a bulk lane; its end does.
Outcome BulkSender::wait_for_end(Lane& lane) {
  const auto header = TRY(lane.receive_header());
  return fail(
      ErrorKind::kDisconnected, "receive",
      header.has_value() ? "the target spoke on a bulk lane" : "the target closed a bulk lane");
}

// Without a pre-pass the holes are owed too: as ranges, so that they stay holes over there.
Outcome BulkSender::push_holes(Lane& lane) {
  const MemoryLayout& layout = memory_.layout();
  for (const auto& entry : layout.entries()) {
    PageRange left{entry.first, entry.count};
    while (!left.empty()) {
      const auto data = TRY(memory_.next_data(left));
      const PageIndex end = data.has_value() ? data->first : left.end();
      FrameBatch holes;
      std::vector<PageRange> taken;
      PageIndex at = left.first;
      while (const auto hole = owed_.take_run(at, end, left.count)) {
        at = hole->end();
        taken.push_back(*hole);
        add_zeros(holes, wire::kPostcopyRound, *hole);
      }
      TRY(send_taken(lane, holes, taken));
      const PageIndex next = data.has_value() ? data->end() : left.end();
      left = PageRange{next, PageCount{left.end().value - next.value}};
    }
  }
  return base::Done{};
}

// Owed pages were written once, so that they exist: except where a pass never came, and holes may
// be owed until push_holes() has taken them. Touching one would only fill it, or worse (parked()).
Outcome BulkSender::add_owed(FrameBatch& batch, PageRange run, std::vector<std::byte>& buffer) {
  while (!run.empty()) {
    const PageRange part = memory_.layout().clip(run);
    add_split(batch, wire::kPostcopyRound, part, TRY(memory_.parked(part, buffer)));
    run = PageRange{part.end(), PageCount{run.count.value - part.count.value}};
  }
  return base::Done{};
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
