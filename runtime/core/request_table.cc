#include "runtime/core/request_table.h"

#include <bit>
#include <utility>

namespace towline::runtime {

RequestTable::Order::Order(std::size_t slots) : links_(slots + 1) {
}

void RequestTable::Order::append(Slot slot) {
  const Slot last = links_.back().before;
  links_[slot] = {last, kNone};
  at(last).next = slot;
  links_.back().before = slot;
}

void RequestTable::Order::remove(Slot slot) {
  const auto [before, next] = links_[slot];
  at(before).next = next;
  at(next).before = before;
}

RequestTable::RequestTable(std::size_t bound)
    : entries_(bound), buckets_(std::bit_ceil(bound), kNone), by_age_(bound), due_(bound) {
  for (std::size_t slot = bound; slot > 0; --slot) {
    entries_[slot - 1].next_alike = std::exchange(free_, static_cast<Slot>(slot - 1));
  }
}

RequestTable::Slot& RequestTable::bucket(std::uint64_t page) {
  // Neighbours are asked for together: the multiplication (by 2^64 divided by the golden ratio)
  // spreads them, and its upper bits are the good ones.
  const std::uint64_t spread = page * 0x9e3779b97f4a7c15U;
  return buckets_[(spread >> 32U) & (buckets_.size() - 1)];
}

RequestTable::Slot RequestTable::find(std::uint64_t page) {
  Slot slot = bucket(page);
  while (slot != kNone && entries_[slot].page != page) {
    slot = entries_[slot].next_alike;
  }
  return slot;
}

template <typename Each>
void RequestTable::for_each_in(base::PageRange range, Each each) {
  if (range.count.value <= size_) {
    for (std::uint64_t page = range.first.value; page < range.end().value; ++page) {
      if (const Slot slot = find(page); slot != kNone) {
        each(slot);
      }
    }
    return;
  }
  for (Slot slot = by_age_.first(); slot != kNone;) {
    const Slot next = by_age_.after(slot);
    if (range.contains(base::PageIndex{entries_[slot].page})) {
      each(slot);
    }
    slot = next;
  }
}

RequestTable::Added RequestTable::add(base::PageIndex page, base::Instant now) {
  const base::Lock lock(mutex_);
  if (const Slot found = find(page.value); found != kNone) {
    ++entries_[found].waiters;
    return Added::kJoined;
  }
  if (free_ == kNone) {
    return Added::kFull;
  }
  const Slot slot = free_;
  Entry& entry = entries_[slot];
  free_ = entry.next_alike;
  entry.page = page.value;
  entry.since = now;
  entry.waiters = 1;
  entry.request = Request::kNotNeeded;
  entry.next_alike = std::exchange(bucket(page.value), slot);
  by_age_.append(slot);
  ++size_;
  return Added::kFirst;
}

void RequestTable::make_due(Slot slot) {
  entries_[slot].request = Request::kDue;
  due_.append(slot);
}

// Takes the entry out of everything by which it can be found. It is not free yet.
void RequestTable::forget(Slot slot) {
  const Entry& entry = entries_[slot];
  Slot* link = &bucket(entry.page);
  while (*link != slot) {
    link = &entries_[*link].next_alike;
  }
  *link = entry.next_alike;
  by_age_.remove(slot);
  if (entry.request == Request::kDue) {
    due_.remove(slot);
  }
  --size_;
}

bool RequestTable::want(base::PageIndex page) {
  const base::Lock lock(mutex_);
  const Slot slot = find(page.value);
  if (slot == kNone || entries_[slot].request != Request::kNotNeeded) {
    return false;
  }
  make_due(slot);
  return true;
}

std::size_t RequestTable::want_range(base::PageRange range) {
  std::size_t became_due = 0;
  if (size_.load() == 0) {
    return became_due;
  }
  const base::Lock lock(mutex_);
  for_each_in(range, [&](Slot slot) UNDER_LOCK {
    if (entries_[slot].request == Request::kNotNeeded) {
      make_due(slot);
      ++became_due;
    }
  });
  return became_due;
}

std::size_t RequestTable::want_all() {
  const base::Lock lock(mutex_);
  for (Slot slot = by_age_.first(); slot != kNone; slot = by_age_.after(slot)) {
    if (entries_[slot].request == Request::kDue) {
      due_.remove(slot);
    }
    make_due(slot);
  }
  return size_;
}

std::size_t RequestTable::next_due(std::span<base::PageIndex> into) const {
  const base::Lock lock(mutex_);
  std::size_t count = 0;
  for (Slot slot = due_.first(); slot != kNone && count < into.size(); slot = due_.after(slot)) {
    into[count++] = base::PageIndex{entries_[slot].page};
  }
  return count;
}

void RequestTable::sent(std::span<const base::PageIndex> pages) {
  const base::Lock lock(mutex_);
  for (const base::PageIndex page : pages) {
    // Not there: it came while its request was being sent.
    if (const Slot slot = find(page.value);
        slot != kNone && entries_[slot].request == Request::kDue) {
      due_.remove(slot);
      entries_[slot].request = Request::kSent;
    }
  }
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
  Slot finished = kNone;  // The first of those that are forgotten and not free yet.
  {
    const base::Lock lock(mutex_);
    Slot* last = &finished;
    for_each_in(range, [&](Slot slot) UNDER_LOCK {
      forget(slot);
      entries_[slot].next_alike = kNone;
      *last = slot;
      last = &entries_[slot].next_alike;
    });
  }
  while (finished != kNone) {
    Finished one;
    std::optional<std::vector<std::byte>> parked;  // Freed without the lock.
    {
      const base::Lock lock(mutex_);
      Entry& entry = entries_[finished];
      one = {base::PageIndex{entry.page}, entry.since, entry.waiters,
             entry.request != Request::kNotNeeded};
      parked = std::exchange(entry.parked, std::nullopt);
      const Slot next = entry.next_alike;
      entry.next_alike = std::exchange(free_, finished);
      finished = next;
    }
    each(one);  // Without the lock: it may come back here.
  }
}

bool RequestTable::park(base::PageIndex page, std::span<const std::byte> bytes) {
  const base::Lock lock(mutex_);
  const Slot slot = find(page.value);
  if (slot == kNone) {
    return false;
  }
  entries_[slot].parked.emplace(bytes.begin(), bytes.end());
  return true;
}

std::optional<std::vector<std::byte>> RequestTable::take_parked(base::PageIndex page) {
  const base::Lock lock(mutex_);
  const Slot slot = find(page.value);
  return slot == kNone ? std::nullopt : std::exchange(entries_[slot].parked, std::nullopt);
}

std::size_t RequestTable::size() const {
  return size_.load();
}

}  // namespace towline::runtime
