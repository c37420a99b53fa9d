#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "runtime/options.h"
#include "runtime/parameters.h"
#include "vmm/machine.h"
#include "vmm/monitor/json.h"

/// What stands on the command line, checked. CLI11 stays in this folder.
namespace towline::tools {

/// unix:PATH[,events=off]
struct QmpSocket {
  std::string path;
  bool events = true;
};

struct RunArguments {
  vmm::MachineConfig machine;
  std::vector<QmpSocket> qmp;
  std::vector<std::string> monitors;  ///< Paths of sockets for people.
  std::string incoming;               ///< A URI or "defer", when machine.incoming.
  std::string secret_file;
  bool allow_unprotected = false;
  runtime::MigrationOptions options;  ///< The parameters' first values.
  std::string page_server_qmp;        ///< Path for the QMP socket of one's own; empty: see run.cc.
  base::LogLevel log_level = base::LogLevel::kInfo;
};

struct MigrateArguments {
  std::string source;  ///< Path of the source's QMP socket.
  std::string target;
  std::string via;  ///< Empty: 127.0.0.1, a free port.
  /// Those of the source: all that have an option. Those of the target: what was given.
  std::vector<runtime::ParameterSetting> parameters;
  bool json = false;
};

struct StatusArguments {
  std::string qmp;
  bool json = false;
};

struct QmpArguments {
  std::string qmp;
  std::string command;
  monitor::Json arguments;  ///< Null: none.
};

struct PageServerArguments {
  std::string listen;  ///< Path; empty: socket_fd is given.
  int socket_fd = -1;  ///< A source's end of a connection.
  std::vector<QmpSocket> qmp;
  std::string name = "page-server";
  base::LogLevel log_level = base::LogLevel::kInfo;
};

using Arguments = std::variant<RunArguments, MigrateArguments, StatusArguments, QmpArguments,
                               PageServerArguments>;

/// Why there is nothing to do: help was asked for (code 0) or the line is wrong (code 2).
struct NothingToDo {
  int code = 2;
  std::string text;  ///< For standard output when code is 0, else for standard error.
};

base::Result<Arguments, NothingToDo> parse_arguments(const std::vector<std::string>& words);

/// "512M", "2G", "4096": a number of bytes, with K, M, G or T for powers of 1024.
std::optional<std::uint64_t> parse_size(const std::string& text);

}  // namespace towline::tools
