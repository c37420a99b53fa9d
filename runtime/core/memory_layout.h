#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/units.h"
#include "runtime/ports.h"

namespace towline::runtime {

/// The flat page space of a machine: its regions one after the other, in table order. Both ends
/// have the same layout, or the target refuses the description.
class MemoryLayout {
 public:
  struct Entry {
    std::string name;
    base::GuestAddress start;
    base::Bytes size;
    base::Bytes page_size;
    base::PageIndex first;
    base::PageCount count;
  };

  struct Place {
    std::size_t region = 0;
    std::uint64_t offset = 0;  ///< From the region's beginning. Bytes.
  };

  MemoryLayout() = default;
  explicit MemoryLayout(const std::vector<Region>& regions);

  [[nodiscard]] const std::vector<Entry>& entries() const { return entries_; }

  [[nodiscard]] base::PageCount pages() const { return pages_; }

  [[nodiscard]] base::Bytes bytes() const { return bytes_; }

  /// The size of the page. `page` < pages().
  [[nodiscard]] base::Bytes page_size(base::PageIndex page) const {
    return entries_[region_of(page)].page_size;
  }

  /// The largest page that there is; 4096 without any.
  [[nodiscard]] base::Bytes largest_page() const;

  /// What a page stands for where only a number of pages is known: their size, or the mean of it if
  /// there are several.
  [[nodiscard]] base::Bytes mean_page() const;

  /// `range` is not empty, in bounds, and inside one region. Never overflows, whatever it holds.
  [[nodiscard]] bool valid(base::PageRange range) const;

  /// Where a page lies. `page` < pages().
  [[nodiscard]] Place locate(base::PageIndex page) const;

  /// The region of a page. `page` < pages().
  [[nodiscard]] std::size_t region_of(base::PageIndex page) const;

  /// The longest head of `range` that lies in one region. `range.first` < pages().
  [[nodiscard]] base::PageRange clip(base::PageRange range) const;

 private:
  std::vector<Entry> entries_;
  base::PageCount pages_;
  base::Bytes bytes_;
};

}  // namespace towline::runtime
