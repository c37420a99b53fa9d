#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "runtime/options.h"

/// The one table of what a user can set for a migration. Made from it: what QMP reads, checks and
/// tells (migrate-set-parameters, query-migrate-parameters), the options of `towline run` and
/// `towline migrate` with their help, and the table in docs/operating.md. A new parameter is one
/// row in parameters.cc, and the member of MigrationOptions that it goes to.
namespace towline::runtime {

/// A parameter's value: kBoolean, kNumber, kChoice or kPageServer, kAddresses.
using ParameterValue = std::variant<bool, std::uint64_t, std::string, std::vector<std::string>>;

struct Parameter {
  enum class Type : std::uint8_t { kBoolean, kNumber, kChoice, kPageServer, kAddresses };

  enum class Unit : std::uint8_t { kNone, kBytes, kBytesPerSecond, kMilliseconds, kSeconds };

  /// What becomes of another value while a migration runs here.
  enum class Change : std::uint8_t {
    kAnyTime,         ///< The migration follows it.
    kForTheNext,      ///< Taken; it counts from the next migration on.
    kBeforeMigrate,   ///< Refused while a guest leaves.
    kBeforeIncoming,  ///< Refused while a guest leaves, and while one is waited for or arrives.
  };

  /// Which end of a migration goes by it.
  enum class End : std::uint8_t { kSource, kTarget, kBoth };

  /// Which commands take it as an option.
  enum class On : std::uint8_t { kNothing, kRun, kMigrate, kRunAndMigrate };

  /// Where the value goes, and of which type it is.
  struct Place {
    Type type;
    ParameterValue (*get)(const MigrationOptions& options);
    /// Only for a value that fits the row; see set_parameter().
    base::Outcome (*put)(MigrationOptions& options, const ParameterValue& value);
    std::span<const std::string_view> choices = {};  ///< kChoice.
  };

  std::string_view name;       ///< In QMP: QEMU's, or one that begins with x-towline-.
  std::string_view also = {};  ///< QEMU's name for the same thing, if it has one.
  Place place;
  Unit unit = Unit::kNone;  ///< kNumber, as the next two.
  std::uint64_t least = 0;
  std::uint64_t most = 0;
  bool in_mebibytes = false;  ///< People say it in MiB, in QEMU's human monitor; programs in bytes.
  Change change = Change::kBeforeMigrate;
  End end = End::kSource;
  On on = On::kNothing;
  std::string_view option = {};  ///< With its dashes.
  /// What `towline migrate` sets when it is not told, if that is not the default.
  std::string_view for_migrate = {};
  std::string_view help;  ///< One sentence. Readers get the default and the range beside it.
};

/// All of them, in the order in which they are told.
std::span<const Parameter> parameters();

/// By either name. None when there is no such parameter.
const Parameter* find_parameter(std::string_view name);

/// What it may be: "an integer from 1 to 60 s", "wait, poison or give-up".
std::string permitted(const Parameter& parameter);

/// The default.
ParameterValue default_of(const Parameter& parameter);

/// Checks the value, and only then sets it.
/// Errors: kRefused; says what the value may be, and does not name the parameter.
base::Outcome set_parameter(MigrationOptions& options, const Parameter& parameter,
                            const ParameterValue& value);

/// A value as people read it: "128 MiB/s", "300 ms", "manual", "none".
std::string to_string(const Parameter& parameter, const ParameterValue& value);

/// What stands behind a number: " ms", " bytes/second"; empty: it has no unit.
std::string_view unit_of(const Parameter& parameter);

/// For the log: every parameter that differs from its default, "x-towline-passes=2 …".
std::string dump(const MigrationOptions& options);

std::string_view to_string(Parameter::Change change);
std::string_view to_string(Parameter::End end);

/// A value that a user gave for a parameter.
struct ParameterSetting {
  const Parameter* parameter = nullptr;  ///< A row of the table.
  ParameterValue value;
  bool given = true;  ///< Else it is what the command sets when it is not told.
};

}  // namespace towline::runtime
