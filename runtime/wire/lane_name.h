#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"
#include "runtime/wire/format.h"

namespace towline::runtime {

/// One of a migration's data lanes.
struct LaneName {
  wire::LaneRole role = wire::LaneRole::kUrgent;
  std::uint8_t number = 0;  ///< Of a bulk lane.
  bool operator==(const LaneName&) const = default;
};

/// "the urgent lane", "bulk lane 1".
inline std::string to_string(LaneName lane) {
  return lane.role == wire::LaneRole::kBulk ? "bulk lane " + std::to_string(lane.number)
                                            : "the urgent lane";
}

/// As a kLaneLost frame names it: role and, 256 times, number.
inline std::uint64_t lane_code(LaneName lane) {
  return static_cast<std::uint64_t>(lane.role) + (std::uint64_t{lane.number} << 8U);
}

/// nullopt: no data lane has this code.
inline std::optional<LaneName> lane_of_code(std::uint64_t code) {
  if (code == lane_code({wire::LaneRole::kUrgent, 0})) {
    return LaneName{wire::LaneRole::kUrgent, 0};
  }
  const std::uint64_t number = code >> 8U;
  if ((code & 0xffU) != static_cast<std::uint64_t>(wire::LaneRole::kBulk) ||
      number >= wire::kMaxBulkLanes) {
    return std::nullopt;
  }
  return LaneName{wire::LaneRole::kBulk, static_cast<std::uint8_t>(number)};
}

/// It ended for a reason of its own, so that another one in its place may do better.
inline bool is_of_the_lane(const base::Error& reason) {
  return reason.kind == base::ErrorKind::kDisconnected || reason.kind == base::ErrorKind::kCorrupt;
}

}  // namespace towline::runtime
