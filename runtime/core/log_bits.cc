#include "runtime/core/log_bits.h"

#include <algorithm>

namespace towline::runtime {
namespace {

constexpr std::size_t kBitsInWord = 64;

}  // namespace

void fold_log(std::span<const std::uint64_t> log, std::size_t words_per_page,
              std::span<std::uint64_t> pages) {
  std::fill(pages.begin(), pages.end(), 0);
  const std::size_t count = log.size() / words_per_page;
  for (std::size_t page = 0; page < count; ++page) {
    const auto words = log.subspan(page * words_per_page, words_per_page);
    if (std::any_of(words.begin(), words.end(), [](auto word) { return word != 0; })) {
      pages[page / kBitsInWord] |= std::uint64_t{1} << page % kBitsInWord;
    }
  }
}

void spread_to_log(std::span<const std::uint64_t> pages, std::size_t words_per_page,
                   std::span<std::uint64_t> log) {
  const std::size_t count = log.size() / words_per_page;
  for (std::size_t page = 0; page < count; ++page) {
    const bool set = (pages[page / kBitsInWord] >> page % kBitsInWord & 1U) != 0;
    const auto words = log.subspan(page * words_per_page, words_per_page);
    std::fill(words.begin(), words.end(), set ? ~std::uint64_t{0} : 0);
  }
}

}  // namespace towline::runtime
