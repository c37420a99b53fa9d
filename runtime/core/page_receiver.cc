#include "runtime/core/page_receiver.h"

#include <bit>
#include <utility>

#include "base/log.h"

namespace towline::runtime {
namespace {

using base::Outcome;
using base::PageCount;
using base::PageIndex;
using base::PageRange;

PageRange one(PageIndex page) {
  return PageRange{page, PageCount{1}};
}

// The part of `range` behind its first `done` pages.
PageRange rest(PageRange range, std::uint64_t done) {
  return PageRange{PageIndex{range.first.value + done}, PageCount{range.count.value - done}};
}

}  // namespace

PageReceiver::PageReceiver(const MemoryLayout& layout, GuestPages& pages, PageMap& map,
                           RequestTable& requests, const base::Clock& clock,
                           std::function<void()> ask)
    : layout_(layout),
      pages_(pages),
      map_(map),
      requests_(requests),
      clock_(clock),
      ask_(std::move(ask)) {
}

Outcome PageReceiver::on_pages(PageRange range, std::span<const std::byte> bytes) {
  const std::size_t page_size = bytes.size() / range.count.value;
  while (!range.empty()) {
    const PageCount claimed = map_.claim_run(range);
    if (claimed.value == 0) {
      ++counters_.duplicates;
      range = rest(range, 1);
      bytes = bytes.subspan(page_size);
      continue;
    }
    TRY(settle(PageRange{range.first, claimed}, bytes.first(claimed.value * page_size)));
    range = rest(range, claimed.value);
    bytes = bytes.subspan(claimed.value * page_size);
  }
  return base::Done{};
}

Outcome PageReceiver::on_demanded(PageRange range, std::span<const std::byte> bytes) {
  const std::size_t page_size = bytes.size() / range.count.value;
  for (; !range.empty(); range = rest(range, 1), bytes = bytes.subspan(page_size)) {
    const PageIndex page = range.first;
    const auto own = bytes.first(page_size);
    if (map_.claim_run(one(page)).value == 1) {
      TRY(settle(one(page), own));
    } else if (is_claimed(map_.state(page))) {
      TRY(keep_for_later(page, own));
    } else {
      // Here already, or it holds zeros: whoever waits looks again and finds it.
      ++counters_.duplicates;
      wake_waiters(one(page));
    }
  }
  return base::Done{};
}

// Somebody else holds the claim. If they give up, the answer that came is still good.
Outcome PageReceiver::keep_for_later(PageIndex page, std::span<const std::byte> bytes) {
  if (!requests_.park(page, bytes)) {
    ++counters_.duplicates;
    return base::Done{};
  }
  if (map_.state(page) != PageState::kMissing) {
    return base::Done{};  // Still claimed: its holder finds the answer. Or settled: of no use.
  }
  // The holder gave up between the look and the parking, and did not see what was parked.
  const auto parked = requests_.take_parked(page);
  return parked.has_value() ? on_demanded(one(page), *parked) : Outcome(base::Done{});
}

Outcome PageReceiver::on_zeros(PageRange range) {
  while (!range.empty()) {
    const PageCount claimed = map_.claim_run(range);
    if (claimed.value == 0) {
      if (map_.state(range.first) != PageState::kZero) {
        ++counters_.duplicates;
      }
      range = rest(range, 1);
      continue;
    }
    const PageRange run{range.first, claimed};
    // What an earlier pass left in the file must not show through after the end.
    auto punched = pages_.punch(run);
    if (!punched.ok()) {
      return give_up(run, std::move(punched).error());
    }
    counters_.zeros += claimed.value;
    finish(run, true);
    range = rest(range, claimed.value);
  }
  return base::Done{};
}

void PageReceiver::on_stale(PageRange range) {
  map_.mark_stale(range, [this](PageRange installed) {
    while (!installed.empty()) {
      const PageRange part = layout_.clip(installed);
      pages_.zap(part);
      installed = rest(installed, part.count.value);
    }
  });
}

bool PageReceiver::on_fault(PageIndex page) {
  const auto added = requests_.add(page, clock_.now());
  const bool wanted = answer_fault(page);
  if (added == RequestTable::Added::kFull) {
    // Whoever is not in the table is not found when the page comes, nor asked for again in a new
    // epoch. Woken, it faults once more if it still has to, and that event is tried again.
    pages_.wake(one(page));
  }
  return wanted;
}

bool PageReceiver::answer_fault(PageIndex page) {
  switch (map_.state(page)) {
    case PageState::kMissing:
      return requests_.want(page);
    case PageState::kClaimed:
    case PageState::kClaimedStale:
    case PageState::kClaimedZero:
      // Its bytes are here and its holder, who looks into the request table after the map, wakes.
      return false;
    case PageState::kInstalled: {
      // A collapse or swap-out took the entry away, or the event is older than the install. Never
      // a matter for the network.
      ++counters_.local_faults;
      const auto mapped = pages_.map(one(page));
      if (!mapped.ok()) {
        base::log(base::LogLevel::kError, "fault.remap_failed page={:#x} reason={}", page.value,
                  base::to_string(mapped.error()));
      }
      wake_waiters(one(page));
      return false;
    }
    case PageState::kPoisoned: {
      // The kernel forgot its mark; or the event is older than it.
      const auto again = pages_.poison(one(page));
      if (!again.ok()) {
        base::log(base::LogLevel::kError, "fault.poison_failed page={:#x} reason={}", page.value,
                  base::to_string(again.error()));
      }
      wake_waiters(one(page));
      return false;
    }
    case PageState::kZero: {
      ++counters_.local_faults;
      const auto answered = answer_with_zeros(page);
      // Tried again and again: said at the first, second, fourth, eighth… time.
      if (!answered.ok() && std::has_single_bit(++counters_.no_memory)) {
        base::log(base::LogLevel::kError, "fault.no_memory page={:#x} times={} reason={}",
                  page.value, counters_.no_memory.load(), base::to_string(answered.error()));
      }
      return false;
    }
  }
  __builtin_unreachable();
}

Outcome PageReceiver::answer_with_zeros(PageIndex page) {
  if (!map_.claim_zero(page)) {
    wake_waiters(one(page));  // Somebody else was faster; the waiter looks again.
    return base::Done{};
  }
  auto answered = pages_.back_with_zeros(one(page));
  if (answered.ok()) {
    answered = pages_.map(one(page));
  }
  if (!answered.ok()) {
    // The source has nothing to add to a page of zeros, so that nothing else would ever wake who
    // waits here: they fault once more, until there is room.
    map_.abandon(one(page));
    wake_waiters(one(page));
    return answered;
  }
  finish(one(page), false);
  return base::Done{};
}

Outcome PageReceiver::poison_missing() {
  PageIndex at{0};  // Nobody brings anything any more: what lies behind it stays as it is.
  while (const auto run = map_.next_missing(at, map_.pages())) {
    const PageRange part = layout_.clip(*run);
    const PageCount claimed = map_.claim_run(part);
    if (claimed.value != 0) {
      TRY(poison(PageRange{part.first, claimed}));
    }
    at = PageIndex{part.first.value + claimed.value};
  }
  return base::Done{};
}

Outcome PageReceiver::poison(PageRange claimed) {
  auto poisoned = pages_.poison(claimed);
  if (!poisoned.ok()) {
    map_.abandon(claimed);
    return poisoned;
  }
  map_.finish_poisoned(claimed);
  wake_waiters(claimed);
  return base::Done{};
}

Outcome PageReceiver::settle(PageRange claimed, std::span<const std::byte> bytes) {
  auto written = pages_.write(claimed, bytes);
  if (!written.ok()) {
    return give_up(claimed, std::move(written).error());
  }
  auto mapped = pages_.map(claimed);
  if (!mapped.ok()) {
    return give_up(claimed, std::move(mapped).error());
  }
  counters_.installed += claimed.count.value;
  finish(claimed, false);
  return base::Done{};
}

// Ends the claim: first the map, then the table (request_table.h says why in this order).
void PageReceiver::finish(PageRange claimed, bool zero) {
  std::vector<PageIndex> went_stale;
  if (zero) {
    map_.finish_zero(claimed, went_stale);
  } else {
    map_.finish_installed(claimed, went_stale);
  }
  for (const PageIndex page : went_stale) {
    pages_.zap(one(page));
  }
  wake_waiters(claimed);
}

Outcome PageReceiver::give_up(PageRange claimed, base::Error reason) {
  map_.abandon(claimed);
  // Those who waited for this claim have sent no request, because one seemed needless.
  if (requests_.want_range(claimed) != 0) {
    ask_();
  }
  for (PageRange left = claimed; !left.empty(); left = rest(left, 1)) {
    const auto parked = requests_.take_parked(left.first);
    if (parked.has_value()) {
      TRY(on_demanded(one(left.first), *parked));
    }
  }
  return base::Err<base::Error>{std::move(reason)};
}

void PageReceiver::wake_waiters(PageRange range) {
  const base::Instant now = clock_.now();
  requests_.finish_range(range, [&](const RequestTable::Finished& finished) {
    pages_.wake(one(finished.page));
    if (finished.asked) {
      counters_.stalls.record(now - finished.since);
    }
  });
}

}  // namespace towline::runtime
