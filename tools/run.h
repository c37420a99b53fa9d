#pragma once

#include "tools/arguments/parse.h"

namespace towline::tools {

/// `towline run`: a machine with its control sockets, until it ends. Returns the exit status.
int run(const RunArguments& arguments);

}  // namespace towline::tools
