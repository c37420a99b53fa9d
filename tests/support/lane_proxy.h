#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "base/fd.h"
#include "base/sync.h"
#include "base/thread.h"
#include "runtime/options.h"
#include "runtime/wire/lane_name.h"

namespace towline::tests {

/// Stands between a source and a target of this process and does harm to one lane.
class LaneProxy {
 public:
  enum class Harm : std::uint8_t {
    kReset,          ///< Both ends see a reset.
    kClose,          ///< Both ends see a close.
    kResetAtSource,  ///< The target sees nothing.
    kResetAtTarget,  ///< The source sees nothing.
    kFlip,           ///< One bit of what goes to the target next is wrong.
    kSwallow,        ///< What goes to the source next vanishes, and the lane goes on.
  };

  /// Listens at `at`; by default at any port.
  explicit LaneProxy(runtime::Uri target, const std::string& at = "tcp:127.0.0.1:0");
  LaneProxy(const LaneProxy&) = delete;
  LaneProxy& operator=(const LaneProxy&) = delete;
  ~LaneProxy();

  [[nodiscard]] runtime::Uri at() const { return at_; }

  /// Harms the newest connection of `lane`. False: there is none, or it was harmed before.
  bool harm(runtime::LaneName lane, Harm how) EXCLUDES(mutex_);

  /// Resets every connection.
  void cut() EXCLUDES(mutex_);

  /// Takes nothing more from the control lane's source, until told otherwise.
  void stall_control(bool stalled) EXCLUDES(mutex_);

  /// New connections of data lanes are closed at once, so many times.
  void refuse_lanes(int times) { refusing_ = times; }

 private:
  struct Link {
    base::OwnedFd near;
    base::OwnedFd far;
    std::optional<runtime::LaneName> lane;  // Under mutex_; nothing for a control lane.
    bool harmed = false;                    // Under mutex_.
    bool control = false;                   // Under mutex_.
    std::atomic<bool> flip{false};
    std::atomic<bool> swallow{false};
    std::atomic<bool> keeps_near{false};
    std::atomic<bool> keeps_far{false};
    base::NamedThread to_target;
    base::NamedThread to_source;
  };

  void accept_all();
  void carry_to_target(Link& link);
  bool learn_lane(Link& link, std::span<const std::byte> start) EXCLUDES(mutex_);
  void await_turn(const Link& link) EXCLUDES(mutex_);

  runtime::Uri target_;
  runtime::Uri at_;
  base::OwnedFd listening_;
  std::atomic<bool> ending_{false};
  std::atomic<int> refusing_{0};
  base::Mutex mutex_;
  base::Condition changed_;
  bool stalled_ GUARDED_BY(mutex_) = false;
  std::list<std::unique_ptr<Link>> links_ GUARDED_BY(mutex_);
  base::NamedThread thread_;
};

}  // namespace towline::tests
