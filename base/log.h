#pragma once

#include <chrono>
#include <concepts>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/line_queue.h"

/// The log, on standard error. Nobody waits for whoever reads it: lines go through a bounded queue
/// to a thread of their own (base/line_writer.h).
namespace towline::base {

/// How long an end waits for what is not written yet; then the process goes all the same. (Guess: a
/// reader that lives needs a hundredth of it.)
inline constexpr std::chrono::milliseconds kLogFlush{200};

/// Sets the lowest level that is written and the name at the head of each line. Default: kInfo.
void configure_log(LogLevel lowest, std::string_view program);

[[nodiscard]] bool log_enabled(LogLevel level);

/// Takes one line; `about_owner`: see log_owner(). Never waits.
void write_log(LogLevel level, bool about_owner, std::string text);

/// As `"it is \"so\"\n"`, if it is not one plain word: a value that can be told from what follows
/// it. The result has no control characters, and is UTF-8 whatever was given.
std::string log_value(std::string_view text);

namespace detail {

template <typename T>
inline constexpr bool kIsText = std::convertible_to<const T&, std::string_view>;

// Texts as log_value() has them, everything else as it is.
template <typename T>
using Logged = std::conditional_t<kIsText<T>, std::string, const std::remove_reference_t<T>&>;

template <typename T>
Logged<T> as_logged(const T& value) {
  if constexpr (kIsText<T>) {
    return log_value(value);
  } else {
    return value;
  }
}

template <typename... Args>
using LogFormat = fmt::format_string<Logged<Args>...>;

template <typename... Args>
void log_always(LogLevel level, bool about_owner, LogFormat<Args...> format, const Args&... args) {
  write_log(level, about_owner, fmt::vformat(format, fmt::make_format_args(as_logged(args)...)));
}

}  // namespace detail

/// An event with fields: log(LogLevel::kInfo, "lane.closed lane={} bytes={}", name, bytes). Texts
/// among the arguments are quoted where they need it.
template <typename... Args>
void log(LogLevel level, detail::LogFormat<Args...> format, Args&&... args) {
  if (level >= LogLevel::kWarning || log_enabled(level)) {
    detail::log_always<Args...>(level, false, format, args...);
  }
}

/// As log(), of what decides who owns the guest: the last lines to be dropped, and among those that
/// are kept_log_lines() whatever the level.
template <typename... Args>
void log_owner(LogLevel level, detail::LogFormat<Args...> format, Args&&... args) {
  detail::log_always<Args...>(level, true, format, args...);
}

/// For people: `text` as it is, on standard output or standard error, from a process that holds a
/// guest. Whole lines. Never waits.
void say_on_output(std::string text);
void say_on_error(std::string text);

/// Waits until everything is written, for kLogFlush at most. Done by itself at exit() and when
/// main() returns; for std::_Exit() and what is like it.
void flush_log();

struct KeptLine {
  std::string time;
  LogLevel level = LogLevel::kInfo;
  std::string text;
};

/// The last warnings and errors, and the last lines about the guest's owner, oldest first: to be
/// read when standard error is not.
std::vector<KeptLine> kept_log_lines();

/// Lines that were dropped so far.
std::uint64_t dropped_log_lines();

std::string_view to_string(LogLevel level);

}  // namespace towline::base
