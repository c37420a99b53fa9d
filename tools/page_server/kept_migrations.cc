#include "tools/page_server/kept_migrations.h"

#include <utility>

namespace towline::tools {

using base::ErrorKind;
using base::Expected;
using base::fail;

Expected<std::unique_ptr<runtime::Outgoing>> KeptMigrations::start(
    const runtime::Uri& target, const runtime::MigrationOptions& options,
    runtime::MigrationObserver& observer) {
  if (kept_.machine == nullptr) {
    return fail(ErrorKind::kRefused, "migrate",
                "This is a page server, and it keeps no guest that could be moved");
  }
  TRY(runtime::SourceDriver::check(*kept_.machine));
  runtime::MigrationOptions at_once = options;
  at_once.switch_policy = runtime::SwitchPolicy::kImmediate;
  at_once.page_server = {};
  auto driver = std::make_unique<runtime::SourceDriver>(*kept_.machine, target, at_once, observer);
  driver->begin_from(kept_.what);
  return std::unique_ptr<runtime::Outgoing>(std::move(driver));
}

Expected<std::unique_ptr<runtime::Incoming>> KeptMigrations::listen(
    const runtime::Uri& /*at*/, const runtime::MigrationOptions& /*options*/,
    runtime::MigrationObserver& /*observer*/) {
  return fail(ErrorKind::kRefused, "listen", "A page server receives no guest");
}

}  // namespace towline::tools
