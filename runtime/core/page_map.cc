#include "runtime/core/page_map.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/ensure.h"

namespace towline::runtime {
namespace {

// One nibble a page, which holds its state. Sets of a word's pages are by the lowest bit of each
// page's nibble ("lows"), and are widened with all_bits().
constexpr std::uint64_t kPagesInWord = 16;
constexpr std::uint64_t kBits = 4;
constexpr std::uint64_t kLowBits = 0x1111111111111111U;

// Counters are corrected once per so many pages: they may be too large by that much for a moment,
// never too small, and a range of 64 GiB does not pay for a shared counter at every word.
constexpr std::uint64_t kChunkPages = 4096;

constexpr std::uint64_t state_bits(PageState state) {
  return static_cast<std::uint64_t>(state);
}

/// `lows` has bit 4n set for each page n meant: all four bits of these pages.
constexpr std::uint64_t all_bits(std::uint64_t lows) {
  return lows * 0xfU;
}

std::uint64_t count_lows(std::uint64_t lows) {
  return static_cast<std::uint64_t>(std::popcount(lows));
}

/// Of the pages in `lows`, those whose state is `state`. Bit by bit, so that several states of one
/// word share most of the work. (The highest bit of a nibble is never set.)
constexpr std::uint64_t in_state(std::uint64_t word, std::uint64_t lows, PageState state) {
  const std::uint64_t wanted = state_bits(state);
  lows &= (wanted & 1U) != 0 ? word : ~word;
  lows &= (wanted & 2U) != 0 ? word >> 1U : ~(word >> 1U);
  return lows & ((wanted & 4U) != 0 ? word >> 2U : ~(word >> 2U));
}

struct Stepped {
  std::uint64_t word = 0;
  std::uint64_t moved = 0;  ///< The pages for which there was a rule.
};

template <PageEvent event, std::size_t index>
constexpr void take_rule(std::uint64_t word, std::uint64_t lows, Stepped& stepped) {
  constexpr PageRule kRule = kPageRules[index];
  if constexpr (kRule.on == event) {
    const std::uint64_t pages = in_state(word, lows, kRule.from);
    stepped.word ^= pages * (state_bits(kRule.from) ^ state_bits(kRule.to));
    stepped.moved |= pages;
  }
}

/// The table, for all of `lows` at once.
template <PageEvent event>
constexpr Stepped step_word(std::uint64_t word, std::uint64_t lows) {
  Stepped stepped{word, 0};
  [&]<std::size_t... index>(std::index_sequence<index...>) {
    (take_rule<event, index>(word, lows, stepped), ...);
  }
  (std::make_index_sequence<kPageRules.size()>());
  return stepped;
}

/// One word's share of a range.
struct Piece {
  std::uint64_t word = 0;   ///< Index of the word.
  std::uint64_t lows = 0;   ///< The pages meant.
  std::uint64_t first = 0;  ///< The first page meant.
  std::uint64_t count = 0;
};

/// The piece of [first, end) that lies in the word of `first`.
Piece piece_of(std::uint64_t first, std::uint64_t end) {
  const std::uint64_t low = first % kPagesInWord;
  const std::uint64_t count = std::min(kPagesInWord - low, end - first);
  const std::uint64_t ones = kLowBits >> (kBits * (kPagesInWord - count));
  return {first / kPagesInWord, ones << (kBits * low), first, count};
}

/// Calls `each(piece)` for the range's words in order until it returns false.
template <typename Each>
void for_each_piece(base::PageRange range, Each each) {
  for (std::uint64_t page = range.first.value; page < range.end().value;) {
    const Piece piece = piece_of(page, range.end().value);
    if (!each(piece)) {
      return;
    }
    page += piece.count;
  }
}

/// Calls `each(part)` for parts of at most kChunkPages, cut at multiples of it.
template <typename Each>
void for_each_chunk(base::PageRange range, Each each) {
  for (std::uint64_t page = range.first.value; page < range.end().value;) {
    const std::uint64_t room = kChunkPages - page % kChunkPages;
    const std::uint64_t count = std::min(room, range.end().value - page);
    if (!each(base::PageRange{base::PageIndex{page}, base::PageCount{count}})) {
      return;
    }
    page += count;
  }
}

/// Joins pages that ascend into maximal runs and hands each over when it ends.
class Runs {
 public:
  explicit Runs(const std::function<void(base::PageRange)>& each) : each_(each) {}

  Runs(const Runs&) = delete;
  Runs& operator=(const Runs&) = delete;
  ~Runs() = default;

  void add(const Piece& piece, std::uint64_t lows) {
    const std::uint64_t base = piece.word * kPagesInWord;
    while (lows != 0) {
      const auto bit = static_cast<std::uint64_t>(std::countr_zero(lows));
      const auto ones = static_cast<std::uint64_t>(std::countr_one(all_bits(lows) >> bit));
      extend(base + bit / kBits, ones / kBits);
      lows &= bit + ones == 64 ? 0 : ~std::uint64_t{0} << (bit + ones);
    }
  }

