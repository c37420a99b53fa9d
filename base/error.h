#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace towline::base {

/// What the caller can do about it. Named after the remedy, not after the place it broke.
enum class ErrorKind : std::uint8_t {
  kFailed,        ///< No remedy known; report it and give up this migration.
  kDisconnected,  ///< The peer is unreachable; keep the guest and try to reconnect.
  kOverloaded,    ///< A limit was reached; back off before trying again.
  kUnsupported,   ///< This kernel or peer cannot do it; choose the fallback.
  kCorrupt,       ///< The peer sent bytes that cannot be right; drop the link, never retry them.
  kRefused,       ///< Asked for in a state, or with a value, that does not allow it.
};

struct Error {
  ErrorKind kind = ErrorKind::kFailed;
  int errno_value = 0;         ///< errno as the kernel gave it, 0 if no system call was involved.
  const char* operation = "";  ///< String literal naming the step: "UFFDIO_COPY", "read frame".
  std::string detail;          ///< What a person needs: the thing, the value and the remedy.
};

template <typename T>
using Expected = Result<T, Error>;

using Outcome = Status<Error>;

/// "detail (operation: Connection refused)": one line for a person.
std::string to_string(const Error& error);

/// An error without a system call behind it.
inline Err<Error> fail(ErrorKind kind, const char* operation, std::string detail) {
  return Err<Error>{Error{kind, 0, operation, std::move(detail)}};
}

/// An error that carries the current errno. Call it before anything else may change errno.
Err<Error> fail_errno(ErrorKind kind, const char* operation, std::string detail = {});

}  // namespace towline::base
