#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <string>

namespace towline::base {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  __builtin_unreachable();
}

spdlog::logger& logger() {
  static spdlog::logger instance = [] {
    spdlog::logger made("towline", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made.set_pattern("%Y-%m-%dT%H:%M:%S.%e %n %l %v");
    // The default handler prints the failure to the very place that failed.
    made.set_error_handler([](const std::string&) {});
    return made;
  }();
  return instance;
}

}  // namespace

void configure_log(LogLevel lowest, std::string_view program) {
  logger().set_level(to_spdlog(lowest));
  logger().set_pattern("%Y-%m-%dT%H:%M:%S.%e " + std::string(program) + " %l %v");
}

bool log_enabled(LogLevel level) {
  return logger().should_log(to_spdlog(level));
}

void write_log(LogLevel level, std::string_view line) {
  logger().log(to_spdlog(level), line);
}

}  // namespace towline::base
