#pragma once

#include "tools/arguments/parse.h"

namespace towline::tools {

/// How a move ended; the values are the exit status of `towline migrate`.
enum class MoveEnd : int {
  kMoved = 0,      ///< The guest runs at the target.
  kFailed = 1,     ///< The guest runs on at the source.
  kCancelled = 3,  ///< The guest runs on at the source.
  kUndecided = 4,  ///< Paused, or going on without this command.
};

/// `towline migrate`. Returns the exit status.
int migrate(const MigrateArguments& arguments);

}  // namespace towline::tools
