#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "runtime/core/memory_layout.h"
#include "runtime/ports.h"

namespace towline::runtime {

/// Guest memory as the source reads it: through its files.
///
/// Threads: any.
class SourceMemory {
 public:
  SourceMemory(const std::vector<Region>& regions, const MemoryLayout& layout)
      : regions_(regions), layout_(layout) {}

  /// Copies pages out; a hole gives zeros and stays a hole. `range` lies in one region. While the
  /// guest runs, only a copy may be tested, summed and sent: the page itself changes meanwhile.
  base::Outcome read(base::PageRange range, std::span<std::byte> into) const;

  /// As read(), into `buffer`, which grows as needed and holds what is returned.
  [[nodiscard]] base::Expected<std::span<const std::byte>> copy(
      base::PageRange range, std::vector<std::byte>& buffer) const;

  /// The pages of a parked guest, where they lie: only those that exist, because touching a hole
  /// through a mapping fills it. Huge pages are copied: a hole that was touched with none free
  /// would end this process by SIGBUS.
  [[nodiscard]] base::Expected<std::span<const std::byte>> parked(
      base::PageRange range, std::vector<std::byte>& buffer) const;

  /// The first run of pages in `range` (one region) that may hold anything but zeros.
  [[nodiscard]] base::Expected<std::optional<base::PageRange>> next_data(
      base::PageRange range) const;

  [[nodiscard]] const MemoryLayout& layout() const { return layout_; }

 private:
  const std::vector<Region>& regions_;  // The machine's; it outlives the migration.
  MemoryLayout layout_;
};

}  // namespace towline::runtime
