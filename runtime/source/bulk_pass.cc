// BulkSender before the switch: a pass over memory that the guest is writing.
#include <algorithm>

#include <fmt/format.h>

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

// One clear of the dirty log each. Smaller ones cost more calls; larger ones stretch the time in
// which a page that was armed is written before it is read.
constexpr base::Bytes kChunk{8U << 20U};

}  // namespace

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

}  // namespace towline::runtime
