#pragma once

#include "runtime/core/source_input.h"

namespace towline::runtime {

/// At the debug level the log has everything that a source's brain was told, and all that it asked
/// for: `tests/replay` feeds such a log to the brain that ships and compares.
///
/// Threads: any; in the order in which the brain is fed (under the driver's mutex).
void trace(const SourceInput& input);
void trace(const SourceEffect& effect);
void trace(const SourceTask& task);

/// Before the first input: what this brain was made with.
void trace_brain(const Uri& target, const MigrationOptions& options, std::uint64_t pages);

}  // namespace towline::runtime
