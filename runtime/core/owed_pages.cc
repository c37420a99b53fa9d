#include "runtime/core/owed_pages.h"

#include <algorithm>
#include <bit>

#include "base/ensure.h"

namespace towline::runtime {
namespace {

constexpr std::uint64_t kWordPages = 64;

/// Bits [low, low + count) of a word; low < 64, 0 < count <= 64 - low.
std::uint64_t mask_of(std::uint64_t low, std::uint64_t count) {
  return (~std::uint64_t{0} >> (kWordPages - count)) << low;
}

std::uint64_t count_of(std::uint64_t word) {
  return static_cast<std::uint64_t>(std::popcount(word));
}

/// Clears the first run of ones under `window`, at most `limit` of them, and returns it; 0: none.
std::uint64_t take_first(std::atomic<std::uint64_t>& word, std::uint64_t window,
                         std::uint64_t limit) {
  std::uint64_t seen = word.load();
  while ((seen & window) != 0) {
    const auto low = static_cast<std::uint64_t>(std::countr_zero(seen & window));
    const auto length = static_cast<std::uint64_t>(std::countr_one((seen & window) >> low));
    const std::uint64_t taken = mask_of(low, std::min(length, limit));
    if (word.compare_exchange_weak(seen, seen & ~taken)) {
      return taken;
    }
  }
  return 0;
}

/// Clears the ones from bit 0 up to the first zero, at most `limit`, and returns how many.
std::uint64_t take_head(std::atomic<std::uint64_t>& word, std::uint64_t limit) {
  std::uint64_t seen = word.load();
  while ((seen & 1U) != 0 && limit > 0) {
    const std::uint64_t length = std::min(static_cast<std::uint64_t>(std::countr_one(seen)), limit);
    if (word.compare_exchange_weak(seen, seen & ~mask_of(0, length))) {
      return length;
    }
  }
  return 0;
}

}  // namespace

OwedPages::OwedPages(base::PageCount pages)
    : pages_(pages),
      words_(std::make_unique<std::atomic<std::uint64_t>[]>((pages.value + kWordPages - 1) /
                                                            kWordPages)) {
}

void OwedPages::add(base::PageRange range) {
  ENSURE(range.end().value <= pages_.value, "owed pages are pages of the machine");
  for (std::uint64_t page = range.first.value; page < range.end().value;) {
    const std::uint64_t low = page % kWordPages;
    const std::uint64_t count = std::min(kWordPages - low, range.end().value - page);
    const std::uint64_t mask = mask_of(low, count);
    // Counted before they can be taken, so that the count is never too small.
    count_ += count;
    const std::uint64_t before = words_[page / kWordPages].fetch_or(mask);
    count_ -= count_of(before & mask);
    page += count;
  }
}

void OwedPages::clear() {
  const std::uint64_t words = (pages_.value + kWordPages - 1) / kWordPages;
  for (std::uint64_t i = 0; i < words; ++i) {
    count_ -= count_of(words_[i].exchange(0));
  }
}

bool OwedPages::take(base::PageIndex page) {
  ENSURE(page.value < pages_.value, "owed pages are pages of the machine");
  const std::uint64_t mask = mask_of(page.value % kWordPages, 1);
  std::atomic<std::uint64_t>& word = words_[page.value / kWordPages];
  if ((word.load() & mask) == 0 || (word.fetch_and(~mask) & mask) == 0) {
    return false;
  }
  --count_;
  return true;
}

bool OwedPages::contains(base::PageIndex page) const {
  ENSURE(page.value < pages_.value, "owed pages are pages of the machine");
  return (words_[page.value / kWordPages].load() & mask_of(page.value % kWordPages, 1)) != 0;
}

std::optional<base::PageRange> OwedPages::take_run(base::PageIndex from, base::PageIndex end,
                                                   base::PageCount limit) {
  const std::uint64_t stop = std::min(end.value, pages_.value);
  base::PageRange run;
  for (std::uint64_t page = from.value; page < stop && limit.value > 0 && run.empty();) {
    const std::uint64_t low = page % kWordPages;
    const std::uint64_t window = mask_of(low, std::min(kWordPages - low, stop - page));
    page -= low;
    if (const std::uint64_t taken = take_first(words_[page / kWordPages], window, limit.value)) {
      run.first.value = page + static_cast<std::uint64_t>(std::countr_zero(taken));
      run.count.value = count_of(taken);
    }
    page += kWordPages;
  }
  if (run.empty()) {
    return std::nullopt;
  }
  while (run.end().value % kWordPages == 0 && run.end().value < stop) {
    const std::uint64_t room = std::min(limit.value - run.count.value, stop - run.end().value);
    const std::uint64_t more = take_head(words_[run.end().value / kWordPages], room);
    if (more == 0) {
      break;
    }
    run.count.value += more;
  }
  count_ -= run.count.value;
  return run;
}

base::PageCount OwedPages::count() const {
  return base::PageCount{count_.load()};
}

}  // namespace towline::runtime
