#pragma once

#include <memory>

#include "runtime/source/driver.h"
#include "runtime/standby/kept_machine.h"
#include "vmm/monitor/guest.h"

namespace towline::tools {

/// Migrations that begin here: of a guest whose source died before the run order.
class KeptMigrations final : public monitor::MigrationFactory {
 public:
  struct Kept {
    runtime::KeptMachine* machine = nullptr;
    runtime::SourceDriver::Kept what;
  };

  void hold(Kept kept) { kept_ = std::move(kept); }

  base::Expected<std::unique_ptr<runtime::Outgoing>> start(
      const runtime::Uri& target, const runtime::MigrationOptions& options,
      runtime::MigrationObserver& observer) override;

  base::Expected<std::unique_ptr<runtime::Incoming>> listen(
      const runtime::Uri& at, const runtime::MigrationOptions& options,
      runtime::MigrationObserver& observer) override;

 private:
  Kept kept_;
};

}  // namespace towline::tools
