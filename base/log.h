#pragma once

#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace towline::base {

enum class LogLevel : unsigned char { kDebug, kInfo, kWarning, kError };

/// Sets the lowest level that is written and the name at the head of each line. Default: kInfo.
void configure_log(LogLevel lowest, std::string_view program);

[[nodiscard]] bool log_enabled(LogLevel level);

/// Writes one line to standard error. A line that cannot be written (disk full) is dropped and
/// counted; logging never stops the program.
void write_log(LogLevel level, std::string_view line);

/// An event with fields: log(LogLevel::kInfo, "lane.closed role={} bytes={}", role, bytes).
template <typename... Args>
void log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level)) {
    write_log(level, fmt::format(format, std::forward<Args>(args)...));
  }
}

}  // namespace towline::base
