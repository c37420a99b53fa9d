#include "tools/kept_migrations.h"

#include <utility>

namespace towline::tools {

using base::ErrorKind;
using base::Expected;
using base::fail;
using runtime::StandbyPhase;

Expected<std::unique_ptr<runtime::Outgoing>> KeptMigrations::start(
    const runtime::Uri& target, const runtime::MigrationOptions& options,
    runtime::MigrationObserver& observer) {
  if (kept_.machine == nullptr) {
    return fail(ErrorKind::kRefused, "migrate",
                "This is a page server, and it keeps no guest that could be moved");
  }
  // From here on this memory may belong to another target: whoever reads the ledger later must not
  // take it for the guest's last place.
  TRY(kept_.ledger->set_phase(StandbyPhase::kOver));
  runtime::MigrationOptions at_once = options;
  at_once.switch_policy = runtime::SwitchPolicy::kImmediate;
  at_once.page_server = {};
  auto tap = std::make_unique<StatusTap>(observer, kept_.also);
  auto started = runtime::Outgoing::start(*kept_.machine, target, at_once, *tap);
  if (!started.ok()) {
    TRY(kept_.ledger->set_phase(StandbyPhase::kParked));
    return started;
  }
  tap_ = std::move(tap);
  return started;
}

Expected<std::unique_ptr<runtime::Incoming>> KeptMigrations::listen(
    const runtime::Uri& /*at*/, const runtime::MigrationOptions& /*options*/,
    runtime::MigrationObserver& /*observer*/) {
  return fail(ErrorKind::kRefused, "listen", "A page server receives no guest");
}

}  // namespace towline::tools
