#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "runtime/link/handshake.h"
#include "runtime/wire/format.h"
#include "runtime/wire/lane_name.h"
#include "tests/simulation/network.h"
#include "tests/simulation/world.h"

namespace towline::simulation {

/// What both ends of a migration know of each other from its first epoch on.
struct Identity {
  explicit Identity(World& world);

  std::array<std::byte, runtime::wire::kIdBytes> id{};
  std::vector<std::byte> secret;  ///< Of the session.
  std::uint64_t source_incarnation = 0;
  std::uint64_t target_incarnation = 0;
};

void fill_randomly(Random& random, std::span<std::byte> bytes);

/// The lanes of one epoch as the source has them, and how many threads use them.
struct SourceLanes {
  explicit SourceLanes(std::uint64_t number) : epoch(number) {}

  /// Those that there are, control first.
  [[nodiscard]] std::vector<Connection*> all() const;

  /// What became of a data lane: which attempt at it is in use, and whether that was given up.
  struct Fate {
    std::uint32_t attempt = 0;
    bool ended = false;
  };

  [[nodiscard]] Fate& fate(runtime::LaneName lane) { return fates[runtime::lane_code(lane)]; }

  /// Nothing is sent any more on the lane of that attempt.
  [[nodiscard]] bool over(runtime::LaneName lane, std::uint32_t attempt) {
    return closed || fate(lane).ended || fate(lane).attempt != attempt;
  }

  [[nodiscard]] Connection*& place_of(runtime::LaneName lane) {
    return lane.role == runtime::wire::LaneRole::kUrgent ? urgent : bulk[lane.number];
  }

  std::uint64_t epoch;
  Connection* control = nullptr;
  Connection* urgent = nullptr;
  std::vector<Connection*> bulk;
  std::map<std::uint64_t, Fate> fates;  ///< By lane_code().
  int threads = 0;
  bool control_read = false;  ///< To its end.
  bool closed = false;
  bool push = false;  ///< The bulk lanes may begin.
};

/// The lanes of one epoch as the target has them.
struct Receivers {
  struct Bulk {
    Connection* lane = nullptr;
    std::uint32_t markers = 0;
    bool pushed_all = false;
    bool no_room = false;  ///< For its last frame.
  };

  /// Which attempt at a data lane is the latest, and how many threads read one.
  struct Fate {
    std::uint32_t attempt = 0;
    int readers = 0;
  };

  [[nodiscard]] Fate& fate(runtime::LaneName lane) { return fates[runtime::lane_code(lane)]; }

  [[nodiscard]] Connection*& place_of(runtime::LaneName lane) {
    return lane.role == runtime::wire::LaneRole::kUrgent ? urgent : bulk[lane.number].lane;
  }

  Receivers(std::uint64_t number, std::size_t bulk_lanes) : epoch(number), bulk(bulk_lanes) {}

  [[nodiscard]] std::vector<Connection*> all() const;
  [[nodiscard]] bool all_attached() const;
  [[nodiscard]] bool all_markers(std::uint32_t pass) const;
  [[nodiscard]] bool all_pushed() const;

  std::uint64_t epoch;
  Connection* control = nullptr;
  Connection* urgent = nullptr;
  std::vector<Bulk> bulk;
  std::map<std::uint64_t, Fate> fates;  ///< By lane_code().
  int threads = 0;                      ///< Of the urgent and the bulk lanes.
  bool control_ended = false;           ///< And nobody reads it any more.
  bool lost = false;
  base::PageIndex sweep_at;
  std::uint64_t sweep_outstanding = 0;
};

}  // namespace towline::simulation
