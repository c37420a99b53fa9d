#include "runtime/core/push_order.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <utility>
#include <vector>

#include "base/sync.h"

namespace towline::runtime {
namespace {

using Position = std::int64_t;  // A page number that may step below the first page.

// Guesses, to be settled by tests/bench on guests with locality.
constexpr Position kSmallestWindow = 8;
constexpr Position kLargestWindow = 1024;
constexpr Position kNear = 4096;           // Further from a window's last demand is another stream.
constexpr std::size_t kMaxRanges = 65536;  // Recently dirtied runs remembered, of all rounds.

// Pages and runs looked at in one go, between which another lane has its turn and new demands are
// heard. Guess: 32 KiB of the bitmap, some microseconds.
constexpr std::uint64_t kPagesInOneGo = 256U << 10U;
constexpr int kRunsInOneGo = 256;

Position position(base::PageIndex page) {
  return static_cast<Position>(page.value);
}

base::PageIndex page_at(Position at) {
  return base::PageIndex{static_cast<std::uint64_t>(at)};
}

std::optional<base::PageRange> take_within(OwedPages& owed, Position first, Position end,
                                           base::PageCount limit) {
  return owed.take_run(page_at(first), page_at(end), limit);
}

/// What one stream of demands makes likely next: `left_` steps of `stride_` from `cursor_`.
class Window {
 public:
  Window() = default;

  /// `step`: from an earlier demand near by that went another way, 0 if there was none.
  Window(Position demand, Position step) : last_(demand), step_(step) { open(kSmallestWindow); }

  [[nodiscard]] Position distance(Position demand) const { return std::abs(demand - last_); }

  /// `demand` lies in the window or at its edge: the guest goes where the window does.
  [[nodiscard]] bool leads_to(Position demand) const {
    const Position step = demand - last_;
    const Position edge = cursor_ + left_ * stride_ - last_;
    return step % stride_ == 0 && step / stride_ > 0 && step / stride_ <= edge / stride_;
  }

  void follow(Position demand) {
    step_ = demand - std::exchange(last_, demand);
    open(std::min(2 * size_, kLargestWindow));
  }

  /// `demand` makes the step that led to the last one once more: a stride.
  [[nodiscard]] bool confirms(Position demand) const {
    return step_ != 0 && demand - last_ == step_;
  }

  void stride(Position demand) {
    last_ = demand;
    stride_ = step_;
    open(2 * kSmallestWindow);
  }

  void collapse() {
    size_ = kSmallestWindow;
    left_ = std::min(left_, kSmallestWindow);
  }

  [[nodiscard]] Position last() const { return last_; }

  std::optional<base::PageRange> next(OwedPages& owed, base::PageCount limit, Position pages) {
    while (left_ > 0 && cursor_ >= 0 && cursor_ < pages) {
      if (auto run = stride_ == 1 ? ahead(owed, limit, pages) : here_or_behind(owed, limit)) {
        return run;
      }
    }
    left_ = 0;
    return std::nullopt;
  }

 private:
  void open(Position size) {
    size_ = size;
    left_ = size;
    cursor_ = last_ + stride_;
  }

  std::optional<base::PageRange> ahead(OwedPages& owed, base::PageCount limit, Position pages) {
    const Position end = std::min(cursor_ + left_, pages);
    const auto run = take_within(owed, cursor_, end, limit);
    const Position reached = run ? position(run->end()) : end;
    left_ = end - reached;
    cursor_ = reached;
    return run;
  }

  /// Steps over one frame's worth going down, or over one page of a wider stride.
  std::optional<base::PageRange> here_or_behind(OwedPages& owed, base::PageCount limit) {
    const Position frame = std::min(left_, static_cast<Position>(limit.value));
    const Position steps = stride_ == -1 ? std::min(frame, cursor_ + 1) : 1;
    const auto run = take_within(owed, cursor_ - steps + 1, cursor_ + 1, limit);
    if (!run || steps == 1) {  // Otherwise look once more: the run may have left gaps.
      cursor_ += steps * stride_;
      left_ -= steps;
    }
    return run;
  }

  Position last_ = 0;    // The last demand.
  Position step_ = 0;    // From the demand before to the last one.
  Position stride_ = 1;  // Where the stream is believed to go.
  Position size_ = 0;
  Position cursor_ = 0;
  Position left_ = 0;
};

/// Demands on their way to whoever looks for what is next. Neither side ever waits: when more come
/// than it holds, the oldest are overwritten, and one that is being written may be passed over.
/// What is lost is a hint.
class Demands {
 public:
  void put(Position demand) {
    // 0 is "nothing": positions are page numbers.
    slots_[written_++ % slots_.size()] = static_cast<std::uint64_t>(demand) + 1;
  }

