#pragma once

#include <string>
#include <vector>

#include "tools/arguments/parameter_options.h"
#include "tools/arguments/parse.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 names it so.
class App;
}  // namespace CLI

/// `towline run`: its options, and what they mean.
namespace towline::tools {

/// What CLI11 fills in before it is checked.
struct RunTexts {
  std::string memory = "256M";
  std::string backing = "memfd";
  std::string cpu = "host";
  std::vector<std::string> qmp;
  std::vector<std::string> monitors;
  ParameterOptions parameters{ParameterOptions::Command::kRun};
  std::string level = "info";
};

void declare_run(CLI::App& app, RunArguments& run, RunTexts& texts);

/// After the words were read. Throws CLI::Error.
void finish_run(RunArguments& run, const RunTexts& texts, bool incoming);

}  // namespace towline::tools
