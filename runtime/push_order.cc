#include "runtime/push_order.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <deque>
#include <utility>

#include "base/sync.h"

namespace towline::runtime {
namespace {

using Position = std::int64_t;  // A page number that may step below the first page.

// All four are guesses, to be settled by tests/bench on guests with locality.
constexpr Position kSmallestWindow = 8;
constexpr Position kLargestWindow = 1024;
constexpr Position kNear = 4096;           // Further from a window's last demand is another stream.
constexpr std::size_t kMaxRanges = 65536;  // Recently dirtied runs remembered; the rest can wait.

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

class WindowOrder final : public PushOrder {
 public:
  explicit WindowOrder(base::PageCount pages) : pages_(static_cast<Position>(pages.value)) {}

  void on_demand(base::PageIndex page) override {
    const Position demand = position(page);
    const base::Lock lock(mutex_);
    auto* const window = window_of(demand);
    std::rotate(windows_.begin(), window, window + 1);
  }

  void on_recently_dirty(base::PageRange range) override {
    const base::Lock lock(mutex_);
    if (!range.empty() && recent_.size() < kMaxRanges) {
      recent_.push_back(range);
    }
  }

  std::optional<base::PageRange> next(OwedPages& owed, base::PageCount limit) override {
    const base::Lock lock(mutex_);
    for (std::size_t i = 0; i < count_; ++i) {
      if (const auto run = windows_[i].next(owed, limit, pages_)) {
        return run;
      }
    }
    if (const auto run = next_recent(owed, limit)) {
      return run;
    }
    return next_of_rest(owed, limit);
  }

 private:
  using Windows = std::array<Window, 8>;

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

  std::optional<base::PageRange> next_recent(OwedPages& owed, base::PageCount limit)
      REQUIRES(mutex_) {
    while (!recent_.empty()) {
      base::PageRange& range = recent_.front();
      const base::PageIndex end = range.end();
      if (const auto run = owed.take_run(range.first, end, limit)) {
        range = {run->end(), base::PageCount{end.value - run->end().value}};
        return run;
      }
      recent_.pop_front();
    }
    return std::nullopt;
  }

  std::optional<base::PageRange> next_of_rest(OwedPages& owed, base::PageCount limit)
      REQUIRES(mutex_) {
    // Twice: pages behind the cursor may have been added since it passed.
    for (int round = 0; round < 2 && owed.count().value != 0; ++round) {
      if (const auto run = take_within(owed, rest_, pages_, limit)) {
        rest_ = position(run->end());
        return run;
      }
      rest_ = 0;
    }
    return std::nullopt;
  }

  const Position pages_;
  base::Mutex mutex_;
  Windows windows_ GUARDED_BY(mutex_);  // Most recently used first.
  std::size_t count_ GUARDED_BY(mutex_) = 0;
  std::deque<base::PageRange> recent_ GUARDED_BY(mutex_);
  Position rest_ GUARDED_BY(mutex_) = 0;
};

class AddressOrder final : public PushOrder {
 public:
  explicit AddressOrder(base::PageCount pages) : pages_(pages) {}

  void on_demand(base::PageIndex /*page*/) override {}

  void on_recently_dirty(base::PageRange /*range*/) override {}

  std::optional<base::PageRange> next(OwedPages& owed, base::PageCount limit) override {
    const base::Lock lock(mutex_);
    for (int round = 0; round < 2 && owed.count().value != 0; ++round) {
      if (const auto run = owed.take_run(cursor_, base::PageIndex{pages_.value}, limit)) {
        cursor_ = run->end();
        return run;
      }
      cursor_ = base::PageIndex{0};
    }
    return std::nullopt;
  }

 private:
  const base::PageCount pages_;
  base::Mutex mutex_;
  base::PageIndex cursor_ GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<PushOrder> make_window_order(base::PageCount pages) {
  return std::make_unique<WindowOrder>(pages);
}

std::unique_ptr<PushOrder> make_address_order(base::PageCount pages) {
  return std::make_unique<AddressOrder>(pages);
}

}  // namespace towline::runtime
