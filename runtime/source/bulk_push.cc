// BulkSender after the switch: the push of what is owed, while the guest runs at the target.
#include <fmt/format.h>

#include "base/ensure.h"
#include "runtime/source/bulk_sender.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;
using base::PageCount;
using base::PageIndex;
using base::PageRange;

// After the switch a demanded page waits at most for this much on its way through the kernel.
constexpr base::Bytes kMostInABatch{64U << 10U};

}  // namespace

void BulkSender::start_push(PushOrder& order, bool holes_first, const Lost& lost) {
  begin_sending();
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

}  // namespace towline::runtime
