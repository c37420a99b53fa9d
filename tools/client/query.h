#pragma once

#include "tools/arguments/parse.h"

namespace towline::tools {

/// `towline status`. Returns the exit status.
int status(const StatusArguments& arguments);

/// `towline qmp`. Returns the exit status.
int qmp(const QmpArguments& arguments);

}  // namespace towline::tools
