#pragma once

#include "tools/arguments/parse.h"

namespace towline::tools {

/// `towline page-server`: see docs/architecture.md, "The page server". Returns the exit status.
int page_server(const PageServerArguments& arguments);

}  // namespace towline::tools
