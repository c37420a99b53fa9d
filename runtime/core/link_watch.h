#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/clock.h"

/// Tells a dead link from a frozen peer, from what the kernel and the lanes show. No I/O but
/// link_signs().
namespace towline::runtime {

/// What can be seen of the peer at one moment.
struct LinkSigns {
  std::uint64_t bytes_received = 0;  ///< On all lanes, since they were opened.
  /// The peer's kernel owes acknowledgements, and sent the last one so long ago. Absent: it owes
  /// none, or the socket's kind does not tell.
  std::optional<base::Duration> unacknowledged;
};

enum class LinkVerdict : std::uint8_t {
  kAlive,
  kDead,    ///< What was sent is not acknowledged: the link, or the peer's whole host.
  kFrozen,  ///< The peer's kernel acknowledges, and its process says nothing.
};

/// Judges at every tick. A tick that comes late proves nothing about the peer: the time by which it
/// is late is not counted against it.
class LinkWatch {
 public:
  struct Limits {
    base::Duration interval;  ///< Between two ticks.
    base::Duration patience;  ///< For acknowledgements.
    base::Duration frozen;    ///< For anything at all.
  };

  LinkWatch(Limits limits, base::Instant now) : limits_(limits), last_(now), heard_(now) {}

  /// One look; both ends send a sign of life every interval.
  LinkVerdict look(base::Instant now, const LinkSigns& signs);

  /// For the user: what the last verdict was drawn from. `device`: of device_trouble(), may be
  /// empty.
  [[nodiscard]] std::string explain(LinkVerdict verdict, const std::string& device = {}) const;

  /// The peer has spoken since the look before the last one: whatever else is silent, the link is
  /// not dead.
  [[nodiscard]] bool hears() const { return silent_ < limits_.interval * 2; }

 private:
  Limits limits_;
  base::Instant last_;   ///< The look before this one.
  base::Instant heard_;  ///< When something arrived last.
  std::uint64_t bytes_ = 0;
  std::optional<base::Instant> unacknowledged_since_;
  base::Duration silent_{};
  base::Duration unacknowledged_{};
};

/// One data lane beside a control lane that is alive: as LinkWatch, of acknowledgements alone.
class LaneWatch {
 public:
  LaneWatch(base::Duration interval, base::Duration patience, base::Instant now)
      : interval_(interval), patience_(patience), last_(now) {}

  /// One look, every interval. True: nothing is acknowledged for longer than the patience.
  bool look(base::Instant now, std::optional<base::Duration> unacknowledged);

  /// For the user, after look() was true.
  [[nodiscard]] std::string explain() const;

 private:
  base::Duration interval_;
  base::Duration patience_;
  base::Instant last_;
  std::optional<base::Instant> since_;
  base::Duration unacknowledged_{};
};

/// What TCP knows of `fd`'s peer; nothing for other sockets.
std::optional<base::Duration> unacknowledged_for(int fd);

/// The peer has closed `fd`'s connection, or it was reset.
bool has_ended(int fd);

}  // namespace towline::runtime
