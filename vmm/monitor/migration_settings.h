#pragma once

#include <vector>

#include "base/error.h"
#include "runtime/options.h"
#include "runtime/parameters.h"
#include "vmm/monitor/json.h"

namespace towline::monitor {

/// What a manager has set for the next migration: those of QEMU's capabilities that are built, and
/// the parameters (runtime/parameters.h). A value type: the functions below return a changed copy,
/// or an error.
struct MigrationSettings {
  bool events = false;
  bool postcopy_ram = false;
  /// Demanded pages have a lane of their own in any case; kept because managers set and read it.
  bool postcopy_preempt = false;
  /// Several lanes are used in any case, and `multifd-channels` is their number; kept likewise.
  bool multifd = false;
  /// What was set of QEMU's parameters that have no effect here, by name. Told as they were set.
  std::vector<Json::Member> inert;
  runtime::MigrationOptions options;  ///< What a migration started now is given.
};

/// Which migrations are in progress in this process.
struct InProgress {
  bool leaving = false;
  bool arriving = false;  ///< Or waited for.
};

/// The answer of query-migrate-capabilities.
Json capabilities_json(const MigrationSettings& settings);

/// Applies the list of migrate-set-capabilities, all of it or nothing.
base::Expected<MigrationSettings> with_capabilities(MigrationSettings settings, const Json& list);

/// The answer of query-migrate-parameters.
Json parameters_json(const MigrationSettings& settings);

/// Applies the arguments of migrate-set-parameters (null: none), all of them or nothing.
/// Errors: kRefused: unknown, not built, not permitted, or not to be changed now; names the
/// parameter, the value and what it may be.
base::Expected<MigrationSettings> with_parameters(MigrationSettings settings, const Json* object,
                                                  InProgress now);

/// A parameter's value in JSON.
Json json_of(const runtime::ParameterValue& value);

/// Every move is post-copy, so its user must have asked for post-copy: by the capability, or by a
/// switch without an order (x-towline-switch). A manager that did not ask does not know the
/// statuses of post-copy. It may end a process whose status it does not know, and with it the
/// guest. Errors: kRefused; names the capability, the command that sets it, and the other way.
base::Outcome check_postcopy_is_meant(const MigrationSettings& settings);

}  // namespace towline::monitor
