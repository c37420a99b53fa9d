#pragma once

#include <string>
#include <string_view>

#include "vmm/monitor/commands.h"

namespace towline::monitor {

/// What the human monitor answers to a line.
struct HumanAnswer {
  std::string text;  ///< Lines that end in CRLF; empty if there is nothing to say.
  /// `migrate` without -d: a terminal waits until the move is over, or paused.
  bool waits_for_migration = false;
};

/// Carries out one line of the human monitor: QEMU's words for people, "info migrate". Each command
/// is one of QMP, so that what may be asked when is decided in one place. Errors are text, as in
/// QEMU: "Error: …".
///
/// Threads: the loop's.
HumanAnswer run_human_command(CommandContext& context, std::string_view line);

}  // namespace towline::monitor
