#include "runtime/dirty_rounds.h"

#include <algorithm>
#include <bit>

#include "base/ensure.h"

namespace towline::runtime {
namespace {

using base::Outcome;
using base::PageCount;
using base::PageIndex;
using base::PageRange;

constexpr std::uint64_t kWordBits = 64;

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
  for (const auto& entry : layout_.entries()) {
    ENSURE(entry.page_size == base::kSmallPage, "the dirty log counts pages of 4096 bytes");
    const std::uint64_t words = (entry.count.value + kWordBits - 1) / kWordBits;
    known_.emplace_back(words, ~0ULL);  // As the log itself: dirty until the first clear.
    read_.emplace_back(words, 0);
  }
}

Outcome DirtyRounds::begin() {
  return log_.enable();
}

void DirtyRounds::end() {
  log_.disable();
}

Outcome DirtyRounds::clear_for_read(PageRange range) {
  const std::size_t region = layout_.region_of(range.first);
  const std::uint64_t first = range.first.value - layout_.entries()[region].first.value;
  const std::uint64_t word = first / kWordBits;
  const std::uint64_t words = (range.count.value + kWordBits - 1) / kWordBits;
  ENSURE(first % kWordBits == 0, "chunks begin at whole words of the log");
  const std::span<std::uint64_t> bits(&known_[region][word], words);
  {
    const base::Lock lock(log_mutex_);
    TRY(log_.clear(region, first, range.count.value, bits));
  }
  std::fill(bits.begin(), bits.end(), 0);
  return base::Done{};
}

base::Expected<DirtyRounds::Round> DirtyRounds::next_round() {
  Round round;
  const base::Lock lock(log_mutex_);
  for (std::size_t region = 0; region < known_.size(); ++region) {
    auto& known = known_[region];
    auto& read = read_[region];
    TRY(log_.read(region, read));
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
