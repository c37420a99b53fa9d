#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"
#include "vmm/monitor/json.h"

namespace towline::monitor {

/// A parameter that QEMU has and Towline has not. Managers set many of them, most at QEMU's own
/// default: what loses nothing when it is ignored is accepted, and what promises something is
/// refused by any value but the one that asks for nothing.
struct QemuParameter {
  enum class Kind : std::uint8_t {
    kInert,        ///< It belongs to something that is off here, so that no value has an effect.
    kOnlyDefault,  ///< Another value would be a promise.
  };
  enum class Type : std::uint8_t { kBoolean, kNumber, kText, kList };

  std::string_view name = {};
  Kind kind = Kind::kInert;
  Type type = Type::kNumber;
  std::string_view usual = {};  ///< QEMU's default, as JSON.
  std::uint64_t least = 0;
  std::uint64_t most = 0;                      ///< Of a number.
  std::span<const std::string_view> any = {};  ///< What a text may be. Empty: whatever.
  std::string_view why = {};  ///< What stands in its place here, or why it does nothing.
  bool in_mebibytes = false;  ///< As in runtime::Parameter.
  bool newest = true;         ///< QEMU 10.2 has it: it is told. 7.2 has the others.
};

/// All of them, in the order in which they are told.
std::span<const QemuParameter> qemu_parameters();

/// None: QEMU has no such parameter, or Towline builds it.
const QemuParameter* find_qemu_parameter(std::string_view name);

/// Its value for as long as nobody sets it.
Json usual_value(const QemuParameter& parameter);

/// What a parameter holds after `given` was set. Errors: kRefused: another type, not in QEMU's
/// range, or a value that promises what is not built; names the parameter and the remedy.
base::Expected<Json> accepted_value(const QemuParameter& parameter, const Json& given);

}  // namespace towline::monitor
