#pragma once

#include <cstdint>

#include "tests/guest/options.h"

/// Where everything is. All of RAM is mapped at its physical address.
namespace guest {

struct HvmStartInfo;

/// Physical [first, last).
struct Range {
  std::uint64_t first = 0;
  std::uint64_t last = 0;

  [[nodiscard]] std::uint64_t pages() const { return (last - first) / 4096; }
};

inline constexpr std::uint32_t kMostRanges = 16;

/// A few ranges, in address order.
struct Ranges {
  Range range[kMostRanges];
  std::uint32_t count = 0;

  void add(Range added);
  [[nodiscard]] std::uint64_t pages() const;
  /// Address of the `page`th page, counted through all ranges.
  [[nodiscard]] std::uint64_t address(std::uint64_t page) const;
};

struct Memory {
  Ranges ram;    ///< As the memory map says, from 1 MiB up.
  Ranges free;   ///< What nothing uses: it is never written and must stay zero.
  Ranges pages;  ///< The working set and, after it, the filled pages.
  Range tables;  ///< Page tables beyond the first 4 GiB.
  std::uint32_t* generations = nullptr;  ///< Expected generation of each page.
  std::uint64_t working_set_pages = 0;
  std::uint64_t fill_pages = 0;
};

// Constants fill it before anything runs. NOLINTNEXTLINE(bugprone-dynamic-static-initializers)
extern Memory memory;

/// Copies out what the loader left: it may lie in memory that we are about to use.
/// Returns the command line, or null if the loader's block is not one.
const char* read_start_info(const HvmStartInfo* info);

/// Maps all of RAM and shares it out. Null, or what does not fit.
const char* lay_out_memory(const Options& options);

/// Entries of the page tables that are not what we wrote.
std::uint64_t wrong_table_entries();

}  // namespace guest
