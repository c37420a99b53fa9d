#include "base/line_queue.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace towline::base {
namespace {

constexpr std::size_t kRankOfOwner = LineQueue::kRanks - 1;
constexpr std::array<std::string_view, LineQueue::kRanks> kRankNames{"debug", "info", "warning",
                                                                     "error", "owner"};

std::size_t rank_of(const LogLine& line) {
  return line.about_owner ? kRankOfOwner : static_cast<std::size_t>(line.level);
}

}  // namespace

std::size_t LineQueue::cost(const LogLine& line) {
  return line.text.size() + sizeof(Numbered);
}

void LineQueue::push(LogLine line) {
  const std::size_t rank = rank_of(line);
  const std::uint64_t number = next_number_++;
  while (bytes_ + cost(line) > most_bytes_) {
    auto* const cheaper = by_rank_.begin() + static_cast<std::ptrdiff_t>(rank);
    auto* const cheapest =
        std::find_if(by_rank_.begin(), cheaper, [](const auto& lines) { return !lines.empty(); });
    if (!untold_is_due_) {
      untold_is_due_ = true;
      first_untold_at_ = number;
    }
    if (cheapest == cheaper) {
      return drop(rank);
    }
    const Numbered& newest = cheapest->back();
    first_untold_at_ = std::min(first_untold_at_, newest.number);
    bytes_ -= cost(newest.line);
    --lines_;
    cheapest->pop_back();
    drop(static_cast<std::size_t>(cheapest - by_rank_.begin()));
  }
  bytes_ += cost(line);
  ++lines_;
  by_rank_[rank].push_back({number, std::move(line)});
}

void LineQueue::drop(std::size_t rank) {
  ++untold_[rank];
  ++dropped_;
}

std::optional<LogLine> LineQueue::pop() {
  if (!ready()) {  // What was lost waits for the next line.
    return std::nullopt;
  }
  std::deque<Numbered>* oldest = nullptr;
  for (auto& lines : by_rank_) {
    const bool older =
        !lines.empty() && (oldest == nullptr || lines.front().number < oldest->front().number);
    oldest = older ? &lines : oldest;
  }
  const bool some_untold =
      std::any_of(untold_.begin(), untold_.end(), [](auto n) { return n > 0; });
  if (some_untold && (oldest == nullptr || oldest->front().number >= first_untold_at_)) {
    return tell();
  }
  if (oldest == nullptr) {
    return std::nullopt;
  }
  LogLine line = std::move(oldest->front().line);
  oldest->pop_front();
  bytes_ -= cost(line);
  --lines_;
  return line;
}

LogLine LineQueue::tell() {
  LogLine line;
  line.level = LogLevel::kWarning;
  line.of_dropped = true;
  line.at = std::chrono::system_clock::now();
  line.text = "log.dropped";
  for (std::size_t rank = 0; rank < kRanks; ++rank) {
    if (untold_[rank] > 0) {
      line.text += fmt::format(" {}={}", kRankNames[rank], untold_[rank]);
    }
  }
  being_told_ = std::exchange(untold_, Counts{});
  untold_is_due_ = false;
  return line;
}

void LineQueue::lose(const LogLine& line) {
  if (!untold_is_due_) {
    // Behind what waits now: the next attempt is the next line's, not one for its own sake.
    first_untold_at_ = next_number_;
  }
  if (!line.of_dropped) {
    return drop(rank_of(line));
  }
  for (std::size_t rank = 0; rank < kRanks; ++rank) {
    untold_[rank] += being_told_[rank];
  }
}

}  // namespace towline::base