  /// One reader at a time.
  template <typename Each>
  void take(Each each) {
    const std::uint64_t end = written_;
    for (read_ = std::max(read_, end - std::min<std::uint64_t>(end, slots_.size())); read_ < end;
         ++read_) {
      if (const std::uint64_t slot = slots_[read_ % slots_.size()].exchange(0)) {
        each(static_cast<Position>(slot - 1));
      }
    }
  }

 private:
  std::array<std::atomic<std::uint64_t>, 256> slots_{};  // Guess: far more than wait at a time.
  std::atomic<std::uint64_t> written_{0};
  std::uint64_t read_ = 0;  // The reader's.
};

/// Which pages were dirtied shortly before the switch: the newest round first, each in its own
/// order.
class RecentRounds {
 public:
  void add(std::span<const base::PageRange> runs) {
    Round round;
    round.left = coarse(runs);
    count_ += round.left.size();
    rounds_.push_front(std::move(round));
    while (count_ > kMaxRanges) {  // Never the newest: it alone is small enough.
      count_ -= rounds_.back().left.size();
      rounds_.pop_back();
    }
  }

  /// Looks at a bounded number of runs and pages. nullopt and not empty(): to be asked again.
  std::optional<base::PageRange> next(OwedPages& owed, base::PageCount limit) {
    std::uint64_t pages = kPagesInOneGo;
    for (int runs = 0; runs < kRunsInOneGo && pages > 0 && !empty(); ++runs) {
      Round& newest = rounds_.front();
      if (newest.at == newest.left.size()) {
        count_ -= newest.left.size();
        rounds_.pop_front();
        continue;
      }
      base::PageRange& range = newest.left[newest.at];
      const std::uint64_t end = range.end().value;
      const base::PageIndex until{range.first.value + std::min(range.count.value, pages)};
      const auto run = owed.take_run(range.first, until, limit);
      const base::PageIndex reached = run ? run->end() : until;
      pages -= reached.value - range.first.value;
      range = {reached, base::PageCount{end - reached.value}};
      newest.at += range.empty() ? 1 : 0;
      if (run) {
        return run;
      }
    }
    return std::nullopt;
  }

  [[nodiscard]] bool empty() const { return rounds_.empty(); }

 private:
  struct Round {
    std::vector<base::PageRange> left;
    std::size_t at = 0;  // The first one that may hold something.
  };

  /// So few runs that all are remembered: as many neighbours as need be become one. What lies
  /// between them, if it is owed, goes a little earlier than it might.
  static std::vector<base::PageRange> coarse(std::span<const base::PageRange> runs) {
    const std::size_t together = (runs.size() + kMaxRanges - 1) / kMaxRanges;
    std::vector<base::PageRange> few;
    for (std::size_t i = 0; i < runs.size(); i += together) {
      const base::PageRange& last = runs[std::min(i + together, runs.size()) - 1];
      few.push_back({runs[i].first, base::PageCount{last.end().value - runs[i].first.value}});
    }
    return few;
  }

  std::deque<Round> rounds_;  // Newest first.
  std::size_t count_ = 0;
};

/// All the rest, in address order, round and round.
class Rest {
 public:
  explicit Rest(base::PageCount pages) : pages_(pages) {}

  /// Looks at a bounded number of pages; `looked` grows by them.
  std::optional<base::PageRange> next(OwedPages& owed, base::PageCount limit,
                                      std::uint64_t& looked) {
    if (cursor_.value >= pages_.value) {
      cursor_ = base::PageIndex{0};  // Pages behind the cursor may have been added since it passed.
    }
    const base::PageIndex until{std::min(cursor_.value + kPagesInOneGo, pages_.value)};
    const auto run = owed.take_run(cursor_, until, limit);
    const base::PageIndex reached = run ? run->end() : until;
    looked += reached.value - cursor_.value;
    cursor_ = reached;
    return run;
  }

  /// Who has looked at so much and found nothing has seen, with those who looked beside it, every
  /// page after it began.
  [[nodiscard]] bool all_seen(std::uint64_t looked) const { return looked >= 2 * pages_.value; }

