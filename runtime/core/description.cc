#include "runtime/core/description.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "runtime/wire/format.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;

constexpr std::string_view kMigrationSection = "migration";
constexpr std::string_view kRegionSection = "memory-region";

bool is_ours(const Section& section) {
  return section.device == kMigrationSection || section.device == kRegionSection;
}

std::string mebibytes(std::uint64_t bytes) {
  return bytes % (1U << 20U) == 0 ? fmt::format("{} MiB", bytes >> 20U)
                                  : fmt::format("{} bytes", bytes);
}

}  // namespace

Description describe(Machine& machine, std::uint64_t bulk_lanes, std::vector<std::byte> secret) {
  Description description;
  description.bulk_lanes = bulk_lanes;
  description.secret = std::move(secret);
  description.machine = machine.shape();
  for (const Region& region : machine.regions()) {
    description.regions.push_back({.name = region.name,
                                   .start = region.start.value,
                                   .size = region.size.value,
                                   .page_size = region.page_size.value});
  }
  return description;
}

base::Expected<std::vector<std::byte>> encode_description(const Description& description) {
  MachineState state;
  Section migration;
  migration.device = kMigrationSection;
  migration.put("bulk-lanes", description.bulk_lanes);
  migration.put_bytes("secret", description.secret);
  state.sections.push_back(std::move(migration));
  std::uint32_t instance = 0;
  for (const auto& region : description.regions) {
    Section section;
    section.device = kRegionSection;
    section.instance = instance++;
    section.put_text("name", region.name);
    section.put("start", region.start);
    section.put("size", region.size);
    section.put("page-size", region.page_size);
    state.sections.push_back(std::move(section));
  }
  state.sections.insert(state.sections.end(), description.machine.sections.begin(),
                        description.machine.sections.end());
  return encode(state);
}

base::Expected<Description> decode_description(std::span<const std::byte> bytes) {
  MachineState state = TRY(decode(bytes));
  Description description;
  const Section* migration = state.find(kMigrationSection);
  if (migration == nullptr) {
    return fail(ErrorKind::kCorrupt, "description", "it has no section 'migration'");
  }
  description.bulk_lanes = TRY(migration->get("bulk-lanes"));
  if (description.bulk_lanes < 1 || description.bulk_lanes > wire::kMaxBulkLanes) {
    return fail(ErrorKind::kCorrupt, "description",
                fmt::format("{} bulk lanes are wanted; 1 to {} are possible",
                            description.bulk_lanes, wire::kMaxBulkLanes));
  }
  const auto secret = TRY(migration->get_bytes("secret", kSecretBytes));
  description.secret.assign(secret.begin(), secret.end());
  for (Section& section : state.sections) {
    if (section.device == kRegionSection) {
      Description::MemoryRegion region;
      region.name = TRY(section.get_text("name"));
      region.start = TRY(section.get("start"));
      region.size = TRY(section.get("size"));
      region.page_size = TRY(section.get("page-size"));
      description.regions.push_back(std::move(region));
    } else if (!is_ours(section)) {
      description.machine.sections.push_back(std::move(section));
    }
  }
  return description;
}

std::vector<std::string> memory_refusals(const Description& description,
                                         const MemoryLayout& layout) {
  std::vector<std::string> reasons;
  const auto& here = layout.entries();
  for (const auto& there : description.regions) {
    const auto found = std::find_if(here.begin(), here.end(),
                                    [&](const auto& entry) { return entry.name == there.name; });
    if (found == here.end()) {
      reasons.push_back(
          fmt::format("memory '{}' ({}) of the source does not exist at the target; "
                      "start the target with the source's --memory",
                      there.name, mebibytes(there.size)));
    } else if (found->size.value != there.size) {
      reasons.push_back(
          fmt::format("memory '{}' has {} at the source and {} at the target; start "
                      "the target with the source's --memory",
                      there.name, mebibytes(there.size), mebibytes(found->size.value)));
    } else if (found->start.value != there.start || found->page_size.value != there.page_size) {
      reasons.push_back(fmt::format(
          "memory '{}' lies at {:#x} in pages of {} bytes at the source, at {:#x} in pages of {} "
          "at the target; give both machines the same --memory-backing",
          there.name, there.start, there.page_size, found->start.value, found->page_size.value));
    }
  }
  for (const auto& entry : here) {
    if (std::none_of(description.regions.begin(), description.regions.end(),
                     [&](const auto& region) { return region.name == entry.name; })) {
      reasons.push_back(
          fmt::format("memory '{}' ({}) of the target does not exist at the source; "
                      "start the target with the source's --memory",
                      entry.name, mebibytes(entry.size.value)));
    }
  }
  const bool same_order =
      std::equal(description.regions.begin(), description.regions.end(), here.begin(), here.end(),
                 [](const auto& region, const auto& entry) { return region.name == entry.name; });
  if (reasons.empty() && !same_order) {
    reasons.emplace_back("the memory regions are listed in another order than the target's");
  }
  return reasons;
}

}  // namespace towline::runtime
