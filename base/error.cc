#include "base/error.h"

#include <cerrno>
#include <system_error>

namespace towline::base {

std::string to_string(const Error& error) {
  std::string text = error.detail;
  const bool has_operation = error.operation != nullptr && *error.operation != '\0';
  if (error.errno_value == 0) {
    if (text.empty()) {
      return has_operation ? error.operation : "unknown error";
    }
    return text;
  }
  const std::string reason = std::generic_category().message(error.errno_value);
  const std::string cause = has_operation ? std::string(error.operation) + ": " + reason : reason;
  return text.empty() ? cause : text + " (" + cause + ")";
}

Err<Error> fail_errno(ErrorKind kind, const char* operation, std::string detail) {
  const int value = errno;
  return Err<Error>{Error{kind, value, operation, std::move(detail)}};
}

}  // namespace towline::base
