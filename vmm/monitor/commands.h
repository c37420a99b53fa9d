#pragma once

#include <span>
#include <string_view>

#include "base/error.h"
#include "vmm/monitor/command_arguments.h"
#include "vmm/monitor/guest.h"
#include "vmm/monitor/json.h"
#include "vmm/monitor/migration_control.h"

namespace towline::monitor {

/// Who ends the process when a command asks for it.
class Quitter {
 public:
  Quitter() = default;
  Quitter(const Quitter&) = delete;
  Quitter& operator=(const Quitter&) = delete;
  virtual ~Quitter() = default;

  /// Errors: kRefused, naming what would be lost; never with `force`.
  virtual base::Outcome quit(bool force) = 0;
};

/// What the commands work on.
struct CommandContext {
  Guest& guest;
  MigrationControl& migration;
  Quitter& quitter;
};

struct Command {
  std::string_view name;
  bool out_of_band;  ///< May be sent as exec-oob: it only reads, or steers a migration.
  base::Expected<Json> (*run)(CommandContext& context, CommandArguments& arguments);
};

/// All of them, in the order in which query-commands lists them.
std::span<const Command> commands();

/// None when there is no such command.
const Command* find_command(std::string_view name);

/// {"qemu": …, "package": "towline …"}: the version that the greeting and query-version tell.
Json version_json();

}  // namespace towline::monitor