  void flush() {
    if (!run_.empty()) {
      each_(std::exchange(run_, {}));
    }
  }

 private:
  void extend(std::uint64_t first, std::uint64_t count) {
    if (run_.empty() || run_.end().value != first) {
      flush();
      run_.first.value = first;
    }
    run_.count.value += count;
  }

  const std::function<void(base::PageRange)>& each_;
  base::PageRange run_;
};

void append_pages(const Piece& piece, std::uint64_t lows, std::vector<base::PageIndex>& pages) {
  for (; lows != 0; lows &= lows - 1) {
    const auto bit = static_cast<std::uint64_t>(std::countr_zero(lows));
    pages.push_back(base::PageIndex{piece.word * kPagesInWord + bit / kBits});
  }
}

}  // namespace

std::string_view to_string(PageState state) {
  switch (state) {
    case PageState::kMissing:
      return "missing";
    case PageState::kInstalled:
      return "installed";
    case PageState::kZero:
      return "zero";
    case PageState::kPoisoned:
      return "poisoned";
    case PageState::kClaimed:
      return "claimed";
    case PageState::kClaimedStale:
      return "claimed-stale";
    case PageState::kClaimedZero:
      return "claimed-zero";
  }
  __builtin_unreachable();
}

PageMap::PageMap(base::PageCount pages)
    : pages_(pages),
      words_(std::make_unique<Word[]>((pages.value + kPagesInWord - 1) / kPagesInWord)),
      missing_(pages.value) {
}

void PageMap::check(base::PageRange range) const {
  ENSURE(range.first.value <= pages_.value && range.count.value <= pages_.value - range.first.value,
         "the page map is asked for pages of the machine only");
}

PageState PageMap::state(base::PageIndex page) const {
  check({page, base::PageCount{1}});
  const std::uint64_t word = words_[page.value / kPagesInWord].load();
  return static_cast<PageState>((word >> (kBits * (page.value % kPagesInWord))) & 0xfU);
}

base::PageCount PageMap::claim_run(base::PageRange range) {
  check(range);
  std::uint64_t total = 0;
  for_each_chunk(range, [&](base::PageRange chunk) {
    claimed_ += chunk.count.value;
    std::uint64_t got = 0;
    for_each_piece(chunk, [&](const Piece& piece) {
      const std::uint64_t claimed = claim_head(piece.word, piece.lows);
      got += claimed;
      return claimed == piece.count;
    });
    claimed_ -= chunk.count.value - got;
    total += got;
    return got == chunk.count.value;
  });
  return base::PageCount{total};
}

std::uint64_t PageMap::claim_head(std::uint64_t index, std::uint64_t lows) {
  Word& word = words_[index];
  std::uint64_t seen = word.load();
  while (true) {
    const std::uint64_t others = lows & ~in_state(seen, lows, PageState::kMissing);
    // The pages below the first one that is not missing.
    const std::uint64_t head = others == 0 ? lows : lows & ((others & -others) - 1);
    if (head == 0 ||
        word.compare_exchange_weak(seen, step_word<PageEvent::kClaim>(seen, head).word)) {
      return count_lows(head);
    }
  }
}

bool PageMap::claim_zero(base::PageIndex page) {
  check({page, base::PageCount{1}});
  const Piece piece = piece_of(page.value, page.value + 1);
  ++claimed_;
  std::uint64_t seen = words_[piece.word].load();
  while (true) {
    const Stepped stepped = step_word<PageEvent::kClaimZero>(seen, piece.lows);
    if (stepped.moved == 0) {
      --claimed_;
      return false;
    }
    if (words_[piece.word].compare_exchange_weak(seen, stepped.word)) {
      --zero_;
      return true;
    }
  }
}

void PageMap::finish_installed(base::PageRange range, std::vector<base::PageIndex>& went_stale) {
  finish<PageEvent::kFinishInstalled>(range, went_stale);
}

void PageMap::finish_zero(base::PageRange range, std::vector<base::PageIndex>& went_stale) {
  finish<PageEvent::kFinishZero>(range, went_stale);
}

template <PageEvent event>
void PageMap::finish(base::PageRange range, std::vector<base::PageIndex>& went_stale) {
  check(range);
  std::uint64_t of_zero = 0;  // Pages whose claim did not count as missing.
  std::uint64_t stale = 0;
  for_each_piece(range, [&](const Piece& piece) {
    std::uint64_t seen = words_[piece.word].load();
    Stepped stepped;
    do {
      stepped = step_word<event>(seen, piece.lows);
      ENSURE(stepped.moved == piece.lows, "only the holder of a claim ends it, and ends it once");
    } while (!words_[piece.word].compare_exchange_weak(seen, stepped.word));
    of_zero += count_lows(in_state(seen, piece.lows, PageState::kClaimedZero));
    const std::uint64_t stale_here = in_state(seen, piece.lows, PageState::kClaimedStale);
    stale += count_lows(stale_here);
    append_pages(piece, stale_here, went_stale);
    return true;
  });
  if constexpr (event == PageEvent::kFinishZero) {
    zero_ += range.count.value - stale;
  }
  claimed_ -= range.count.value;
  missing_ -= range.count.value - stale - of_zero;
}

void PageMap::abandon(base::PageRange range) {
  check(range);
  std::uint64_t of_zero = 0;
  for_each_piece(range, [&](const Piece& piece) {
    std::uint64_t seen = words_[piece.word].load();
    Stepped stepped;
    do {
      stepped = step_word<PageEvent::kAbandon>(seen, piece.lows);
      ENSURE(stepped.moved == piece.lows, "only the holder of a claim ends it, and ends it once");
    } while (!words_[piece.word].compare_exchange_weak(seen, stepped.word));
    of_zero += count_lows(in_state(seen, piece.lows, PageState::kClaimedZero));
    return true;
  });
  zero_ += of_zero;
  claimed_ -= range.count.value;
}

void PageMap::finish_poisoned(base::PageRange range) {
  check(range);
  for_each_piece(range, [&](const Piece& piece) {
    std::uint64_t seen = words_[piece.word].load();
    Stepped stepped;
    do {
      stepped = step_word<PageEvent::kFinishPoisoned>(seen, piece.lows);
      ENSURE(stepped.moved == piece.lows,
             "only missing pages that cannot go stale are poisoned, by the holder of their claim");
    } while (!words_[piece.word].compare_exchange_weak(seen, stepped.word));
    return true;
  });
  poisoned_ += range.count.value;
  claimed_ -= range.count.value;
  missing_ -= range.count.value;
}

void PageMap::mark_stale(base::PageRange range, const std::function<void(base::PageRange)>& zap) {
  check(range);
  Runs unmapped(zap);
  for_each_chunk(range, [&](base::PageRange chunk) {
    missing_ += chunk.count.value;
    std::uint64_t now_missing = 0;  // That did not count as missing before.
    for_each_piece(chunk, [&](const Piece& piece) {
      std::uint64_t seen = words_[piece.word].load();
      Stepped stepped;
      do {
        stepped = step_word<PageEvent::kMarkStale>(seen, piece.lows);
        if (stepped.moved == 0) {
          return true;
        }
      } while (!words_[piece.word].compare_exchange_weak(seen, stepped.word));
      const std::uint64_t installed = in_state(seen, piece.lows, PageState::kInstalled);
      const std::uint64_t zero = in_state(seen, piece.lows, PageState::kZero);
      const std::uint64_t of_zero = in_state(seen, piece.lows, PageState::kClaimedZero);
      if (zero != 0) {
        zero_ -= count_lows(zero);
      }
      now_missing += count_lows(installed | zero | of_zero);
      unmapped.add(piece, installed);
      return true;
    });
    missing_ -= chunk.count.value - now_missing;
    return true;
  });
  unmapped.flush();
}

std::optional<base::PageRange> PageMap::next_missing(base::PageIndex from,
                                                     base::PageCount limit) const {
  base::PageRange run;
  if (from.value >= pages_.value || limit.value == 0) {
    return std::nullopt;
  }
  const base::PageRange rest{from, base::PageCount{pages_.value - from.value}};
  for_each_piece(rest, [&](const Piece& piece) {
    const std::uint64_t seen = words_[piece.word].load();
    const std::uint64_t missing = in_state(seen, piece.lows, PageState::kMissing);
    const std::uint64_t start = run.empty() ? missing & -missing : piece.lows & -piece.lows;
    if ((missing & start) == 0) {
      return run.empty();
    }
    const auto bit = static_cast<std::uint64_t>(std::countr_zero(start));
    const auto ones = static_cast<std::uint64_t>(std::countr_one(all_bits(missing) >> bit)) / kBits;
    if (run.empty()) {
      run.first.value = piece.word * kPagesInWord + bit / kBits;
    }
    run.count.value += ones;
    return run.end().value == piece.first + piece.count && run.count.value < limit.value;
  });
  if (run.empty()) {
    return std::nullopt;
  }
  run.count = std::min(run.count, limit);
  return run;
}

base::PageCount PageMap::missing() const {
  return base::PageCount{missing_.load()};
}

base::PageCount PageMap::claimed() const {
  return base::PageCount{claimed_.load()};
}

base::PageCount PageMap::zero() const {
  return base::PageCount{zero_.load()};
}

base::PageCount PageMap::poisoned() const {
  return base::PageCount{poisoned_.load()};
}

}  // namespace towline::runtime
