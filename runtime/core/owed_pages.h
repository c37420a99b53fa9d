#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/units.h"

namespace towline::runtime {

/// The source's view: pages that the target does not hold and that nobody has sent yet. One bit a
/// page. Whoever takes a page sends it, so that bulk and urgent lanes send each page once.
///
/// Threads: any; lock-free.
class OwedPages {
 public:
  explicit OwedPages(base::PageCount pages);

  [[nodiscard]] base::PageCount pages() const { return pages_; }

  void add(base::PageRange range);
  void clear();

  /// True: `page` was owed, and is the caller's to send.
  [[nodiscard]] bool take(base::PageIndex page);

  [[nodiscard]] bool contains(base::PageIndex page) const;

  /// Takes the first run of owed pages that begins in [from, end), at most `limit` long and not
  /// beyond `end`. Looks at each word once; skips empty ones quickly.
  [[nodiscard]] std::optional<base::PageRange> take_run(base::PageIndex from, base::PageIndex end,
                                                        base::PageCount limit);

  [[nodiscard]] base::PageCount count() const;

 private:
  base::PageCount pages_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> words_;
  std::atomic<std::uint64_t> count_{0};
};

}  // namespace towline::runtime
