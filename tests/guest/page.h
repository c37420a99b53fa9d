#pragma once

#include <cstdint>

#include "tests/guest/mix.h"

/// A page that knows what it is.
///
/// Word 0 is the page's number and generation in clear; word 1 a magic number, word 2 the owner,
/// both xored with their word of the body; words 3 to 511 the body. Every word depends on number
/// and generation, so no word of an old or a foreign page is right by chance.
namespace guest {

inline constexpr std::uint64_t kPageBytes = 4096;
inline constexpr std::uint64_t kPageWords = 512;
inline constexpr std::uint64_t kPageMagic = 0x45474150'4c574f54;  // "TOWLPAGE"

/// Number, generation and writer of one page. Generation 0 was never written.
struct PageIdentity {
  std::uint32_t number = 0;
  std::uint32_t generation = 0;
  std::uint32_t owner = 0;
};

enum class Damage : std::uint8_t {
  kNone,
  kZero,     ///< Nothing but zeros.
  kStale,    ///< A whole page of an earlier generation.
  kFuture,   ///< A whole page of a later generation: the table is stale.
  kForeign,  ///< A whole page with another number.
  kFlipped,  ///< The right page with a few wrong bits.
  kTorn,     ///< Parts of it are something else.
};

const char* name(Damage damage);

/// What was found in the place of a page.
struct Finding {
  Damage damage = Damage::kNone;
  PageIdentity found;            ///< As its own header says.
  std::uint32_t first_word = 0;  ///< First wrong word.
  std::uint32_t wrong_words = 0;
  std::uint32_t wrong_bits = 0;
};

constexpr std::uint64_t page_header(std::uint32_t number, std::uint32_t generation) {
  return (static_cast<std::uint64_t>(generation) << 32U) | number;
}

/// Key of a page's body.
constexpr std::uint64_t page_key(std::uint64_t seed, std::uint32_t number,
                                 std::uint32_t generation) {
  return mix(page_header(number, generation) + seed * kGolden);
}

constexpr std::uint64_t page_word(std::uint64_t key, std::uint64_t index) {
  std::uint64_t x = key + index * kGolden;
  x ^= x >> 32U;
  x *= kFirstFactor;
  return x ^ (x >> 29U);
}

/// What one page adds to the digest of the table. A sum of these, in any order, is the digest.
constexpr std::uint64_t digest_term(std::uint64_t seed, std::uint32_t number,
                                    std::uint32_t generation) {
  return mix(mix(page_header(number, generation)) + seed);
}

/// Writes all 512 words.
void write_page(std::uint64_t* words, std::uint64_t seed, const PageIdentity& identity);

/// True if the header and every `step`th word of the body from `phase` on are right.
bool page_is_right(const std::uint64_t* words, std::uint64_t seed, const PageIdentity& expected,
                   std::uint64_t step, std::uint64_t phase);

/// Names the damage of a page that was found wrong. Slow.
Finding examine(const std::uint64_t* words, std::uint64_t seed, const PageIdentity& expected);

}  // namespace guest
