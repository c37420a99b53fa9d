#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "vmm/monitor/json.h"

namespace towline::monitor {

/// The arguments of one command. Each is asked for by name and type; finish() refuses what nobody
/// asked for. Errors are worded as QEMU's, because managers show and match them.
class CommandArguments {
 public:
  /// `object` may be null (no arguments) and outlives this.
  explicit CommandArguments(const Json* object) : object_(object) {}

  base::Expected<std::string> text(std::string_view name);
  base::Expected<std::optional<std::string>> optional_text(std::string_view name);
  base::Expected<std::optional<bool>> optional_boolean(std::string_view name);
  base::Expected<std::optional<std::uint64_t>> optional_whole(std::string_view name);
  base::Expected<const Json*> array(std::string_view name);
  base::Expected<const Json*> optional_array(std::string_view name);

  /// The arguments as they came; null when there were none.
  [[nodiscard]] const Json* all() const { return object_; }

  /// Errors: an argument that was never asked for.
  [[nodiscard]] base::Outcome finish() const;

 private:
  const Json* take(std::string_view name);

  const Json* const object_;
  std::vector<std::string_view> known_;
};

base::Err<base::Error> refuse(std::string why);
base::Err<base::Error> missing(std::string_view name);
base::Err<base::Error> wrong_type(std::string_view name, std::string_view expected);
base::Err<base::Error> unexpected(std::string_view name);
base::Err<base::Error> not_accepted(std::string_view name, std::string_view value);

}  // namespace towline::monitor
