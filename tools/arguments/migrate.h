#pragma once

#include <string>

#include "tools/arguments/parse.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 names it so.
class App;
}  // namespace CLI

/// `towline migrate`: its options, and what they mean.
namespace towline::tools {

/// What CLI11 fills in before it is checked.
struct MigrateTexts {
  std::string max_bandwidth = "0";
  std::string max_postcopy_bandwidth = "0";
};

void declare_migrate(CLI::App& app, MigrateArguments& migrate, MigrateTexts& texts);

/// After the words were read. Throws CLI::Error.
void finish_migrate(MigrateArguments& migrate, const MigrateTexts& texts);

}  // namespace towline::tools
