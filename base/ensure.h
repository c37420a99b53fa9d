#pragma once

namespace towline::base {

/// Logs what broke and aborts. Never returns, and waits for whoever reads the log 200 ms at most.
[[noreturn]] void ensure_failed(const char* condition, const char* why, const char* file,
                                int line) noexcept;

}  // namespace towline::base

/// A broken invariant of ours, on in every build. Never for a peer's or a user's input.
#define ENSURE(condition, why)                                             \
  do {                                                                     \
    if (!(condition)) [[unlikely]] {                                       \
      ::towline::base::ensure_failed(#condition, why, __FILE__, __LINE__); \
    }                                                                      \
  } while (false)
