#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/units.h"

namespace towline::runtime {

/// When the vCPUs go over.
enum class SwitchPolicy : std::uint8_t {
  kImmediate,  ///< No pre-pass at all.
  kAfterPass,  ///< As soon as the pre-pass is done.
  kManual,     ///< When told (migrate-start-postcopy).
};

/// What a target does with its guest when the source does not come back.
enum class SourceLoss : std::uint8_t {
  kWait,    ///< For ever: who touches a missing page waits.
  kPoison,  ///< What is missing becomes an error to touch; the guest runs on with the rest.
  kGiveUp,  ///< The guest is ended.
};

// Their names on the command line and in QMP, in the order of the values.
inline constexpr std::array<std::string_view, 3> kSwitchPolicyNames{"immediate", "after-pass",
                                                                    "manual"};
inline constexpr std::array<std::string_view, 3> kSourceLossNames{"wait", "poison", "give-up"};

std::string_view to_string(SourceLoss policy);
std::optional<SourceLoss> source_loss_named(std::string_view name);

/// tcp:HOST:PORT, tcp:[::1]:PORT, unix:PATH.
struct Uri {
  enum class Kind : std::uint8_t { kTcp, kUnix };
  Kind kind = Kind::kTcp;
  std::string host;        ///< kTcp: name or address without brackets.
  std::uint16_t port = 0;  ///< kTcp: 0 lets the listener choose.
  std::string path;        ///< kUnix.

  /// Errors: kRefused; names the value and the three forms.
  static base::Expected<Uri> parse(const std::string& text);

  [[nodiscard]] std::string to_string() const;

  /// 127.0.0.0/8, ::1, "localhost" or a unix path: nothing beyond this host can reach it.
  [[nodiscard]] bool is_local() const;

  /// The host is a name other than "localhost": to know its address takes as long as the network
  /// lets it.
  [[nodiscard]] bool needs_lookup() const;
};

/// Who holds the guest's memory besides the source's process, so that it outlives that process.
struct PageServerChoice {
  enum class Kind : std::uint8_t {
    kNone,    ///< Nobody: a source that dies in post-copy takes the missing pages with it.
    kOwn,     ///< A process of its own, started with `command`, in a session of its own.
    kScope,   ///< As kOwn, and in a control group of its own: a scope of systemd's.
    kDaemon,  ///< One that listens at the unix socket `path`.
  };
  Kind kind = Kind::kNone;
  std::string path;                  ///< kDaemon.
  std::vector<std::string> command;  ///< kOwn, kScope: what to execute; "--socket-fd N" is added.

  /// "none", "own", "scope", "unix:PATH". Errors: kRefused; names the value and the forms.
  static base::Expected<PageServerChoice> parse(const std::string& text);

  [[nodiscard]] std::string to_string() const;
};

/// Everything that can be set for one migration, with unit, default and reason. What a user can
/// set, and within which bounds, is in parameters.h.
struct MigrationOptions {
  SwitchPolicy switch_policy = SwitchPolicy::kManual;
  std::uint32_t passes = 1;      ///< Passes over memory before the switch.
  std::uint32_t bulk_lanes = 2;  ///< One thread each on both sides.
  /// Before the switch, bytes/s over all lanes; 0: no limit. QEMU's default.
  std::uint64_t max_bandwidth = 128U << 20U;
  std::uint64_t max_postcopy_bandwidth = 0;  ///< Bulk lanes after the switch, bytes/s; 0: no limit.
  std::chrono::milliseconds downtime_limit{300};  ///< QEMU's default. See limit_downtime().
  std::uint64_t switch_page_budget = 300;         ///< Last dirty delta that is small enough. Pages.
  std::chrono::milliseconds switch_wait{200};     ///< Longest wait for such a delta.
  std::chrono::milliseconds handshake_timeout{5000};  ///< A peer that says nothing is dropped.
  std::chrono::milliseconds connect_timeout{5000};
  bool pause_before_switchover = false;  ///< Park the guest, and wait for the word to go on.
  bool auto_recover = true;  ///< Reconnect by itself when the link was lost in post-copy.
  std::chrono::milliseconds heartbeat{100};  ///< A sign of life each way, in post-copy.
  /// Data that the peer's kernel does not acknowledge for so long: the link is dead.
  std::chrono::milliseconds patience{250};
  /// A peer whose kernel acknowledges and whose process says nothing for so long is frozen.
  std::chrono::milliseconds frozen_patience{5000};
  /// After a loss the status stays as it was for so long while it can still heal by itself:
  /// managers take postcopy-paused for a failure. 0: the loss shows at once.
  std::chrono::milliseconds paused_after{3000};
  std::chrono::seconds reconnect_deadline{0};  ///< Reconnecting ends then; 0: never.
  /// The target pauses the move when its control group has less than so much left. Bytes.
  std::uint64_t memory_reserve = 64U << 20U;
  std::vector<Uri> alternates;  ///< Further addresses of the same target, tried in turn.
  SourceLoss source_loss = SourceLoss::kWait;     ///< At the target. Can change at any time.
  std::chrono::seconds source_loss_deadline{60};  ///< Paused for so long: it is done.
  PageServerChoice page_server;                   ///< Source.
  std::optional<std::string> secret;  ///< From --secret FILE: proves both ends to each other.

  /// Sets the page budget of the switch that the limit stands for.
  ///
  /// A page of the last delta costs the pause about a microsecond at the target (it is zapped
  /// there), so a limit in milliseconds is a number of thousands of pages. Only 0 is less than the
  /// default budget: then the switch waits, as long as it may, for a moment without a dirty page.
  void limit_downtime(std::chrono::milliseconds limit);
};

}  // namespace towline::runtime
