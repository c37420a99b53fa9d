#include "tools/arguments/checks.h"

#include <fmt/format.h>

#include "base/text.h"

#include <CLI/CLI.hpp>

namespace towline::tools {
namespace {

/// What a complaint may show of a value: one line that steers no terminal, whatever was given.
std::string visible(const std::string& text) {
  if (!base::has_control(text)) {
    return text;
  }
  std::string shown;
  for (const char one : text) {
    const auto byte = static_cast<unsigned char>(one);
    shown += byte < 0x20 || byte >= 0x7f ? fmt::format("\\x{:02x}", byte) : std::string(1, one);
  }
  return shown;
}

}  // namespace

void complain(const std::string& option, const std::string& value, const std::string& remedy) {
  throw CLI::ValidationError(fmt::format("{} '{}'", option, visible(value)), remedy);
}

void check_name(const std::string& text) {
  if (base::has_control(text)) {
    complain("--name", text,
             "it stands in every line of the log; use one without line ends and other control "
             "characters");
  }
}

std::uint64_t size_of(const std::string& option, const std::string& text) {
  const auto size = parse_size(text);
  if (!size) {
    complain(option, text, "use a number of bytes, or with K, M, G or T, such as 512M or 2G");
  }
  return *size;
}

std::string socket_path(const std::string& text) {
  return text.starts_with("unix:") ? text.substr(5) : text;
}

std::string unix_path(const std::string& option, const std::string& text) {
  if (!text.empty() && (!text.starts_with("unix:") || text.size() == 5)) {
    complain(option, text, "use unix:PATH");
  }
  return socket_path(text);
}

QmpSocket parse_qmp(const std::string& text) {
  constexpr const char* kForm = "use unix:PATH or unix:PATH,events=off";
  if (!text.starts_with("unix:")) {
    complain("--qmp", text, kForm);
  }
  QmpSocket socket;
  std::size_t comma = text.find(',');
  socket.path = text.substr(5, comma - 5);
  while (comma != std::string::npos) {
    const std::size_t next = text.find(',', comma + 1);
    const std::string option = text.substr(comma + 1, next - comma - 1);
    if (option == "events=off" || option == "events=on") {
      socket.events = option == "events=on";
    } else if (option != "server=on" && option != "wait=off") {
      // Those two are what QEMU is given for the same thing.
      complain("--qmp", text, fmt::format("unknown option '{}'; {}", option, kForm));
    }
    comma = next;
  }
  if (socket.path.empty()) {
    complain("--qmp", text, fmt::format("the path is missing; {}", kForm));
  }
  return socket;
}

void check_uri(const std::string& option, const std::string& text) {
  const auto uri = runtime::Uri::parse(text);
  if (!uri.ok()) {
    complain(option, text, uri.error().detail);
  }
}

base::LogLevel log_level(const std::string& text) {
  if (text == "debug") {
    return base::LogLevel::kDebug;
  }
  if (text == "info") {
    return base::LogLevel::kInfo;
  }
  if (text == "warning") {
    return base::LogLevel::kWarning;
  }
  if (text == "error") {
    return base::LogLevel::kError;
  }
  complain("--log-level", text, "use debug, info, warning or error");
}

}  // namespace towline::tools
