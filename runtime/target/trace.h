#pragma once

#include "base/units.h"
#include "runtime/core/target_input.h"
#include "runtime/options.h"

namespace towline::runtime {

/// At the debug level the log has everything that a target's brain was told, and all that it asked
/// for: `tests/simulation/replay` feeds such a log to the brain that ships and compares.
///
/// Threads: any; in the order in which the brain is fed (under the driver's mutex).
void trace(const TargetInput& input);
void trace(const TargetEffect& effect);
void trace(const TargetTask& task);

/// tl-load takes its tasks itself.
void trace_load(const TargetTask& task);

/// Before the first input: what this brain was made with.
void trace_target_brain(const MigrationOptions& options, base::PageCount pages);

}  // namespace towline::runtime
