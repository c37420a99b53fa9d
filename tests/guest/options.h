#pragma once

#include <cstdint>

#include "tests/guest/text.h"

namespace guest {

enum class Pattern : std::uint8_t { kSequential, kRandom, kZipf, kStrided };
enum class Placement : std::uint8_t { kLow, kHigh, kSpread };

/// The command line. docs/bare-guest.md describes each key.
struct Options {
  std::uint64_t working_set = 64U << 20U;  ///< Bytes.
  std::uint64_t fill = 0;                  ///< Bytes.
  std::uint64_t untouched = 16U << 20U;    ///< Bytes to look at in a sweep.
  std::uint64_t sweep_untouched_all = 0;   ///< 1: look at all of them.
  Pattern pattern = Pattern::kRandom;
  Placement placement = Placement::kLow;
  std::uint64_t stride = 17;         ///< Pages.
  std::uint64_t write_percent = 50;  ///< 0 to 100.
  std::uint64_t rate = 0;            ///< Accesses a second of all vCPUs together; 0: full speed.
  std::uint64_t seed = 1;
  std::uint64_t report_ms = 1000;
  std::uint64_t vcpus = 1;
  std::uint64_t tsc_khz = 0;         ///< 0: ask CPUID.
  std::uint64_t verify_words = 512;  ///< Words of the body looked at by each access.
  std::uint64_t gap_log_us = 500;
};

/// Reads `command_line` into `options`. False if a word of it means nothing, and `bad` is that
/// word; the guest then refuses to start, because a test with a misspelt key tests nothing.
bool parse_options(const char* command_line, Options& options, Word& bad);

const char* name(Pattern pattern);

}  // namespace guest
