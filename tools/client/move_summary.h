#pragma once

#include <string>

#include "tools/client/move.h"
#include "vmm/monitor/json.h"

namespace towline::tools {

/// What a person wants to know at the end of a move, several lines.
std::string summary_text(const MoveView& view, const std::string& target_path);

/// The same for programs: "status" (completed, failed, cancelled, undecided), "exit-status", the
/// main numbers, and both ends' query-migrate.
monitor::Json summary_json(const MoveView& view);

}  // namespace towline::tools
