#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"
#include "runtime/options.h"
#include "vmm/monitor/json.h"

namespace towline::monitor {

/// What a manager has set for migrations to come: QEMU's capabilities and parameters, as far as
/// they are built. A value type; the functions below check and never change half of it.
struct MigrationSettings {
  bool events = false;
  bool postcopy_ram = false;
  /// Demanded pages have a lane of their own in any case; kept because managers set and read it.
  bool postcopy_preempt = false;

  std::uint64_t max_bandwidth = 128U << 20U;           ///< QEMU's default. Bytes/s; 0: no limit.
  std::uint64_t max_postcopy_bandwidth = 0;            ///< Bytes/s; 0: no limit.
  std::uint64_t downtime_limit_ms = 300;               ///< QEMU's default.
  std::optional<runtime::SwitchPolicy> switch_policy;  ///< Not set by hand: manual.
  std::uint32_t passes = 1;
  std::uint32_t bulk_lanes = 2;

  // What happens when the link is lost in post-copy.
  bool auto_recover = true;
  std::uint64_t heartbeat_ms = 100;
  std::uint64_t patience_ms = 250;
  std::uint64_t frozen_patience_ms = 5000;
  std::uint64_t reconnect_deadline_s = 0;  ///< 0: never.
  std::vector<runtime::Uri> alternates;
  std::uint64_t memory_reserve = 64U << 20U;                     ///< Bytes. At the target.
  runtime::SourceLoss source_loss = runtime::SourceLoss::kWait;  ///< At the target.
  std::uint64_t source_loss_deadline_s = 60;
  runtime::PageServerChoice page_server;  ///< Without its command. At the source.
};

/// The answer of query-migrate-capabilities.
Json capabilities_json(const MigrationSettings& settings);

/// Applies the list of migrate-set-capabilities, all of it or nothing.
base::Expected<MigrationSettings> with_capabilities(MigrationSettings settings, const Json& list);

/// The answer of query-migrate-parameters.
Json parameters_json(const MigrationSettings& settings);

/// Applies the arguments of migrate-set-parameters (null: none), all of them or nothing.
/// `running`: only what can follow a migration in progress may change.
base::Expected<MigrationSettings> with_parameters(MigrationSettings settings, const Json* object,
                                                  bool running);

/// What a migration started now is given.
runtime::MigrationOptions options_for(const MigrationSettings& settings);

/// Every move goes post-copy, so somebody must have called it that: by the capability, or by a
/// switch without an order (x-towline-switch). A manager that never did knows nothing of the
/// statuses that follow, and ends what it does not know, at the side where the guest is by then.
/// Errors: kRefused; names the capability, the command that sets it, and the other way.
base::Outcome check_postcopy_is_meant(const MigrationSettings& settings);

}  // namespace towline::monitor
