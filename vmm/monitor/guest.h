#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "runtime/migration.h"
#include "vmm/machine.h"

namespace towline::monitor {

/// What the monitor orders of the machine. Calls return at once: none waits for a vCPU or a page.
class Guest {
 public:
  Guest() = default;
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;
  virtual ~Guest() = default;

  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual vmm::RunState run_state() const = 0;
  [[nodiscard]] virtual std::string failure() const = 0;

  /// The kernel's id of each vCPU's thread; none where the guest is only kept.
  [[nodiscard]] virtual std::vector<pid_t> vcpu_threads() const { return {}; }

  [[nodiscard]] virtual base::Bytes memory() const = 0;
  virtual base::Outcome stop() = 0;
  virtual base::Outcome cont() = 0;
  virtual base::Outcome system_reset() = 0;

  /// Told of each status of the migration out of here, on the loop's thread.
  virtual void on_leaving(runtime::MigrationStatus status) = 0;

  /// What is here and nowhere else, though no migration is in progress.
  [[nodiscard]] virtual std::optional<std::string> danger_of_ending() const { return {}; }
};

/// Where migrations of that machine come from; tests put their own here.
class MigrationFactory {
 public:
  MigrationFactory() = default;
  MigrationFactory(const MigrationFactory&) = delete;
  MigrationFactory& operator=(const MigrationFactory&) = delete;
  virtual ~MigrationFactory() = default;

  virtual base::Expected<std::unique_ptr<runtime::Outgoing>> start(
      const runtime::Uri& target, const runtime::MigrationOptions& options,
      runtime::MigrationObserver& observer) = 0;

  virtual base::Expected<std::unique_ptr<runtime::Incoming>> listen(
      const runtime::Uri& at, const runtime::MigrationOptions& options,
      runtime::MigrationObserver& observer) = 0;
};

/// The real ones. `machine` outlives them.
std::unique_ptr<Guest> make_guest(vmm::KvmMachine& machine);
std::unique_ptr<MigrationFactory> make_migration_factory(vmm::KvmMachine& machine);

}  // namespace towline::monitor
