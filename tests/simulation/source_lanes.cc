// The source's bulk lanes and its page server: runtime/source/bulk_sender.cc and
// runtime/source/request_server.cc as tasks.
#include <algorithm>
#include <vector>

#include "tests/simulation/source_end.h"

namespace towline::simulation {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using runtime::LaneName;
using runtime::wire::FrameHeader;
using runtime::wire::FrameType;
using runtime::wire::kPostcopyRound;
using runtime::wire::LaneRole;

namespace {

constexpr std::uint64_t kChunkPages = 64;  // The smallest that the log allows.

}  // namespace

std::optional<PageRange> SourceEnd::next_chunk() {
  if (cut_ || cursor_.value >= world_.layout.pages().value) {
    return std::nullopt;
  }
  const PageRange chunk = world_.layout.clip({cursor_, PageCount{kChunkPages}});
  cursor_ = chunk.end();
  return chunk;
}

/// The pages from `first` on that are wanted and are all holes or all data, not too many of them.
PageRange SourceEnd::data_run(PageIndex first, const std::vector<bool>& wanted,
                              PageRange chunk) const {
  const bool hole = guest_.hole(first);
  const std::uint64_t most = hole ? chunk.count.value : 1 + world_.random.below(8);
  PageRange run{first, PageCount{0}};
  while (run.end() < chunk.end() && run.count.value < most &&
         wanted[run.end().value - chunk.first.value] && guest_.hole(run.end()) == hole) {
    ++run.count.value;
  }
  return run;
}

std::vector<Content> SourceEnd::contents(PageRange range) {
  std::vector<Content> pages;
  for (std::uint64_t page = range.first.value; page < range.end().value; ++page) {
    pages.push_back(guest_.content(PageIndex{page}));
  }
  if (world_.source_released) {
    world_.fail("a page is served from memory that was given up");
  }
  return pages;
}

void SourceEnd::send_split(Pipe& lane, PageIndex first, const std::vector<Content>& pages,
                           std::uint32_t round) {
  for (std::size_t at = 0; at < pages.size();) {
    const bool zero = pages[at].zero();
    std::size_t end = at + 1;
    while (end < pages.size() && pages[end].zero() == zero) {
      ++end;
    }
    FrameHeader header{.type = zero ? FrameType::kZeros : FrameType::kPages,
                       .first = first.value + at,
                       .count = end - at,
                       .round = round};
    std::vector<std::byte> payload(zero ? 0 : (end - at) * base::kSmallPage.value);
    for (std::size_t i = at; i < end && !zero; ++i) {
      fill_page(pages[i], PageIndex{first.value + i},
                std::span(payload).subspan((i - at) * base::kSmallPage.value));
    }
    lane.send(header, payload);
    at = end;
  }
}

Pause SourceEnd::until_room(const SourceLanes& lanes, Pipe& lane) {
  return until([&lanes, &lane] { return lane.room() || lanes.closed; });
}

Pause SourceEnd::until_wanted(const SourceLanes& lanes, Pipe& lane) {
  return until([this, &lanes, &lane] { return (lane.room() && !no_room_) || lanes.closed; });
}

Task SourceEnd::bulk_worker(SourceLanes& lanes, std::size_t number) {
  Pipe& lane = lanes.bulk[number]->to_target;
  for (std::uint32_t pass = 1;; ++pass) {
    const bool passes = lanes.epoch == 1;
    co_await until([this, &lanes, pass, passes] {
      return (passes && pass_ >= pass) || lanes.push || lanes.closed;
    });
    if (lanes.closed && !world_.planted(Plant::kOldPusherRuns)) {
      co_return;
    }
    if (!passes || pass_ < pass) {
      break;
    }
    co_await send_pass(lanes, lane, pass);
  }
  co_await push_lanes(lanes, static_cast<std::uint8_t>(number));
}

// ---- the pre-pass -------------------------------------------------------------------------------

Task SourceEnd::send_pass(SourceLanes& lanes, Pipe& lane, std::uint32_t pass) {
  while (const auto chunk = next_chunk()) {
    co_await send_chunk(lanes, lane, pass, *chunk);
  }
  co_await until_room(lanes, lane);
  lane.send({.type = FrameType::kMarker, .round = pass});
  ++lanes_done_;
}

std::vector<bool> SourceEnd::wanted_of(PageRange chunk) const {
  const std::vector<std::uint64_t> dirty = rounds_->dirty(chunk);
  std::vector<bool> wanted;
  for (std::uint64_t i = 0; i < chunk.count.value; ++i) {
    wanted.push_back((dirty[i / 64] >> i % 64 & 1U) != 0);
  }
  return wanted;
}

Task SourceEnd::send_chunk(SourceLanes& lanes, Pipe& lane, std::uint32_t pass, PageRange chunk) {
  const std::vector<bool> wanted = wanted_of(chunk);
  const std::vector<Content> early = contents(chunk);
  co_await simulation::step();
  if (std::find(wanted.begin(), wanted.end(), true) == wanted.end()) {
    co_return;
  }
  (void)rounds_->clear_for_read(chunk);
  co_await simulation::step();
  for (PageIndex at = chunk.first; at < chunk.end() && !lanes.closed;) {
    const std::uint64_t offset = at.value - chunk.first.value;
    if (!wanted[offset]) {
      ++at.value;
    } else if (cut_) {
      owed_.add({at, PageCount{1}});
      world_.saw("a pass was cut");
      ++at.value;
    } else {
      const PageRange run = data_run(at, wanted, chunk);
      const auto from = early.begin() + static_cast<std::ptrdiff_t>(offset);
      std::optional<std::vector<Content>> planted;
      if (world_.planted(Plant::kReadBeforeClear)) {
        planted.emplace(from, from + static_cast<std::ptrdiff_t>(run.count.value));
      }
      co_await send_run(lanes, lane, pass, run, std::move(planted));
      at = run.end();
    }
  }
}

Task SourceEnd::send_run(SourceLanes& lanes, Pipe& lane, std::uint32_t pass, PageRange run,
                         std::optional<std::vector<Content>> early) {
  const bool hole = guest_.hole(run.first);
  std::vector<Content> copy = contents(run);
  co_await simulation::step();  // A page that is being copied changes meanwhile.
  for (std::size_t i = 0; i < copy.size() && !hole; ++i) {
    copy[i].tail = guest_.content(PageIndex{run.first.value + i}).tail;
  }
  co_await until_wanted(lanes, lane);
  if (hole) {
    lane.send({.type = FrameType::kZeros,
               .first = run.first.value,
               .count = run.count.value,
               .round = pass});
  } else {
    send_split(lane, run.first, early.value_or(copy), pass);
  }
  for (PageIndex page = run.first; pass > 1 && page < run.end(); ++page.value) {
    (void)owed_.take(page);
  }
}

// ---- the push -----------------------------------------------------------------------------------

/// One lane after the other: each but the first takes the place of one that was lost.
Task SourceEnd::push_lanes(SourceLanes& lanes, std::uint8_t number) {
  const LaneName name{LaneRole::kBulk, number};
  while (true) {
    const std::uint32_t attempt = lanes.fate(name).attempt;
    Connection& lane = *lanes.bulk[number];
    co_await push(lanes, lane, name, attempt);
    // Nothing comes on a bulk lane; its end does.
    co_await until([&lanes, &lane, name, attempt] {
      return lanes.over(name, attempt) || lane.to_source.readable();
    });
    if (!lanes.over(name, attempt)) {
      lose_lane(lanes, name, attempt);
    }
    co_await until(
        [&lanes, name, attempt] { return lanes.closed || lanes.fate(name).attempt > attempt; });
    if (lanes.closed) {
      co_return;
    }
  }
}

/// Ends early when the lane does: what was taken and not sent is owed again.
Task SourceEnd::push(SourceLanes& lanes, Connection& lane, LaneName name, std::uint32_t attempt) {
  Pipe& pipe = lane.to_target;
  const auto ended = [this, &lanes, &lane, name, attempt] {
    return (lanes.over(name, attempt) && !world_.planted(Plant::kOldPusherRuns)) ||
           (!lanes.closed && lane.to_source.readable());
  };
  const auto until_sendable = [&pipe, &ended] {
    return until([&pipe, &ended] { return pipe.room() || ended(); });
  };
  // Holes that are owed go as ranges, so that they stay holes over there.
  const bool holes_first = !std::exchange(holes_taken_, true);
  for (PageIndex at{0}; holes_first && at.value < world_.layout.pages().value; ++at.value) {
    if (guest_.hole(at) && owed_.take(at)) {
      co_await until_sendable();
      if (ended()) {
        holes_taken_ = false;
        owed_.add({at, PageCount{1}});
        co_return;
      }
      pipe.send(
          {.type = FrameType::kZeros, .first = at.value, .count = 1, .round = kPostcopyRound});
    }
  }
  while (!ended()) {
    const auto run = order_->next(
        owed_, PageCount{world_.random.between(1, runtime::wire::kMaxPagesPerPostcopyFrame)});
    if (!run.has_value()) {
      break;
    }
    for (PageRange left = *run; !left.empty();) {
      const PageRange part = world_.layout.clip(left);
      co_await until_sendable();
      if (ended()) {
        owed_.add(left);
        co_return;
      }
      send_split(pipe, part.first, contents(part), kPostcopyRound);
      left = {part.end(), PageCount{left.count.value - part.count.value}};
    }
  }
  co_await until_sendable();
  if (!ended()) {
    pipe.send({.type = FrameType::kMarker, .round = kPostcopyRound});
  }
}

// ---- the page server ----------------------------------------------------------------------------

Task SourceEnd::server(SourceLanes& lanes, Connection& lane, std::uint32_t attempt) {
  const LaneName name{LaneRole::kUrgent, 0};
  Pipe& requests = lane.to_source;
  while (true) {
    co_await until([&requests] { return requests.readable(); });
    const auto request = requests.take();
    if (!request.ok() || !request.value().has_value()) {
      co_return lose_lane(lanes, name, attempt);
    }
    co_await until([&lanes, &lane, name, attempt] {
      return lane.to_target.room() || lanes.over(name, attempt);
    });
    if (lanes.over(name, attempt)) {
      co_return;
    }
    answer(lane, *request.value());
  }
}

void SourceEnd::answer(Connection& lane, const Frame& request) {
  const PageRange range = request.pages();
  if (request.header.type != FrameType::kRequest || !open_ || !world_.layout.valid(range)) {
    return world_.fail("a request came before its time or names no pages of the machine");
  }
  const bool sweep = (request.header.flags & runtime::wire::kFlagSweep) != 0;
  for (PageIndex page = range.first; page < range.end(); ++page.value) {
    (void)owed_.take(page);
    if (!sweep) {
      order_->on_demand(page);
    }
  }
  const std::vector<Content> pages = contents(range);
  const bool zero =
      std::all_of(pages.begin(), pages.end(), [](const Content& one) { return one.zero(); });
  FrameHeader header{.type = zero ? FrameType::kZeros : FrameType::kPages,
                     .flags = runtime::wire::kFlagDemanded,
                     .first = range.first.value,
                     .count = range.count.value,
                     .round = kPostcopyRound};
  if (sweep) {
    header.flags |= runtime::wire::kFlagSweep;
  }
  std::vector<std::byte> payload(zero ? 0 : pages.size() * base::kSmallPage.value);
  for (std::size_t i = 0; i < pages.size() && !zero; ++i) {
    fill_page(pages[i], PageIndex{range.first.value + i},
              std::span(payload).subspan(i * base::kSmallPage.value));
  }
  lane.to_target.send(header, payload);
}

}  // namespace towline::simulation
