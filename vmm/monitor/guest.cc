#include "vmm/monitor/guest.h"

namespace towline::monitor {
namespace {

class MachineGuest final : public Guest {
 public:
  explicit MachineGuest(vmm::KvmMachine& machine) : machine_(machine) {}

  [[nodiscard]] std::string name() const override { return machine_.config().name; }

  [[nodiscard]] vmm::RunState run_state() const override { return machine_.run_state(); }

  [[nodiscard]] std::string failure() const override { return machine_.failure(); }

  [[nodiscard]] std::vector<pid_t> vcpu_threads() const override { return machine_.vcpu_threads(); }

  [[nodiscard]] base::Bytes memory() const override { return machine_.config().memory; }

  base::Outcome stop() override { return machine_.stop(); }

  base::Outcome cont() override { return machine_.cont(); }

  base::Outcome system_reset() override { return machine_.system_reset(); }

  void on_leaving(runtime::MigrationStatus status) override {
    if (status == runtime::MigrationStatus::kCompleted) {
      machine_.migrated_away();
    }
  }

 private:
  vmm::KvmMachine& machine_;  // Outlives this.
};

class MachineMigrations final : public MigrationFactory {
 public:
  explicit MachineMigrations(vmm::KvmMachine& machine) : machine_(machine) {}

  base::Expected<std::unique_ptr<runtime::Outgoing>> start(
      const runtime::Uri& target, const runtime::MigrationOptions& options,
      runtime::MigrationObserver& observer) override {
    return runtime::Outgoing::start(machine_, target, options, observer);
  }

  base::Expected<std::unique_ptr<runtime::Incoming>> listen(
      const runtime::Uri& at, const runtime::MigrationOptions& options,
      runtime::MigrationObserver& observer) override {
    return runtime::Incoming::listen(machine_, at, options, observer);
  }

 private:
  vmm::KvmMachine& machine_;  // Outlives this.
};

}  // namespace

std::unique_ptr<Guest> make_guest(vmm::KvmMachine& machine) {
  return std::make_unique<MachineGuest>(machine);
}

std::unique_ptr<MigrationFactory> make_migration_factory(vmm::KvmMachine& machine) {
  return std::make_unique<MachineMigrations>(machine);
}

}  // namespace towline::monitor
