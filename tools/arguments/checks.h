#pragma once

#include <cstdint>
#include <string>

#include "base/log.h"
#include "runtime/options.h"
#include "tools/arguments/parse.h"

/// Values that several subcommands take. Every complaint is a CLI::ValidationError that names the
/// option, the value and the remedy.
namespace towline::tools {

/// What CLI11 reports as its own.
[[noreturn]] void complain(const std::string& option, const std::string& value,
                           const std::string& remedy);

/// A name stands in every line of the log.
void check_name(const std::string& text);

/// Bytes. Errors: as parse_size().
std::uint64_t size_of(const std::string& option, const std::string& text);

/// A socket's path, which may stand with unix: before it.
std::string socket_path(const std::string& text);

/// The path of "unix:PATH", and nothing else. Empty stays empty.
std::string unix_path(const std::string& option, const std::string& text);

/// "unix:PATH", with what QEMU is given for the same thing behind it, or ",events=off".
QmpSocket parse_qmp(const std::string& text);

void check_uri(const std::string& option, const std::string& text);

base::LogLevel log_level(const std::string& text);

}  // namespace towline::tools
