#include "tests/guest/memory.h"

#include "tests/guest/machine.h"

extern "C" {
extern char image_end[];
extern std::uint64_t page_map[512];
extern std::uint64_t page_pointers[512];
extern std::uint64_t page_directories[4 * 512];
}

namespace guest {

/// Layout fixed by the PVH boot protocol.
struct HvmStartInfo {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint32_t flags;
  std::uint32_t module_count;
  std::uint64_t modules;
  std::uint64_t command_line;
  std::uint64_t rsdp;
  std::uint64_t memory_map;
  std::uint32_t memory_map_entries;
  std::uint32_t reserved;
};

constinit Memory memory;

namespace {

struct MemoryMapEntry {
  std::uint64_t address;
  std::uint64_t size;
  std::uint32_t type;
  std::uint32_t reserved;
};

constexpr std::uint32_t kStartMagic = 0x336ec578;
constexpr std::uint32_t kUsable = 1;
constexpr std::uint64_t kGiB = 1U << 30U;
constexpr std::uint64_t kLargePage = 2U << 20U;
constexpr std::uint64_t kImageBase = 1U << 20U;  // Memory below is left to the loader.
// The processor sets accessed and dirty itself; set from the start, the entries never change.
constexpr std::uint64_t kTableFlags = 0x27;
constexpr std::uint64_t kLargePageFlags = 0xe7;

char command_line[4096];

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// Cuts `pages` from the bottom of `from`.
void take_low(Ranges& from, std::uint64_t pages, Ranges& to) {
  for (std::uint32_t i = 0; i < from.count && pages != 0; ++i) {
    Range& range = from.range[i];
    const std::uint64_t taken = pages < range.pages() ? pages : range.pages();
    if (taken != 0) {
      to.add(Range{range.first, range.first + taken * 4096});
      range.first += taken * 4096;
      pages -= taken;
    }
  }
}

/// Cuts `pages` from the top of `from`.
void take_high(Ranges& from, std::uint64_t pages, Ranges& to) {
  for (std::uint32_t i = from.count; i-- > 0 && pages != 0;) {
    Range& range = from.range[i];
    const std::uint64_t taken = pages < range.pages() ? pages : range.pages();
    if (taken != 0) {
      to.add(Range{range.last - taken * 4096, range.last});
      range.last -= taken * 4096;
      pages -= taken;
    }
  }
}

/// One piece of memory in one range, below the first 4 GiB.
std::uint64_t take_together(std::uint64_t bytes) {
  const std::uint64_t pages = round_up(bytes, 4096) / 4096;
  for (std::uint32_t i = 0; i < memory.free.count; ++i) {
    Range& range = memory.free.range[i];
    if (range.pages() >= pages && range.first + pages * 4096 <= 4 * kGiB) {
      range.first += pages * 4096;
      return range.first - pages * 4096;
    }
  }
  return 0;
}

bool is_ram(std::uint64_t gib) {
  for (std::uint32_t i = 0; i < memory.ram.count; ++i) {
    const Range& range = memory.ram.range[i];
    if (range.first < (gib + 1) * kGiB && range.last > gib * kGiB) {
      return true;
    }
  }
  return false;
}

/// Calls `visit(gib)` for each GiB above the first four that holds RAM.
template <typename Visit>
void for_each_high_gib(Visit visit) {
  const std::uint64_t last = memory.ram.range[memory.ram.count - 1].last;
  for (std::uint64_t gib = 4; gib * kGiB < last; ++gib) {
    if (is_ram(gib)) {
      visit(gib);
    }
  }
}

constexpr std::uint64_t large_page_entry(std::uint64_t gib, std::uint64_t index) {
  return (gib * kGiB + index * kLargePage) | kLargePageFlags;
}

/// Entries of one table of large pages, and the pointer to it, that are not what we wrote.
std::uint64_t wrong_entries(std::uint64_t gib, std::uint64_t table) {
  std::uint64_t wrong = page_pointers[gib] != (table | kTableFlags) ? 1 : 0;
  for (std::uint64_t i = 0; i < 512; ++i) {
    wrong += at<const std::uint64_t>(table)[i] != large_page_entry(gib, i) ? 1 : 0;
  }
  return wrong;
}

/// Adds tables for RAM above 4 GiB. Runs at CPL 3: tables are memory like any other, and nothing
/// that was mapped changes.
bool map_high_memory() {
  std::uint64_t directories = 0;
  for_each_high_gib([&directories](std::uint64_t) { ++directories; });
  if (directories == 0) {
    return true;
  }
  if (memory.ram.range[memory.ram.count - 1].last > 512 * kGiB) {
    return false;  // One table of pointers is enough for 512 GiB.
  }
  memory.tables.first = take_together(directories * 4096);
  memory.tables.last = memory.tables.first + directories * 4096;
  if (memory.tables.first == 0) {
    return false;
  }
  std::uint64_t table = memory.tables.first;
  for_each_high_gib([&table](std::uint64_t gib) {
    for (std::uint64_t i = 0; i < 512; ++i) {
      at<std::uint64_t>(table)[i] = large_page_entry(gib, i);
    }
    compiler_barrier();
    page_pointers[gib] = table | kTableFlags;
    table += 4096;
  });
  return true;
}

void add_usable(const MemoryMapEntry& entry) {
  const auto image = round_up(reinterpret_cast<std::uint64_t>(image_end), 4096);
  const std::uint64_t last = (entry.address + entry.size) / 4096 * 4096;
  const std::uint64_t first = round_up(entry.address, 4096);
  if (entry.type != kUsable || last <= kImageBase) {
    return;
  }
  memory.ram.add(Range{first, last});
  if (last > image) {
    memory.free.add(Range{first < image ? image : first, last});
  }
}

}  // namespace

void Ranges::add(Range added) {
  if (count == kMostRanges || added.first >= added.last) {
    return;
  }
  std::uint32_t place = count++;
  for (; place > 0 && range[place - 1].first > added.first; --place) {
    range[place] = range[place - 1];
  }
  range[place] = added;
}

std::uint64_t Ranges::pages() const {
  std::uint64_t sum = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    sum += range[i].pages();
  }
  return sum;
}

