#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/options.h"
#include "runtime/wire/lane_name.h"

namespace towline::runtime {

/// What has been said to the source's session by the target, the user and the lanes, until its
/// thread reads it. Guarded by the driver's mutex.
struct SourceInbox {
  bool accepted = false;
  std::optional<std::string> refused;          ///< The target's reasons.
  std::uint64_t rounds_applied = 0;            ///< kStaleApplied frames seen.
  std::optional<std::uint64_t> running_at_ns;  ///< Target's clock at its first KVM_RUN.
  std::optional<std::string> never;            ///< Tombstone.
  std::optional<std::string> no_room;          ///< The target waits for room, and why.
  bool complete = false;
  std::optional<base::Error> lost;   ///< The first lane that broke, and how.
  bool control_ended = false;        ///< tl-control has read all that there was.
  bool silent = false;               ///< The peer does not speak: no last words are waited for.
  bool runs = false;                 ///< kRunning was seen in this epoch.
  bool missing_told = false;         ///< kMissingEnd was seen in this epoch.
  std::uint64_t missing_so_far = 0;  ///< Named by kMissing frames whose end was not seen yet.
  std::uint64_t missing_pages = 0;   ///< Named in all, before the last kMissingEnd.

  /// A data lane that broke alone, and which attempt at it.
  struct BrokenLane {
    LaneName lane;
    std::uint32_t attempt = 0;
    base::Error reason;
  };

  std::vector<BrokenLane> broken;     ///< Lanes that are to be replaced: at most one.
  std::uint32_t missing_attempt = 0;  ///< What is missing was told after this attempt.
  bool cancel = false;
  bool switch_asked = false;
  std::uint64_t pongs = 0;
  bool target_idle = false;  ///< Its last beat said that each of its receivers waits.

  // What the user asked for while the migration is paused.
  bool held = false;   ///< Paused by hand: goes on by hand.
  bool leave = false;  ///< This process ends, or wants the migration gone.
  std::optional<Uri> resume_at;

  /// Nothing of an epoch's link is left for the next. What the target said of the guest stays.
  void begin_epoch() {
    lost.reset();
    refused.reset();
    control_ended = false;
    silent = false;
    runs = false;
    missing_told = false;
    missing_so_far = 0;
    missing_pages = 0;
    broken.clear();
    missing_attempt = 0;
    target_idle = false;
  }
};

/// The offset between both monotonic clocks, from echoes: target = source + offset.
class ClockOffset {
 public:
  ClockOffset() = default;

  /// One that was measured before.
  ClockOffset(std::int64_t offset_ns, std::uint64_t error_ns)
      : known_(true), best_round_trip_(error_ns * 2), offset_(offset_ns) {}

  /// All in ns: when the ping left and the pong came (source's clock), and the target's clock.
  void add(std::uint64_t sent, std::uint64_t received, std::uint64_t at_target) {
    const std::uint64_t round_trip = received - sent;
    if (!known_ || round_trip < best_round_trip_) {
      known_ = true;
      best_round_trip_ = round_trip;
      offset_ =
          static_cast<std::int64_t>(at_target) - static_cast<std::int64_t>(sent + round_trip / 2);
    }
  }

  [[nodiscard]] bool known() const { return known_; }

  [[nodiscard]] std::int64_t offset_ns() const { return offset_; }

  /// The offset is right to this much on either side.
  [[nodiscard]] std::uint64_t error_ns() const { return best_round_trip_ / 2; }

 private:
  bool known_ = false;
  std::uint64_t best_round_trip_ = 0;
  std::int64_t offset_ = 0;
};

}  // namespace towline::runtime
