#pragma once

#include <string>

#include "vmm/monitor/commands.h"
#include "vmm/monitor/json.h"

/// The answers of queries, for people: the shape of QEMU 7.2, which scripts and tutorials read.
namespace towline::monitor {

/// Of query-migrate's answer. `all`: with what is Towline's own.
std::string info_migrate(const Json& answer, bool all);

/// Of query-migrate-capabilities' answer.
std::string info_capabilities(const Json& answer);

/// Of query-migrate-parameters' answer.
std::string info_parameters(const Json& answer);

/// Of query-status' answer.
std::string info_status(const Json& answer);

}  // namespace towline::monitor
