#pragma once

#include "tools/arguments/parameter_options.h"
#include "tools/arguments/parse.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 names it so.
class App;
}  // namespace CLI

/// `towline migrate`: its options, and what they mean.
namespace towline::tools {

void declare_migrate(CLI::App& app, MigrateArguments& migrate, ParameterOptions& parameters);

/// After the words were read. Throws CLI::Error.
void finish_migrate(MigrateArguments& migrate, const ParameterOptions& parameters);

}  // namespace towline::tools
