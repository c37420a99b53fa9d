#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/core/memory_layout.h"
#include "runtime/machine_state.h"
#include "runtime/ports.h"

namespace towline::runtime {

inline constexpr std::size_t kSecretBytes = 32;  ///< What proves the lanes of a migration.

/// What the source tells of itself before any memory moves: docs/wire-format.md, "Describe".
struct Description {
  std::uint64_t bulk_lanes = 1;
  std::vector<std::byte> secret;  ///< Proves the later lanes. kSecretBytes.
  MachineState machine;           ///< The machine's shape, without memory.

  struct MemoryRegion {
    std::string name;
    std::uint64_t start = 0;
    std::uint64_t size = 0;
    std::uint64_t page_size = 0;
  };

  std::vector<MemoryRegion> regions;
};

Description describe(Machine& machine, std::uint64_t bulk_lanes, std::vector<std::byte> secret);

base::Expected<std::vector<std::byte>> encode_description(const Description& description);

/// Errors: kCorrupt: not a description, or values out of their limits.
base::Expected<Description> decode_description(std::span<const std::byte> bytes);

/// Every reason why the memory described does not fit `layout`, a line each, both values named.
std::vector<std::string> memory_refusals(const Description& description,
                                         const MemoryLayout& layout);

}  // namespace towline::runtime
