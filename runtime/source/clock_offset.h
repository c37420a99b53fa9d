#pragma once

#include <cstdint>

namespace towline::runtime {

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
