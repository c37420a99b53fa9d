#include "tools/arguments/migrate.h"

#include "runtime/options.h"
#include "tools/arguments/checks.h"

#include <CLI/CLI.hpp>

namespace towline::tools {
namespace {

constexpr const char* kMigrateFooter = R"(Examples:
  towline migrate /run/vm1.qmp /tmp/vm1-new.qmp
  towline migrate /run/vm1.qmp /tmp/vm1-new.qmp --via tcp:10.0.0.7:0 --max-bandwidth 500M
  towline migrate /run/vm1.qmp /tmp/vm1-new.qmp --json

The target is a machine started with --incoming, of the same memory and vCPUs. Interrupting this
command cancels the move before the switch; after it the move goes on without this command.

Exit status:
  0  moved: the guest runs at the target
  1  failed: the guest runs on at the source, or nothing was begun
  2  wrong command line
  3  cancelled: the guest runs on at the source
  4  undecided: the move is paused, or goes on without this command; 'towline status' tells)";

}  // namespace

void declare_migrate(CLI::App& app, MigrateArguments& migrate, MigrateTexts& texts) {
  app.add_option("SOURCE_QMP", migrate.source, "QMP socket of the machine with the guest")
      ->required();
  app.add_option("TARGET_QMP", migrate.target, "QMP socket of the machine that waits for it")
      ->required();
  app.add_option("--via", migrate.via,
                 "Where the target listens, tcp:HOST:PORT (port 0: a free one) or unix:PATH "
                 "(tcp:127.0.0.1:0)")
      ->type_name("URI");
  app.add_option("--alternate", migrate.alternates,
                 "Another address of the same target, tried in turn when the link is lost in "
                 "post-copy; may be given several times")
      ->type_name("URI");
  app.add_option("--switch", migrate.switch_policy,
                 "When the vCPUs go over: immediate, after-pass (default) or manual")
      ->type_name("WHEN");
  app.add_option("--passes", migrate.passes, "Passes over memory before the switch, 0 to 16 (1)")
      ->type_name("N");
  app.add_option("--bulk-lanes", migrate.bulk_lanes, "Connections for the bulk, 1 to 16 (2)")
      ->type_name("N");
  app.add_option("--max-bandwidth", texts.max_bandwidth,
                 "Bytes per second before the switch, such as 500M (0: no limit)")
      ->type_name("SIZE");
  app.add_option("--max-postcopy-bandwidth", texts.max_postcopy_bandwidth,
                 "The same for the bulk after the switch (0: no limit)")
      ->type_name("SIZE");
  app.add_option("--source-loss", migrate.source_loss,
                 "What the target does when the source stays away in post-copy: wait, poison what "
                 "is missing, or give-up the guest (as the target was told)")
      ->type_name("POLICY");
  app.add_option("--source-loss-deadline", migrate.source_loss_deadline_s,
                 "Seconds of absence until that is done")
      ->check(CLI::Range(1U, runtime::kLongestSourceLossDeadlineS))
      ->type_name("SECONDS");
  app.add_flag("--json", migrate.json, "The result as one JSON object on standard output");
  app.footer(kMigrateFooter);
}

void finish_migrate(MigrateArguments& migrate, const MigrateTexts& texts) {
  migrate.source = socket_path(migrate.source);
  migrate.target = socket_path(migrate.target);
  const auto& policy = migrate.switch_policy;
  if (policy != "immediate" && policy != "after-pass" && policy != "manual") {
    complain("--switch", policy, "use immediate, after-pass or manual");
  }
  if (migrate.passes > 16) {
    complain("--passes", std::to_string(migrate.passes), "use 0 to 16");
  }
  if (migrate.bulk_lanes < 1 || migrate.bulk_lanes > 16) {
    complain("--bulk-lanes", std::to_string(migrate.bulk_lanes), "use 1 to 16");
  }
  if (!migrate.via.empty()) {
    check_uri("--via", migrate.via);
  }
  for (const std::string& address : migrate.alternates) {
    check_uri("--alternate", address);
  }
  if (!migrate.source_loss.empty()) {
    check_source_loss(migrate.source_loss);
  }
  migrate.max_bandwidth = size_of("--max-bandwidth", texts.max_bandwidth);
  migrate.max_postcopy_bandwidth =
      size_of("--max-postcopy-bandwidth", texts.max_postcopy_bandwidth);
}

}  // namespace towline::tools
