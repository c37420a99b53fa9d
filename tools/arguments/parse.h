#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "runtime/options.h"
#include "vmm/machine.h"
#include "vmm/monitor/json.h"

/// What stands on the command line, checked. CLI11 stays in arguments.cc.
namespace towline::tools {

/// unix:PATH[,events=off]
struct QmpSocket {
  std::string path;
  bool events = true;
};

struct RunArguments {
  vmm::MachineConfig machine;
  std::vector<QmpSocket> qmp;
  std::string incoming;  ///< A URI or "defer", when machine.incoming.
  std::string secret_file;
  bool allow_unprotected = false;
  runtime::SourceLoss source_loss = runtime::SourceLoss::kWait;
  std::uint32_t source_loss_deadline_s = 60;
  runtime::PageServerChoice page_server;
  std::string page_server_qmp;  ///< Path for the QMP socket of one's own; empty: see run.cc.
  base::LogLevel log_level = base::LogLevel::kInfo;
};

struct MigrateArguments {
  std::string source;  ///< Path of the source's QMP socket.
  std::string target;
  std::string via;                      ///< Empty: 127.0.0.1, a free port.
  std::vector<std::string> alternates;  ///< URIs: where else the source may reach the target.
  std::string switch_policy = "after-pass";
  std::uint32_t passes = 1;
  std::uint32_t bulk_lanes = 2;
  std::uint64_t max_bandwidth = 0;  ///< Bytes/s; 0: no limit.
  std::uint64_t max_postcopy_bandwidth = 0;
  std::string source_loss;                   ///< Empty: as the target was told.
  std::uint32_t source_loss_deadline_s = 0;  ///< 0: likewise.
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
