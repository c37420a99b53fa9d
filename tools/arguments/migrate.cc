#include "tools/arguments/migrate.h"

#include "tools/arguments/checks.h"

#include <CLI/CLI.hpp>

namespace towline::tools {
namespace {

constexpr const char* kMigrateFooter = R"(Examples:
  towline migrate /run/vm1.qmp /tmp/vm1-new.qmp
  towline migrate /run/vm1.qmp /tmp/vm1-new.qmp --via tcp:10.0.0.7:0 --max-bandwidth 500M
  towline migrate /run/vm1.qmp /tmp/vm1-new.qmp --json

The target is a machine that was started with --incoming, with the same --memory and --vcpus.
Interrupting this command before the switch cancels the move. After the switch the move continues
without this command.

Exit status:
  0  moved: the guest runs at the target
  1  failed: the guest runs on at the source, or nothing was begun
  2  wrong command line
  3  cancelled: the guest runs on at the source
  4  undecided: the move is paused, or continues without this command; see 'towline status')";

}  // namespace

void declare_migrate(CLI::App& app, MigrateArguments& migrate, ParameterOptions& parameters) {
  app.add_option("SOURCE_QMP", migrate.source, "QMP socket of the machine with the guest")
      ->required();
  app.add_option("TARGET_QMP", migrate.target, "QMP socket of the machine that waits for it")
      ->required();
  app.add_option("--via", migrate.via,
                 "Where the target listens: tcp:HOST:PORT (port 0: a free one) or unix:PATH. "
                 "Default: tcp:127.0.0.1:0.")
      ->type_name("URI");
  parameters.declare(app);
  app.add_flag("--json", migrate.json, "Print the result as one JSON object on standard output");
  app.footer(kMigrateFooter);
}

void finish_migrate(MigrateArguments& migrate, const ParameterOptions& parameters) {
  migrate.source = socket_path(migrate.source);
  migrate.target = socket_path(migrate.target);
  if (!migrate.via.empty()) {
    check_uri("--via", migrate.via);
  }
  migrate.parameters = parameters.settings();
}

}  // namespace towline::tools
