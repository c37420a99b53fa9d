#include "runtime/core/dirty_rounds.h"

#include <bit>
#include <utility>

#include "base/ensure.h"
#include "runtime/core/log_bits.h"

namespace towline::runtime {
namespace {

using base::Outcome;
using base::PageCount;
using base::PageIndex;
using base::PageRange;

constexpr std::uint64_t kWordBits = 64;

std::uint64_t words_for(std::uint64_t bits) {
  return (bits + kWordBits - 1) / kWordBits;
}

// Adds page `at` of the flat space, joining it to the last run when it follows on it: also across a
// region's border, because the runs of a stale set do not touch.
void append(DirtyRounds::Round& round, std::uint64_t at) {
  ++round.count;
  if (!round.pages.empty() && round.pages.back().end().value == at) {
    ++round.pages.back().count.value;
    return;
  }
  round.pages.push_back(PageRange{PageIndex{at}, PageCount{1}});
}

}  // namespace

DirtyRounds::DirtyRounds(DirtyLog& log, const MemoryLayout& layout) : log_(log), layout_(layout) {
  const base::Lock lock(log_mutex_);
  for (const auto& entry : layout_.entries()) {
    const std::uint64_t bits = entry.page_size.value / base::kSmallPage.value;
    ENSURE(bits == 1 || bits % kWordBits == 0, "a page is one bit of the log, or whole words");
    Tracked tracked;
    const std::uint64_t words = words_for(entry.count.value);
    tracked.known.assign(words, ~0ULL);  // As the log itself: dirty until the first clear.
    tracked.read.assign(words, 0);
    if (bits > 1) {
      tracked.words_per_page = bits / kWordBits;
      tracked.log.assign(entry.count.value * tracked.words_per_page, 0);
    }
    regions_.push_back(std::move(tracked));
  }
}

Outcome DirtyRounds::begin() {
  return log_.enable();
}

void DirtyRounds::end() {
  log_.disable();
}

std::vector<std::uint64_t> DirtyRounds::dirty(PageRange range) const {
  const base::Lock lock(log_mutex_);
  return dirty_locked(range);
}

std::vector<std::uint64_t> DirtyRounds::dirty_locked(PageRange range) const {
  const std::size_t region = layout_.region_of(range.first);
  const std::uint64_t first = range.first.value - layout_.entries()[region].first.value;
  const auto& known = regions_[region].known;
  std::vector<std::uint64_t> bits(words_for(range.count.value), 0);
  for (std::uint64_t i = 0; i < range.count.value; ++i) {
    const std::uint64_t at = first + i;
    bits[i / kWordBits] |= (known[at / kWordBits] >> at % kWordBits & 1U) << i % kWordBits;
  }
  return bits;
}

Outcome DirtyRounds::clear_for_read(PageRange range) {
  const std::size_t region = layout_.region_of(range.first);
  const std::uint64_t first = range.first.value - layout_.entries()[region].first.value;
  const base::Lock lock(log_mutex_);
  TRY(clear(region, first, range.count.value, dirty_locked(range)));
  auto& known = regions_[region].known;
  for (std::uint64_t at = first; at < first + range.count.value; ++at) {
    known[at / kWordBits] &= ~(std::uint64_t{1} << at % kWordBits);
  }
  return base::Done{};
}

Outcome DirtyRounds::clear(std::size_t region, std::uint64_t first, std::uint64_t count,
                           std::span<const std::uint64_t> bits) {
  const std::size_t words_per_page = regions_[region].words_per_page;
  if (words_per_page == 0) {
    ENSURE(first % kWordBits == 0, "chunks begin at whole words of the log");
    return log_.clear(region, first, count, bits);
  }
  std::vector<std::uint64_t> log(count * words_per_page);
  spread_to_log(bits, words_per_page, log);
  const std::uint64_t log_bits = words_per_page * kWordBits;
  return log_.clear(region, first * log_bits, count * log_bits, log);
}

base::Expected<DirtyRounds::Round> DirtyRounds::next_round() {
  Round round;
  const base::Lock lock(log_mutex_);
  for (std::size_t region = 0; region < regions_.size(); ++region) {
    auto& [words_per_page, known, read, log] = regions_[region];
    if (words_per_page == 0) {
      TRY(log_.read(region, read));
    } else {
      TRY(log_.read(region, log));
      fold_log(log, words_per_page, read);
    }
    const auto& entry = layout_.entries()[region];
    for (std::size_t word = 0; word < known.size(); ++word) {
      std::uint64_t news = read[word] & ~known[word];
      if (news == 0) [[likely]] {
        continue;
      }
      known[word] |= news;
      for (; news != 0; news &= news - 1) {
        const std::uint64_t page =
            word * kWordBits + static_cast<std::uint64_t>(std::countr_zero(news));
        if (page < entry.count.value) {
          append(round, entry.first.value + page);
        }
      }
    }
  }
  return round;
}

}  // namespace towline::runtime
