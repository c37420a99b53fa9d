#include "runtime/core/request_table.h"

#include <algorithm>
#include <utility>

namespace towline::runtime {

RequestTable::Added RequestTable::add(base::PageIndex page, base::Instant now) {
  const base::Lock lock(mutex_);
  if (const auto found = entries_.find(page.value); found != entries_.end()) {
    ++found->second.waiters;
    return Added::kJoined;
  }
  if (entries_.size() >= bound_) {
    return Added::kFull;
  }
  entries_.emplace(page.value, Entry{now, 1, false, std::nullopt});
  size_ = entries_.size();
  return Added::kFirst;
}

bool RequestTable::mark_asked(base::PageIndex page) {
  const base::Lock lock(mutex_);
  const auto found = entries_.find(page.value);
  if (found == entries_.end() || found->second.asked) {
    return false;
  }
  found->second.asked = true;
  return true;
}

std::optional<RequestTable::Finished> RequestTable::finish(base::PageIndex page) {
  std::optional<Finished> finished;
  finish_range({page, base::PageCount{1}}, [&](const Finished& one) { finished = one; });
  return finished;
}

void RequestTable::finish_range(base::PageRange range,
                                const std::function<void(const Finished&)>& each) {
  if (size_.load() == 0) {
    return;
  }
  std::vector<Finished> finished;  // Told after the lock is given up: `each` may come back here.
  {
    const base::Lock lock(mutex_);
    auto at = entries_.lower_bound(range.first.value);
    while (at != entries_.end() && range.contains(base::PageIndex{at->first})) {
      const Entry& entry = at->second;
      finished.push_back({base::PageIndex{at->first}, entry.since, entry.waiters, entry.asked});
      at = entries_.erase(at);
    }
    size_ = entries_.size();
  }
  for (const Finished& one : finished) {
    each(one);
  }
}

bool RequestTable::park(base::PageIndex page, std::span<const std::byte> bytes) {
  const base::Lock lock(mutex_);
  const auto found = entries_.find(page.value);
  if (found == entries_.end()) {
    return false;
  }
  found->second.parked.emplace(bytes.begin(), bytes.end());
  return true;
}

std::optional<std::vector<std::byte>> RequestTable::take_parked(base::PageIndex page) {
  const base::Lock lock(mutex_);
  const auto found = entries_.find(page.value);
  if (found == entries_.end()) {
    return std::nullopt;
  }
  return std::exchange(found->second.parked, std::nullopt);
}

std::vector<base::PageIndex> RequestTable::ask_unasked(base::PageRange range) {
  std::vector<base::PageIndex> pages;
  if (size_.load() == 0) {
    return pages;
  }
  const base::Lock lock(mutex_);
  for (auto at = entries_.lower_bound(range.first.value);
       at != entries_.end() && range.contains(base::PageIndex{at->first}); ++at) {
    if (!std::exchange(at->second.asked, true)) {
      pages.push_back(base::PageIndex{at->first});
    }
  }
  return pages;
}

std::vector<base::PageIndex> RequestTable::ask_all() {
  const base::Lock lock(mutex_);
  std::vector<std::pair<base::Instant, base::PageIndex>> oldest;
  oldest.reserve(entries_.size());
  for (auto& [page, entry] : entries_) {
    entry.asked = true;
    oldest.emplace_back(entry.since, base::PageIndex{page});
  }
  std::sort(oldest.begin(), oldest.end());
  std::vector<base::PageIndex> pages;
  pages.reserve(oldest.size());
  for (const auto& [since, page] : oldest) {
    pages.push_back(page);
  }
  return pages;
}

std::size_t RequestTable::size() const {
  return size_.load();
}

}  // namespace towline::runtime
