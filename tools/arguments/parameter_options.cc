#include "tools/arguments/parameter_options.h"

#include <charconv>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tools/arguments/checks.h"

#include <CLI/CLI.hpp>

namespace towline::tools {
namespace {

using runtime::Parameter;
using runtime::ParameterValue;
using Type = Parameter::Type;
using Unit = Parameter::Unit;

bool taken_by(Parameter::On on, ParameterOptions::Command command) {
  switch (on) {
    case Parameter::On::kNothing:
      return false;
    case Parameter::On::kRun:
      return command == ParameterOptions::Command::kRun;
    case Parameter::On::kMigrate:
      return command == ParameterOptions::Command::kMigrate;
    case Parameter::On::kRunAndMigrate:
      return true;
  }
  __builtin_unreachable();
}

bool is_size(const Parameter& parameter) {
  return parameter.unit == Unit::kBytes || parameter.unit == Unit::kBytesPerSecond;
}

std::string placeholder(const Parameter& parameter) {
  switch (parameter.place.type) {
    case Type::kBoolean:
      return "true|false";
    case Type::kChoice:
      return fmt::format("{}", fmt::join(parameter.place.choices, "|"));
    case Type::kPageServer:
      return "own|scope|unix:PATH|none";
    case Type::kAddresses:
      return "URI";
    case Type::kNumber:
      break;
  }
  switch (parameter.unit) {
    case Unit::kNone:
      return "N";
    case Unit::kBytes:
    case Unit::kBytesPerSecond:
      return "SIZE";
    case Unit::kMilliseconds:
      return "MILLISECONDS";
    case Unit::kSeconds:
      return "SECONDS";
  }
  __builtin_unreachable();
}

ParameterValue number_of_text(const Parameter& parameter, const std::string& text) {
  const std::string option(parameter.option);
  if (is_size(parameter)) {
    return size_of(option, text);
  }
  std::uint64_t number = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, number);
  if (text.empty() || error != std::errc{} || end != last) {
    complain(option, text, "use " + permitted(parameter));
  }
  return number;
}

ParameterValue value_of_text(const Parameter& parameter, const std::string& text) {
  switch (parameter.place.type) {
    case Type::kBoolean:
      if (text != "true" && text != "false") {
        complain(std::string(parameter.option), text, "use " + permitted(parameter));
      }
      return text == "true";
    case Type::kNumber:
      return number_of_text(parameter, text);
    case Type::kChoice:
    case Type::kPageServer:
      return text;
    case Type::kAddresses:
      return std::vector{text};
  }
  __builtin_unreachable();
}

/// A value that may be set.
ParameterValue checked(const Parameter& parameter, const std::string& text) {
  ParameterValue value = value_of_text(parameter, text);
  runtime::MigrationOptions ignored;
  if (const auto set = set_parameter(ignored, parameter, value); !set.ok()) {
    complain(std::string(parameter.option), text, set.error().detail);
  }
  return value;
}

/// What `towline migrate` sets at the source when the option is not given.
ParameterValue untold(const Parameter& parameter) {
  return parameter.for_migrate.empty() ? default_of(parameter)
                                       : checked(parameter, std::string(parameter.for_migrate));
}

/// "0 to 16; default 1", as far as it says something that the sentence does not.
std::string range_and_default(const Parameter& parameter, ParameterOptions::Command command) {
  std::string said;
  switch (parameter.place.type) {
    case Type::kNumber:
      said = is_size(parameter) ? "Bytes, or with K, M, G or T, such as 500M. "
                                : fmt::format("{} to {}. ", parameter.least, parameter.most);
      break;
    case Type::kBoolean:
    case Type::kChoice:
    case Type::kPageServer:
      break;  // The placeholder says it.
    case Type::kAddresses:
      return "May be given several times.";
  }
  const bool migrate = command == ParameterOptions::Command::kMigrate;
  if (migrate && parameter.end == Parameter::End::kTarget) {
    return said + "Default: as the target was told.";
  }
  const auto value = migrate ? untold(parameter) : default_of(parameter);
  return said + fmt::format("Default: {}.", to_string(parameter, value));
}

}  // namespace

void ParameterOptions::declare(CLI::App& app) {
  for (const Parameter& one : runtime::parameters()) {
    if (!taken_by(one.on, command_)) {
      continue;
    }
    Declared& declared = declared_.emplace_back();
    declared.parameter = &one;
    const std::string option(one.option);
    const std::string help = fmt::format("{} {}", one.help, range_and_default(one, command_));
    declared.option = one.place.type == Type::kAddresses
                          ? app.add_option(option, declared.texts, help)
                          : app.add_option(option, declared.text, help);
    declared.option->type_name(placeholder(one));
  }
}

std::vector<runtime::ParameterSetting> ParameterOptions::settings() const {
  std::vector<runtime::ParameterSetting> all;
  for (const Declared& one : declared_) {
    const Parameter& parameter = *one.parameter;
    if (one.option->count() == 0) {
      // What the target was told stays as it is.
      if (command_ == Command::kMigrate && parameter.end != Parameter::End::kTarget) {
        all.push_back({&parameter, untold(parameter), false});
      }
    } else if (parameter.place.type == Type::kAddresses) {
      for (const std::string& text : one.texts) {
        checked(parameter, text);
      }
      all.push_back({&parameter, one.texts});
    } else {
      all.push_back({&parameter, checked(parameter, one.text)});
    }
  }
  return all;
}

}  // namespace towline::tools