std::uint64_t Ranges::address(std::uint64_t page) const {
  for (std::uint32_t i = 0; i < count; ++i) {
    if (page < range[i].pages()) {
      return range[i].first + page * 4096;
    }
    page -= range[i].pages();
  }
  return 0;
}

const char* read_start_info(const HvmStartInfo* info) {
  if (info->magic != kStartMagic || info->version < 1) {
    return nullptr;
  }
  const auto* entry = at<const MemoryMapEntry>(info->memory_map);
  for (std::uint32_t i = 0; i < info->memory_map_entries; ++i) {
    add_usable(entry[i]);
  }
  const auto* from = at<const char>(info->command_line);
  for (std::uint32_t i = 0; from != nullptr && i + 1 < sizeof(command_line); ++i) {
    command_line[i] = from[i];
    if (from[i] == '\0') {
      break;
    }
  }
  return command_line;
}

const char* lay_out_memory(const Options& options) {
  if (memory.ram.count == 0) {
    return "no-memory-map";
  }
  if (!map_high_memory()) {
    return "page-tables";
  }
  memory.working_set_pages = options.working_set / 4096;
  memory.fill_pages = options.fill / 4096;
  const std::uint64_t wanted = memory.working_set_pages + memory.fill_pages;
  const std::uint64_t table_bytes = wanted * sizeof(std::uint32_t);
  if (wanted > memory.free.pages() || wanted >> 32U != 0) {
    return "working-set";
  }
  memory.generations = at<std::uint32_t>(take_together(table_bytes));
  if (memory.generations == nullptr || wanted > memory.free.pages()) {
    return "working-set";
  }
  const std::uint64_t low = options.placement == Placement::kLow      ? wanted
                            : options.placement == Placement::kSpread ? wanted / 2
                                                                      : 0;
  take_low(memory.free, low, memory.pages);
  take_high(memory.free, wanted - memory.pages.pages(), memory.pages);
  return nullptr;
}

std::uint64_t wrong_table_entries() {
  const auto low = reinterpret_cast<std::uint64_t>(page_directories);
  const auto pointers = reinterpret_cast<std::uint64_t>(page_pointers);
  std::uint64_t wrong = page_map[0] != (pointers | kTableFlags) ? 1 : 0;
  for (std::uint64_t gib = 0; gib < 4; ++gib) {
    wrong += wrong_entries(gib, low + gib * 4096);
  }
  std::uint64_t table = memory.tables.first;
  for_each_high_gib([&table, &wrong](std::uint64_t gib) {
    wrong += wrong_entries(gib, table);
    table += 4096;
  });
  return wrong;
}

}  // namespace guest
