#include "vmm/monitor/migration_json.h"

#include <cmath>
#include <string>

#include <fmt/format.h>

#include "base/log.h"
#include "vmm/monitor/command_arguments.h"

namespace towline::monitor {
namespace {

using runtime::MigrationReport;
using runtime::MigrationStatus;

/// The link is lost, and its user is not to take that for a failure yet: a manager that finds
/// error-desc might.
bool heals(const MigrationReport& report) {
  return report.link != runtime::LinkState::kUp && !report.error.empty() &&
         (report.status == MigrationStatus::kPostcopyActive ||
          report.status == MigrationStatus::kPostcopyDevice);
}

/// What the other end lacks. Before the first byte that is all of memory; 0 would read as "done".
std::uint64_t remaining_bytes(const MigrationReport& report) {
  switch (report.status) {
    case MigrationStatus::kSetup:
      return report.total_bytes;
    case MigrationStatus::kCompleted:
      return 0;
    case MigrationStatus::kNone:
    case MigrationStatus::kActive:
    case MigrationStatus::kPreSwitchover:
    case MigrationStatus::kDevice:
    case MigrationStatus::kPostcopyDevice:
    case MigrationStatus::kPostcopyActive:
    case MigrationStatus::kPostcopyPaused:
    case MigrationStatus::kPostcopyRecoverSetup:
    case MigrationStatus::kPostcopyRecover:
    case MigrationStatus::kFailed:
    case MigrationStatus::kCancelling:
    case MigrationStatus::kCancelled:
      return report.remaining_bytes;
  }
  __builtin_unreachable();
}

/// As QEMU writes numbers that need no fraction: 0 and not 0.0.
Json number_json(double value) {
  constexpr double kExact = 9007199254740992;  // 2^53
  if (value >= 0 && value < kExact && std::floor(value) == value) {
    return static_cast<std::uint64_t>(value);
  }
  return value;
}

Json ram_json(const MigrationReport& report) {
  const bool done = report.status == MigrationStatus::kCompleted;
  Json ram = Json::object();
  ram.set("total", report.total_bytes);
  ram.set("postcopy-requests", report.postcopy_requests);
  ram.set("dirty-sync-count", report.dirty_sync_count);
  ram.set("multifd-bytes", 0);
  ram.set("pages-per-second", report.pages_per_second);
  ram.set("downtime-bytes", report.downtime_bytes);
  ram.set("page-size", report.page_size);
  ram.set("remaining", remaining_bytes(report));
  ram.set("postcopy-bytes", report.postcopy_bytes);
  ram.set("mbps", number_json(report.mbps));
  ram.set("transferred", report.transferred);
  ram.set("dirty-sync-missed-zero-copy", 0);
  ram.set("precopy-bytes", report.precopy_bytes);
  ram.set("duplicate", report.zero_pages);
  ram.set("dirty-pages-rate", done ? 0 : report.dirty_pages_rate);
  ram.set("skipped", 0);
  ram.set("normal-bytes", report.normal_pages * report.page_size);
  ram.set("normal", report.normal_pages);
  return ram;
}

Json faults_json(const runtime::FaultReport& faults) {
  Json histogram = Json::array();
  for (const std::uint64_t count : faults.log2_us) {
    histogram.add(count);
  }
  return Json::object({{"served", faults.served},
                       {"local", faults.local},
                       {"outstanding", faults.outstanding},
                       {"p50-us", faults.p50_us},
                       {"p90-us", faults.p90_us},
                       {"p99-us", faults.p99_us},
                       {"max-us", faults.max_us},
                       {"histogram-log2-us", std::move(histogram)}});
}

Json source_loss_json(const MigrationReport& report) {
  const runtime::SourceLossReport& loss = report.source_loss;
  Json json = Json::object({{"policy", runtime::to_string(loss.policy)},
                            {"deadline-s", loss.deadline.count()},
                            {"poisoned-pages", loss.poisoned_pages},
                            {"poisoned-bytes", loss.poisoned_pages * report.page_size}});
  if (loss.paused_for) {
    json.set("paused-s", loss.paused_for->count());
  }
  return json;
}

/// The last important lines of the log, for those who cannot read standard error.
Json log_json() {
  Json lines = Json::array();
  for (const base::KeptLine& line : base::kept_log_lines()) {
    lines.add(Json::object(
        {{"time", line.time}, {"level", base::to_string(line.level)}, {"text", line.text}}));
  }
  return lines;
}

Json own_json(const RoleReport& latest) {
  const MigrationReport& report = latest.report;
  const bool target = latest.role == Role::kTarget;
  Json own = Json::object({{"role", target ? "target" : "source"}});
  own.set("remaining-pages",
          report.page_size == 0 ? 0 : remaining_bytes(report) / report.page_size);
  own.set("pages-after-switch", report.pages_after_switch);
  own.set("link", runtime::to_string(report.link));
  if (heals(report)) {
    own.set("link-desc", report.error);
  }
  own.set("epoch", report.epoch);
  own.set("recoveries", report.recoveries);
  own.set("lanes-replaced", report.lanes_replaced);
  if (!report.waits_for.empty()) {
    own.set("waits-for", report.waits_for);
  }
  if (!report.overdue.empty()) {
    own.set("overdue", report.overdue);
  }
  if (report.last_recovery_ms) {
    own.set("last-recovery-ms", *report.last_recovery_ms);
  }
  if (report.downtime_ms) {
    own.set("blackout-ms", *report.downtime_ms);
    own.set("blackout-error-ms", report.downtime_error_ms);
  }
  if (report.page_server) {
    Json server = Json::object({{"stands-by", report.page_server->stands_by},
                                {"pid", report.page_server->pid},
                                {"starts", report.page_server->starts}});
    if (!report.page_server->error.empty()) {
      server.set("error-desc", report.page_server->error);
    }
    own.set("page-server", std::move(server));
  }
  if (target) {
    own.set("duplicate-frames", report.duplicate_frames);
    own.set("strangers-refused", report.strangers_refused);
    own.set("faults", faults_json(report.faults));
    own.set("source-loss", source_loss_json(report));
  }
  own.set("log", log_json());
  own.set("log-dropped", base::dropped_log_lines());
  return own;
}

/// Before the switch a downtime is expected, afterwards it is known.
void add_downtime(Json& answer, const MigrationReport& report) {
  if (report.downtime_ms) {
    // Whole milliseconds, up: a blackout of half of one is not none. x-towline tells it exactly.
    answer.set("downtime", static_cast<std::int64_t>(std::ceil(*report.downtime_ms)));
  } else if (report.status == MigrationStatus::kActive ||
             report.status == MigrationStatus::kPreSwitchover ||
             report.status == MigrationStatus::kDevice) {
    answer.set("expected-downtime", std::llround(report.expected_downtime_ms));
  }
}

bool has_listener(const RoleReport& latest) {
  return latest.role == Role::kTarget && latest.report.listening.has_value();
}

}  // namespace

Json query_migrate_json(const std::optional<RoleReport>& latest) {
  Json answer = Json::object();
  if (!latest || latest->report.status == MigrationStatus::kNone) {
    return answer;
  }
  const MigrationReport& report = latest->report;
  answer.set("status", runtime::to_string(report.status));
  answer.set("total-time", report.total_time.count());
  answer.set("setup-time", report.setup_time.count());
  add_downtime(answer, report);
  if (!report.error.empty() && !heals(report)) {
    answer.set("error-desc", report.error);
  }
  if (has_listener(*latest)) {
    answer.set("socket-address", Json::array().add(address_json(*report.listening)));
  }
  answer.set("ram", ram_json(report));
  answer.set("x-towline", own_json(*latest));
  return answer;
}

Json address_json(const runtime::Uri& at) {
  if (at.kind == runtime::Uri::Kind::kUnix) {
    return Json::object({{"path", at.path}, {"type", "unix"}});
  }
  const bool is_v6 = at.host.find(':') != std::string::npos;
  return Json::object({{"port", std::to_string(at.port)},
                       {is_v6 ? "ipv6" : "ipv4", true},
                       {"host", at.host},
                       {"type", "inet"}});
}

base::Expected<runtime::Uri> address_from_json(const Json& address) {
  const std::string type = text_of(address, "type");
  if (type == "unix") {
    return runtime::Uri::parse("unix:" + text_of(address, "path"));
  }
  if (type != "inet") {
    return refuse(fmt::format("address type '{}' is not built; use 'inet' or 'unix'", type));
  }
  const std::string host = text_of(address, "host");
  const bool is_v6 = host.find(':') != std::string::npos;
  return runtime::Uri::parse(fmt::format(fmt::runtime(is_v6 ? "tcp:[{}]:{}" : "tcp:{}:{}"), host,
                                         text_of(address, "port")));
}

base::Expected<runtime::Uri> address_from_channels(const Json& channels) {
  if (channels.items()->size() != 1) {
    return refuse("Parameter 'channels' expects one entry, the main channel");
  }
  const Json& channel = channels.items()->front();
  if (const std::string type = text_of(channel, "channel-type"); type != "main") {
    return not_accepted("channel-type", type);
  }
  const Json* address = channel.find("addr");
  if (address == nullptr) {
    return missing("addr");
  }
  if (const std::string transport = text_of(*address, "transport"); transport != "socket") {
    return refuse(fmt::format("transport '{}' is not built; use 'socket'", transport));
  }
  return address_from_json(*address);
}

}  // namespace towline::monitor
