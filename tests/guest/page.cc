#include "tests/guest/page.h"

namespace guest {

namespace {

// A page with at most this many wrong bits is called flipped rather than torn. Two unrelated words
// differ in 32 bits or so; guess.
constexpr std::uint32_t kMostFlippedBits = 24;

std::uint64_t expected_word(std::uint64_t key, const PageIdentity& identity, std::uint64_t index) {
  switch (index) {
    case 0:
      return page_header(identity.number, identity.generation);
    case 1:
      return page_word(key, 1) ^ kPageMagic;
    case 2:
      return page_word(key, 2) ^ identity.owner;
    default:
      return page_word(key, index);
  }
}

std::uint32_t count_bits(std::uint64_t word) {
  std::uint32_t count = 0;
  for (; word != 0; word &= word - 1) {
    ++count;
  }
  return count;
}

bool all_zero(const std::uint64_t* words) {
  std::uint64_t any = 0;
  for (std::uint64_t i = 0; i < kPageWords; ++i) {
    any |= words[i];
  }
  return any == 0;
}

PageIdentity claimed_identity(const std::uint64_t* words, std::uint64_t seed) {
  PageIdentity found;
  found.number = static_cast<std::uint32_t>(words[0]);
  found.generation = static_cast<std::uint32_t>(words[0] >> 32U);
  const std::uint64_t key = page_key(seed, found.number, found.generation);
  found.owner = static_cast<std::uint32_t>(words[2] ^ page_word(key, 2));
  return found;
}

}  // namespace

const char* name(Damage damage) {
  switch (damage) {
    case Damage::kNone:
      return "none";
    case Damage::kZero:
      return "zero";
    case Damage::kStale:
      return "stale";
    case Damage::kFuture:
      return "future";
    case Damage::kForeign:
      return "foreign";
    case Damage::kFlipped:
      return "flipped";
    case Damage::kTorn:
      return "torn";
  }
  return "unknown";
}

void write_page(std::uint64_t* words, std::uint64_t seed, const PageIdentity& identity) {
  const std::uint64_t key = page_key(seed, identity.number, identity.generation);
  for (std::uint64_t i = 0; i < 3; ++i) {
    words[i] = expected_word(key, identity, i);
  }
  for (std::uint64_t i = 3; i < kPageWords; ++i) {
    words[i] = page_word(key, i);
  }
}

bool page_is_right(const std::uint64_t* words, std::uint64_t seed, const PageIdentity& expected,
                   std::uint64_t step, std::uint64_t phase) {
  const std::uint64_t key = page_key(seed, expected.number, expected.generation);
  std::uint64_t wrong = 0;
  for (std::uint64_t i = 0; i < 3; ++i) {
    wrong |= words[i] ^ expected_word(key, expected, i);
  }
  for (std::uint64_t i = 3 + phase; i < kPageWords; i += step) {
    wrong |= words[i] ^ page_word(key, i);
  }
  return wrong == 0;
}

Finding examine(const std::uint64_t* words, std::uint64_t seed, const PageIdentity& expected) {
  Finding finding;
  finding.found = claimed_identity(words, seed);
  const std::uint64_t key = page_key(seed, expected.number, expected.generation);
  finding.first_word = kPageWords;
  for (std::uint32_t i = 0; i < kPageWords; ++i) {
    const std::uint64_t difference = words[i] ^ expected_word(key, expected, i);
    if (difference != 0) {
      finding.first_word = finding.wrong_words == 0 ? i : finding.first_word;
      ++finding.wrong_words;
      finding.wrong_bits += count_bits(difference);
    }
  }
  if (finding.wrong_words == 0) {
    return finding;  // It was wrong a moment ago: somebody else writes here.
  }
  if (all_zero(words)) {
    finding.damage = Damage::kZero;
  } else if (finding.wrong_bits <= kMostFlippedBits) {
    finding.damage = Damage::kFlipped;
  } else if (!page_is_right(words, seed, finding.found, 1, 0)) {
    finding.damage = Damage::kTorn;
  } else if (finding.found.number != expected.number) {
    finding.damage = Damage::kForeign;
  } else {
    finding.damage =
        finding.found.generation < expected.generation ? Damage::kStale : Damage::kFuture;
  }
  return finding;
}

}  // namespace guest
