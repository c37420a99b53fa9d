#include "runtime/core/memory_layout.h"

#include <algorithm>

#include "base/ensure.h"

namespace towline::runtime {

MemoryLayout::MemoryLayout(const std::vector<Region>& regions) {
  entries_.reserve(regions.size());
  for (const Region& region : regions) {
    ENSURE(region.page_size.value != 0 && region.size.value != 0 &&
               region.size.value % region.page_size.value == 0,
           "a region is a whole number of pages");
    const base::PageCount count{region.size.value / region.page_size.value};
    entries_.push_back({region.name, region.start, region.size, region.page_size,
                        base::PageIndex{pages_.value}, count});
    pages_.value += count.value;
    bytes_.value += region.size.value;
  }
}

bool MemoryLayout::valid(base::PageRange range) const {
  if (range.empty() || range.first.value >= pages_.value) {
    return false;
  }
  const Entry& entry = entries_[region_of(range.first)];
  return range.count.value <= entry.count.value - (range.first.value - entry.first.value);
}

std::size_t MemoryLayout::region_of(base::PageIndex page) const {
  const auto after = std::upper_bound(
      entries_.begin(), entries_.end(), page,
      [](base::PageIndex wanted, const Entry& entry) { return wanted < entry.first; });
  return static_cast<std::size_t>(after - entries_.begin()) - 1;
}

base::Bytes MemoryLayout::largest_page() const {
  base::Bytes largest = base::kSmallPage;
  for (const Entry& entry : entries_) {
    largest = std::max(largest, entry.page_size);
  }
  return largest;
}

base::Bytes MemoryLayout::mean_page() const {
  return pages_.value == 0 ? base::kSmallPage : base::Bytes{bytes_.value / pages_.value};
}

MemoryLayout::Place MemoryLayout::locate(base::PageIndex page) const {
  const std::size_t region = region_of(page);
  const Entry& entry = entries_[region];
  return {region, (page.value - entry.first.value) * entry.page_size.value};
}

base::PageRange MemoryLayout::clip(base::PageRange range) const {
  const Entry& entry = entries_[region_of(range.first)];
  const std::uint64_t room = entry.count.value - (range.first.value - entry.first.value);
  return {range.first, base::PageCount{std::min(range.count.value, room)}};
}

}  // namespace towline::runtime
