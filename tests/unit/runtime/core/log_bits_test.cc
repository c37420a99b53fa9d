#include "runtime/core/log_bits.h"

#include <algorithm>
#include <vector>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

using Words = std::vector<std::uint64_t>;

constexpr std::size_t kWordsPerPage = 8;  // 2 MiB of 4 KiB.
constexpr std::uint64_t kAll = ~std::uint64_t{0};

/// A log of `pages` large pages with one bit set, or none.
Words log_of(std::size_t pages) {
  return Words(pages * kWordsPerPage, 0);
}

void set(Words& log, std::size_t bit) {
  log[bit / 64] |= std::uint64_t{1} << bit % 64;
}

TEST_CASE("one dirty part makes a large page dirty, wherever it lies, and no other") {
  for (const std::size_t part : {0U, 63U, 64U, 511U}) {
    CAPTURE(part);
    Words log = log_of(3);
    set(log, 512 + part);
    Words pages(1, kAll);
    fold_log(log, kWordsPerPage, pages);
    CHECK(pages == Words{2});
  }
}

TEST_CASE("bits behind the last page are clear, whatever was there") {
  Words log = log_of(65);
  std::ranges::fill(log, kAll);
  Words pages(2, kAll);
  fold_log(log, kWordsPerPage, pages);
  CHECK(pages == Words{kAll, 1});
}

TEST_CASE("a page that is armed is armed in all its parts, and no other is") {
  Words log(3 * kWordsPerPage, 0x5555);
  spread_to_log(Words{5}, kWordsPerPage, log);
  Words expected = log_of(3);
  for (std::size_t word = 0; word < kWordsPerPage; ++word) {
    expected[word] = kAll;
    expected[2 * kWordsPerPage + word] = kAll;
  }
  CHECK(log == expected);
}

TEST_CASE("what was spread folds back to itself") {
  const Words pages{0x8000000000000001U, 0x2a};
  Words log = log_of(70);
  spread_to_log(pages, kWordsPerPage, log);
  Words back(2, 0);
  fold_log(log, kWordsPerPage, back);
  CHECK(back == pages);
}

}  // namespace
}  // namespace towline::runtime
