#include "tests/guest/options.h"

#include <initializer_list>

namespace guest {

namespace {

struct NumberKey {
  const char* key;
  std::uint64_t Options::*field;
  std::uint64_t least;
  std::uint64_t most;
};

constexpr std::uint64_t kAny = ~std::uint64_t{0};

// clang-format off
constexpr NumberKey kNumberKeys[] = {
    {"working-set",   &Options::working_set,   4096, kAny},
    {"fill",          &Options::fill,          0,    kAny},
    {"untouched",     &Options::untouched,     0,    kAny},
    {"stride",        &Options::stride,        1,    1U << 30U},
    {"write-percent", &Options::write_percent, 0,    100},
    {"rate",          &Options::rate,          0,    1'000'000'000},
    {"seed",          &Options::seed,          0,    kAny},
    {"report-ms",     &Options::report_ms,     1,    3'600'000},
    {"vcpus",         &Options::vcpus,         1,    32},
    {"tsc-khz",       &Options::tsc_khz,       1000, 100'000'000},
    {"verify-words",  &Options::verify_words,  1,    512},
    {"gap-log-us",    &Options::gap_log_us,    1,    60'000'000},
};

// clang-format on

bool parse_pattern(Word value, Options& options) {
  for (const Pattern pattern :
       {Pattern::kSequential, Pattern::kRandom, Pattern::kZipf, Pattern::kStrided}) {
    if (value == name(pattern)) {
      options.pattern = pattern;
      return true;
    }
  }
  return false;
}

bool parse_placement(Word value, Options& options) {
  if (value == "low") {
    options.placement = Placement::kLow;
  } else if (value == "high") {
    options.placement = Placement::kHigh;
  } else if (value == "spread") {
    options.placement = Placement::kSpread;
  } else {
    return false;
  }
  return true;
}

bool parse_sweep(Word value, Options& options) {
  options.sweep_untouched_all = value == "all" ? 1 : 0;
  return value == "all" || value == "sample";
}

bool parse_pair(Word key, Word value, Options& options) {
  if (key == "pattern") {
    return parse_pattern(value, options);
  }
  if (key == "placement") {
    return parse_placement(value, options);
  }
  if (key == "sweep-untouched") {
    return parse_sweep(value, options);
  }
  for (const NumberKey& number : kNumberKeys) {
    if (key == number.key) {
      std::uint64_t parsed = 0;
      if (!parse_number(value, parsed) || parsed < number.least || parsed > number.most) {
        return false;
      }
      options.*number.field = parsed;
      return true;
    }
  }
  return false;
}

bool parse_word(Word word, Options& options) {
  for (std::uint32_t i = 0; i < word.size; ++i) {
    if (word.first[i] == '=') {
      return parse_pair(Word{word.first, i}, Word{word.first + i + 1, word.size - i - 1}, options);
    }
  }
  return false;
}

}  // namespace

const char* name(Pattern pattern) {
  switch (pattern) {
    case Pattern::kSequential:
      return "sequential";
    case Pattern::kRandom:
      return "random";
    case Pattern::kZipf:
      return "zipf";
    case Pattern::kStrided:
      return "strided";
  }
  return "unknown";
}

bool parse_options(const char* command_line, Options& options, Word& bad) {
  while (*command_line != '\0') {
    if (*command_line == ' ') {
      ++command_line;
      continue;
    }
    Word word{command_line, 0};
    while (*command_line != '\0' && *command_line != ' ') {
      ++command_line;
      ++word.size;
    }
    if (!parse_word(word, options)) {
      bad = word;
      return false;
    }
  }
  return true;
}

}  // namespace guest
