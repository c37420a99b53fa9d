#pragma once

#include <list>
#include <string>
#include <vector>

#include "runtime/parameters.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 names it so.
class App;
class Option;
}  // namespace CLI

namespace towline::tools {

/// The options of one command that stand for migration parameters: one for each row of
/// runtime/parameters.h that says so.
class ParameterOptions {
 public:
  enum class Command : std::uint8_t { kRun, kMigrate };

  explicit ParameterOptions(Command command) : command_(command) {}

  /// Adds the options to `app`, which keeps referring to this.
  void declare(CLI::App& app);

  /// After the words were read: what was given, checked. For kMigrate also the source's others,
  /// with the value that the command sets then. Throws CLI::Error.
  [[nodiscard]] std::vector<runtime::ParameterSetting> settings() const;

 private:
  struct Declared {
    const runtime::Parameter* parameter = nullptr;
    std::string text;
    std::vector<std::string> texts;  ///< kAddresses: may be given several times.
    CLI::Option* option = nullptr;
  };

  const Command command_;
  std::list<Declared> declared_;  // Its elements stay where they are: CLI11 writes to them.
};

}  // namespace towline::tools
