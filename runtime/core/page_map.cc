#include "runtime/core/page_map.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/ensure.h"

namespace towline::runtime {
namespace {

// One nibble a page: bits 0 and 1 the state, bit 2 stale, bit 3 says that the claim was taken of a
// zero page. Both bits on a claimed page: poisoned, because a claim of a zero page that goes stale
// loses bit 3. Masks below select nibbles by their lowest bit and are widened with all_bits().
constexpr std::uint64_t kPagesInWord = 16;
constexpr std::uint64_t kBits = 4;
constexpr std::uint64_t kLowBits = 0x1111111111111111U;
constexpr std::uint64_t kStateBits = 0x3;
constexpr std::uint64_t kStaleShift = 2;
constexpr std::uint64_t kFromZeroShift = 3;

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

/// Of the pages in `lows`, those whose state is `state`.
std::uint64_t in_state(std::uint64_t word, std::uint64_t lows, PageState state) {
  const std::uint64_t other = word ^ (kLowBits * state_bits(state));
  return lows & ~(other | (other >> 1U));
}

/// Of the pages in `lows`, the poisoned ones.
std::uint64_t poisoned_of(std::uint64_t word, std::uint64_t lows) {
  return in_state(word, lows, PageState::kClaimed) & (word >> kStaleShift) &
         (word >> kFromZeroShift);
}

/// Of the pages in `lows`, those that somebody brings.
std::uint64_t held_of(std::uint64_t word, std::uint64_t lows) {
  return in_state(word, lows, PageState::kClaimed) & ~poisoned_of(word, lows);
}

std::uint64_t with_state(std::uint64_t word, std::uint64_t lows, PageState state) {
  return (word & ~all_bits(lows)) | (lows * state_bits(state));
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
    case PageState::kClaimed:
      return "claimed";
    case PageState::kInstalled:
      return "installed";
    case PageState::kZero:
      return "zero";
    case PageState::kPoisoned:
      return "poisoned";
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
  const std::uint64_t low = std::uint64_t{1} << (kBits * (page.value % kPagesInWord));
  return poisoned_of(word, low) != 0
             ? PageState::kPoisoned
             : static_cast<PageState>((word >> (kBits * (page.value % kPagesInWord))) & kStateBits);
}

bool PageMap::stale(base::PageIndex page) const {
  check({page, base::PageCount{1}});
  const std::uint64_t word = words_[page.value / kPagesInWord].load();
  const std::uint64_t low = std::uint64_t{1} << (kBits * (page.value % kPagesInWord));
  return (low & (word >> kStaleShift) & ~poisoned_of(word, low)) != 0;
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
        word.compare_exchange_weak(seen, with_state(seen, head, PageState::kClaimed))) {
      return count_lows(head);
    }
  }
}

bool PageMap::claim_zero(base::PageIndex page) {
  check({page, base::PageCount{1}});
  const Piece piece = piece_of(page.value, page.value + 1);
  ++claimed_;
  std::uint64_t seen = words_[piece.word].load();
  while (in_state(seen, piece.lows, PageState::kZero) != 0) {
    const std::uint64_t claimed =
        with_state(seen, piece.lows, PageState::kClaimed) | (piece.lows << kFromZeroShift);
    if (words_[piece.word].compare_exchange_weak(seen, claimed)) {
      --zero_;
      return true;
    }
  }
  --claimed_;
  return false;
}

void PageMap::finish_installed(base::PageRange range, std::vector<base::PageIndex>& went_stale) {
  finish(range, PageState::kInstalled, went_stale);
}

void PageMap::finish_zero(base::PageRange range, std::vector<base::PageIndex>& went_stale) {
  finish(range, PageState::kZero, went_stale);
}

void PageMap::finish(base::PageRange range, PageState as,
                     std::vector<base::PageIndex>& went_stale) {
  check(range);
  std::uint64_t held_before = 0;  // Pages whose claim did not count as missing.
  std::uint64_t stale_before = 0;
  for_each_piece(range, [&](const Piece& piece) {
    std::uint64_t seen = words_[piece.word].load();
    std::uint64_t stale = 0;
    do {
      ENSURE(held_of(seen, piece.lows) == piece.lows,
             "only the holder of a claim ends it, and ends it once");
      stale = piece.lows & (seen >> kStaleShift);
    } while (!words_[piece.word].compare_exchange_weak(
        seen, with_state(with_state(seen, piece.lows, as), stale, PageState::kMissing)));
    held_before += count_lows(piece.lows & (seen >> kFromZeroShift));
    stale_before += count_lows(stale);
    append_pages(piece, stale, went_stale);
    return true;
  });
  if (as == PageState::kZero) {
    zero_ += range.count.value - stale_before;
  }
  claimed_ -= range.count.value;
  missing_ -= range.count.value - stale_before - held_before;
}

void PageMap::abandon(base::PageRange range) {
  check(range);
  std::uint64_t back_to_zero = 0;
  for_each_piece(range, [&](const Piece& piece) {
    std::uint64_t seen = words_[piece.word].load();
    std::uint64_t zero = 0;
    do {
      ENSURE(held_of(seen, piece.lows) == piece.lows,
             "only the holder of a claim ends it, and ends it once");
      zero = piece.lows & (seen >> kFromZeroShift);
    } while (!words_[piece.word].compare_exchange_weak(
        seen,
        with_state(with_state(seen, piece.lows, PageState::kMissing), zero, PageState::kZero)));
    back_to_zero += count_lows(zero);
    return true;
  });
  zero_ += back_to_zero;
  claimed_ -= range.count.value;
}

void PageMap::finish_poisoned(base::PageRange range) {
  check(range);
  for_each_piece(range, [&](const Piece& piece) {
    const std::uint64_t marks = (piece.lows << kStaleShift) | (piece.lows << kFromZeroShift);
    std::uint64_t seen = words_[piece.word].load();
    do {
      ENSURE(held_of(seen, piece.lows) == piece.lows && (seen & marks) == 0,
             "only missing pages that cannot go stale are poisoned, by the holder of their claim");
    } while (!words_[piece.word].compare_exchange_weak(seen, seen | marks));
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
    std::uint64_t now_missing = 0;
    for_each_piece(chunk, [&](const Piece& piece) {
      const Staled staled = stale_word(piece.word, piece.lows);
      now_missing += count_lows(staled.newly_missing);
      unmapped.add(piece, staled.installed);
      return true;
    });
    missing_ -= chunk.count.value - now_missing;
    return true;
  });
  unmapped.flush();
}

PageMap::Staled PageMap::stale_word(std::uint64_t index, std::uint64_t lows) {
  Word& word = words_[index];
  std::uint64_t seen = word.load();
  while (true) {
    const std::uint64_t installed = in_state(seen, lows, PageState::kInstalled);
    const std::uint64_t zero = in_state(seen, lows, PageState::kZero);
    const std::uint64_t claimed = held_of(seen, lows);
    const std::uint64_t from_zero = claimed & (seen >> kFromZeroShift);
    if ((installed | zero | claimed) == 0) {
      return {};
    }
    // A claim of a zero page becomes a claim like any other: its page is not here any more.
    const std::uint64_t next =
        (with_state(seen, installed | zero, PageState::kMissing) | (claimed << kStaleShift)) &
        ~(from_zero << kFromZeroShift);
    if (word.compare_exchange_weak(seen, next)) {
      zero_ -= count_lows(zero);
      return {installed, installed | zero | from_zero};
    }
  }
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
