#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

/// The dirty log has one bit for 4 KiB; a page of guest memory may be larger. Between them, both
/// ways. A large page is a whole number of the log's words. Pure.
namespace towline::runtime {

/// One bit a page: set if any bit of its `words_per_page` words in `log` is. `pages` has a word for
/// each 64 pages that `log` holds; bits beyond the last page are clear.
void fold_log(std::span<const std::uint64_t> log, std::size_t words_per_page,
              std::span<std::uint64_t> pages);

/// The words of `log` that belong to a page whose bit is set in `pages` (bit 0: the first one) have
/// all their bits set, the others none.
void spread_to_log(std::span<const std::uint64_t> pages, std::size_t words_per_page,
                   std::span<std::uint64_t> log);

}  // namespace towline::runtime
