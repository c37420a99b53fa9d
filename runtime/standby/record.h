#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/machine_state.h"
#include "runtime/options.h"
#include "runtime/ports.h"
#include "runtime/wire/format.h"

namespace towline::runtime {

/// What a page server must know to be the source of a migration: everything that is fixed before
/// the switch. What changes afterwards is in the ledger (ledger.h), the memory in files.
struct StandbyRecord {
  struct MemoryRegion {
    std::string name;
    std::uint64_t start = 0;      ///< Guest address.
    std::uint64_t size = 0;       ///< Bytes.
    std::uint64_t page_size = 0;  ///< Bytes.
    Backing backing = Backing::kMemfd;
    std::uint64_t file = 0;    ///< Which of the files that came along.
    std::uint64_t offset = 0;  ///< Where the region begins in it. Bytes.
  };

  std::array<std::byte, wire::kIdBytes> id{};
  std::uint64_t incarnation = 0;         ///< The source's.
  std::uint64_t target_incarnation = 0;  ///< Of the process that has the guest's other half.
  std::vector<std::byte> session_secret;
  Uri target;
  MigrationOptions options;  ///< What serving and reconnecting need; no page server.
  MachineState shape;
  std::vector<MemoryRegion> regions;
};

// Limits that decode_record() enforces; the first two bound what a peer can make us hold.
inline constexpr std::size_t kMaxRecordBytes = 1U << 20U;
inline constexpr std::uint64_t kMaxStandbyFiles = 64;
inline constexpr std::uint64_t kMaxStandbyRegions = 256;
inline constexpr std::uint64_t kMaxStandbyBytes = 1ULL << 46U;  ///< As the machine's own limit.

/// Errors: kFailed when it exceeds the limits.
base::Expected<std::vector<std::byte>> encode_record(const StandbyRecord& record);

/// Errors: kCorrupt, naming what is wrong. What it returns keeps every limit: sizes are multiples
/// of page sizes, nothing overflows, each region's file is one of `files`.
base::Expected<StandbyRecord> decode_record(std::span<const std::byte> bytes, std::uint64_t files);

}  // namespace towline::runtime
