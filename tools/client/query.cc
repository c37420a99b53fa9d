#include "tools/client/query.h"

#include <cstdio>
#include <string>

#include <fmt/format.h>

#include "tools/client/qmp_client.h"
#include "tools/human.h"
#include "tools/output.h"
#include "vmm/monitor/json.h"

namespace towline::tools {
namespace {

using monitor::Json;
using monitor::number_of;
using monitor::text_of;
using monitor::whole_of;

int fail(const char* command, const base::Error& error) {
  put(stderr, fmt::format("towline {}: {}\n", command, base::to_string(error)));
  return 1;
}

base::Expected<Json> ask(const std::string& path) {
  auto client = TRY(QmpClient::connect(path));
  Json answer = Json::object();
  answer.set("name", text_of(TRY(client.execute("query-name")), "name"));
  answer.set("machine", TRY(client.execute("query-status")));
  answer.set("migration", TRY(client.execute("query-migrate")));
  return answer;
}

void print_faults(const Json& own) {
  const Json* faults = own.find("faults");
  if (faults == nullptr) {
    return;
  }
  put(stdout, fmt::format("  faults    {} served, {} waiting\n", whole_of(*faults, "served"),
                          whole_of(*faults, "outstanding")));
  if (whole_of(*faults, "served") > 0) {
    put(stdout,
        fmt::format("  stalls    half within {}, 99% within {}, longest {}\n",
                    human_us(number_of(*faults, "p50-us")), human_us(number_of(*faults, "p99-us")),
                    human_us(number_of(*faults, "max-us"))));
  }
}

/// How much would be gone with the source, or is.
void print_source_loss(const Json& migration, const Json& own) {
  const Json* loss = own.find("source-loss");
  if (loss == nullptr) {
    return;
  }
  if (text_of(migration, "status") == "postcopy-paused" || text_of(own, "link") == "lost") {
    const std::string policy = text_of(*loss, "policy");
    const std::string when = policy == "wait"
                                 ? std::string()
                                 : fmt::format(" after {} s", whole_of(*loss, "deadline-s"));
    put(stdout,
        fmt::format("  missing   {} pages, {}; if the source stays away: {}{}\n",
                    whole_of(own, "remaining-pages"),
                    human_bytes(whole_of(*migration.find("ram"), "remaining")), policy, when));
  }
  if (whole_of(*loss, "poisoned-pages") > 0) {
    put(stdout,
        fmt::format("  lost      {} pages, {}, are poisoned\n", whole_of(*loss, "poisoned-pages"),
                    human_bytes(whole_of(*loss, "poisoned-bytes"))));
  }
}

void print_migration(const Json& migration) {
  const Json* own = migration.find("x-towline");
  if (own == nullptr) {
    put(stdout, fmt::format("migration   none yet\n"));
    return;
  }
  put(stdout, fmt::format("migration   {}, this is the {}\n", text_of(migration, "status"),
                          text_of(*own, "role")));
  if (const Json* ram = migration.find("ram")) {
    put(stdout,
        fmt::format("  memory    {} of {} still to go, {} sent, {:.0f} Mbit/s\n",
                    human_bytes(whole_of(*ram, "remaining")), human_bytes(whole_of(*ram, "total")),
                    human_bytes(whole_of(*ram, "transferred")), number_of(*ram, "mbps")));
  }
  if (own->find("blackout-ms") != nullptr) {
    put(stdout, fmt::format("  blackout  {}\n", human_us(number_of(*own, "blackout-ms") * 1000)));
  }
  if (const std::string waits = text_of(*own, "waits-for"); !waits.empty()) {
    put(stdout, fmt::format("  waits for {}\n", waits));
  }
  if (const std::string link = text_of(*own, "link"); link == "lost" || link == "recovering") {
    put(stdout, fmt::format("  link      {}\n", link));
  }
  print_source_loss(migration, *own);
  print_faults(*own);
  for (const std::string& reason : {text_of(migration, "error-desc"), text_of(*own, "link-desc")}) {
    if (!reason.empty()) {
      put(stdout, fmt::format("  reason    {}\n", reason));
    }
  }
}

}  // namespace

int status(const StatusArguments& arguments) {
  const auto answer = ask(arguments.qmp);
  if (!answer.ok()) {
    return fail("status", answer.error());
  }
  if (arguments.json) {
    put(stdout, fmt::format("{}\n", answer.value().pretty()));
    return output_is_written() ? 0 : 1;
  }
  const Json& machine = *answer.value().find("machine");
  put(stdout, fmt::format("machine     {}, {}\n", text_of(answer.value(), "name"),
                          text_of(machine, "status")));
  if (const std::string reason = text_of(machine, "x-towline-reason"); !reason.empty()) {
    put(stdout, fmt::format("  reason    {}\n", reason));
  }
  print_migration(*answer.value().find("migration"));
  return output_is_written() ? 0 : 1;
}

int qmp(const QmpArguments& arguments) {
  auto client = QmpClient::connect(arguments.qmp);
  if (!client.ok()) {
    return fail("qmp", client.error());
  }
  const auto answer = client.value().execute(arguments.command, arguments.arguments);
  if (!answer.ok()) {
    return fail("qmp", answer.error());
  }
  put(stdout, fmt::format("{}\n", answer.value().pretty()));
  return output_is_written() ? 0 : 1;
}

}  // namespace towline::tools
