#include "vmm/monitor/command_arguments.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace towline::monitor {

base::Err<base::Error> refuse(std::string why) {
  return base::fail(base::ErrorKind::kRefused, "monitor", std::move(why));
}

base::Err<base::Error> missing(std::string_view name) {
  return refuse(fmt::format("Parameter '{}' is missing", name));
}

base::Err<base::Error> wrong_type(std::string_view name, std::string_view expected) {
  return refuse(fmt::format("Invalid parameter type for '{}', expected: {}", name, expected));
}

base::Err<base::Error> unexpected(std::string_view name) {
  return refuse(fmt::format("Parameter '{}' is unexpected", name));
}

base::Err<base::Error> not_accepted(std::string_view name, std::string_view value) {
  return refuse(fmt::format("Parameter '{}' does not accept value '{}'", name, value));
}

const Json* CommandArguments::take(std::string_view name) {
  known_.push_back(name);
  return object_ == nullptr ? nullptr : object_->find(name);
}

base::Expected<std::string> CommandArguments::text(std::string_view name) {
  auto value = TRY(optional_text(name));
  if (!value) {
    return missing(name);
  }
  return std::move(*value);
}

base::Expected<std::optional<std::string>> CommandArguments::optional_text(std::string_view name) {
  const Json* value = take(name);
  if (value == nullptr) {
    return std::optional<std::string>();
  }
  if (value->text() == nullptr) {
    return wrong_type(name, "string");
  }
  return std::optional(*value->text());
}

base::Expected<std::optional<bool>> CommandArguments::optional_boolean(std::string_view name) {
  const Json* value = take(name);
  if (value == nullptr) {
    return std::optional<bool>();
  }
  if (!value->boolean()) {
    return wrong_type(name, "boolean");
  }
  return value->boolean();
}

base::Expected<std::optional<std::uint64_t>> CommandArguments::optional_whole(
    std::string_view name) {
  const Json* value = take(name);
  if (value == nullptr) {
    return std::optional<std::uint64_t>();
  }
  if (!value->whole()) {
    return wrong_type(name, "integer");
  }
  return value->whole();
}

base::Expected<const Json*> CommandArguments::array(std::string_view name) {
  const Json* value = TRY(optional_array(name));
  if (value == nullptr) {
    return missing(name);
  }
  return value;
}

base::Expected<const Json*> CommandArguments::optional_array(std::string_view name) {
  const Json* value = take(name);
  if (value != nullptr && value->items() == nullptr) {
    return wrong_type(name, "array");
  }
  return value;
}

base::Outcome CommandArguments::finish() const {
  if (object_ != nullptr) {
    for (const auto& member : *object_->members()) {
      if (std::find(known_.begin(), known_.end(), member.name) == known_.end()) {
        return unexpected(member.name);
      }
    }
  }
  return base::Done{};
}

}  // namespace towline::monitor