 private:
  const base::PageCount pages_;
  base::PageIndex cursor_;
};

class WindowOrder final : public PushOrder {
 public:
  explicit WindowOrder(base::PageCount pages)
      : pages_(static_cast<Position>(pages.value)), rest_(pages) {}

  void on_demand(base::PageIndex page) override { demands_.put(position(page)); }

  void on_recently_dirty(std::span<const base::PageRange> round) override {
    if (!round.empty()) {
      const base::Lock lock(mutex_);
      recent_.add(round);
    }
  }

  std::optional<base::PageRange> next(OwedPages& owed, base::PageCount limit) override {
    std::uint64_t looked = 0;
    while (owed.count().value != 0 && !all_seen(looked)) {
      if (const auto run = look(owed, limit, looked)) {
        return run;
      }
    }
    return std::nullopt;
  }

 private:
  using Windows = std::array<Window, 8>;

  bool all_seen(std::uint64_t looked) {
    const base::Lock lock(mutex_);
    return rest_.all_seen(looked);
  }

  /// One bounded piece of the search.
  std::optional<base::PageRange> look(OwedPages& owed, base::PageCount limit,
                                      std::uint64_t& looked) {
    const base::Lock lock(mutex_);
    demands_.take([this](Position demand) UNDER_LOCK {
      auto* const window = window_of(demand);
      std::rotate(windows_.begin(), window, window + 1);
    });
    for (std::size_t i = 0; i < count_; ++i) {
      if (const auto run = windows_[i].next(owed, limit, pages_)) {
        return run;
      }
    }
    if (!recent_.empty()) {
      return recent_.next(owed, limit);
    }
    return rest_.next(owed, limit, looked);
  }

  /// The window that stands for `demand` from now on; the oldest one makes room if need be.
  Windows::iterator window_of(Position demand) REQUIRES(mutex_) {
    auto* const end = windows_.begin() + static_cast<std::ptrdiff_t>(count_);
    auto* const leading = std::find_if(
        windows_.begin(), end, [&](const Window& window) { return window.leads_to(demand); });
    if (leading != end) {
      leading->follow(demand);
      return leading;
    }
    auto* const striding = std::find_if(
        windows_.begin(), end, [&](const Window& window) { return window.confirms(demand); });
    if (striding != end) {
      striding->stride(demand);
      return striding;
    }
    auto* const nearest =
        std::min_element(windows_.begin(), end, [&](const Window& one, const Window& other) {
          return one.distance(demand) < other.distance(demand);
        });
    Position step = 0;
    if (nearest != end && nearest->distance(demand) == 0) {
      return nearest;  // A second waiter for the same page says nothing new.
    }
    if (nearest != end && nearest->distance(demand) <= kNear) {
      // The other stream goes on, perhaps, but has to earn its size again.
      nearest->collapse();
      step = demand - nearest->last();
    }
    count_ = std::min(count_ + 1, windows_.size());
    windows_[count_ - 1] = Window(demand, step);
    return windows_.begin() + static_cast<std::ptrdiff_t>(count_ - 1);
  }

  const Position pages_;
  Demands demands_;  // Read under mutex_.
  base::Mutex mutex_;
  Windows windows_ GUARDED_BY(mutex_);  // Most recently used first.
  std::size_t count_ GUARDED_BY(mutex_) = 0;
  RecentRounds recent_ GUARDED_BY(mutex_);
  Rest rest_ GUARDED_BY(mutex_);
};

class AddressOrder final : public PushOrder {
 public:
  explicit AddressOrder(base::PageCount pages) : rest_(pages) {}

  void on_demand(base::PageIndex /*page*/) override {}

  void on_recently_dirty(std::span<const base::PageRange> /*round*/) override {}

  std::optional<base::PageRange> next(OwedPages& owed, base::PageCount limit) override {
    std::uint64_t looked = 0;
    while (owed.count().value != 0) {
      const base::Lock lock(mutex_);
      const auto run = rest_.next(owed, limit, looked);
      if (run || rest_.all_seen(looked)) {
        return run;
      }
    }
    return std::nullopt;
  }

 private:
  base::Mutex mutex_;
  Rest rest_ GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<PushOrder> make_window_order(base::PageCount pages) {
  return std::make_unique<WindowOrder>(pages);
}

std::unique_ptr<PushOrder> make_address_order(base::PageCount pages) {
  return std::make_unique<AddressOrder>(pages);
}

}  // namespace towline::runtime
