#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/sync.h"
#include "runtime/run_gate.h"
#include "vmm/boot.h"
#include "vmm/device/console.h"
#include "vmm/device/devices.h"
#include "vmm/device/serial.h"
#include "vmm/guest_memory.h"
#include "vmm/kvm/cpuid.h"
#include "vmm/kvm/dirty_log.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/kvm/vcpu_state.h"
#include "vmm/machine.h"

namespace towline::vmm {

/// What a machine is made of, in the order in which it comes to be: everything needs what is above
/// it, so that destruction from the bottom up is right.
struct MachineParts {
  Kvm kvm;
  KvmVm vm;
  GuestMemory memory;
  std::vector<KvmVcpu> vcpus;
  CpuidTable cpuid;
  VcpuFeatures features;
  std::vector<runtime::Section> power_on;  ///< Of each vCPU, for a reset.
  std::vector<runtime::Section> power_on_vm;
  std::unique_ptr<Console> console;
};

/// KvmMachine, put together.
///
/// One mutex guards what has been decided (wishes_); each decision ends in settle(), which tells
/// the vCPUs and collects what has to be told to others; that happens after the mutex is released.
class KvmMachineImpl final : public KvmMachine {
 public:
  KvmMachineImpl(const MachineConfig& config, MachineParts parts);

  // runtime::Machine
  [[nodiscard]] const std::vector<runtime::Region>& regions() const override {
    return memory_.regions();
  }

  [[nodiscard]] runtime::DirtyLog& dirty_log() override { return dirty_log_; }

  [[nodiscard]] runtime::RunGate& gate() override { return gate_; }

  [[nodiscard]] runtime::MachineState shape() const override;
  [[nodiscard]] std::vector<std::string> refusals(
      const runtime::MachineState& source) const override;
  void park(std::function<void()> parked) override;
  void unpark() override;
  base::Expected<runtime::MachineState> save() override;
  base::Outcome load(const runtime::MachineState& state) override;
  [[nodiscard]] std::vector<base::PageIndex> first_pages() override;
  void start_here(std::function<void()> entered) override;
  [[nodiscard]] bool wants_to_run() const override;
  void pages_lost(std::uint64_t pages) override;
  void guest_failed(const std::string& reason) override;

  // KvmMachine
  void set_listener(MachineListener* listener) override;
  void start() override;
  [[nodiscard]] RunState run_state() const override;
  [[nodiscard]] std::string failure() const override;

  [[nodiscard]] const MachineConfig& config() const override { return config_; }

  [[nodiscard]] std::vector<pid_t> vcpu_threads() const override { return pool_->thread_ids(); }

  base::Outcome stop() override;
  base::Outcome cont() override;
  base::Outcome system_reset() override;
  void migrated_away() override;
  bool end_vcpus(std::chrono::steady_clock::time_point deadline) override;

 private:
  using Callback = std::function<void()>;

  struct Wishes {
    bool started = false;
    bool user_runs = true;
    bool migration_parks = false;
    bool loaded = false;     // Incoming: load() succeeded.
    bool resetting = false;  // Asked for; done once every vCPU is parked.
    bool reset_posted = false;
    bool shut_down = false;
    bool migrated_away = false;
    std::string failure;
    bool failed = false;
    std::uint64_t lost_pages = 0;  // Of guest memory: nothing may write to all of it.
  };

  void on_port(kvm_run& run);
  void on_memory(kvm_run& run);
  void on_lost(std::size_t vcpu, base::HostAddress at);
  [[nodiscard]] bool misses_memory() const;
  [[nodiscard]] std::string lost_memory(const std::string& where) const;
  void on_system(const kvm_run& run);
  void on_parked();
  void guest_wants(PortRequest request);

  [[nodiscard]] bool should_run() const REQUIRES(mutex_);
  [[nodiscard]] RunState state() const REQUIRES(mutex_);
  void settle(Callback entered = {}) REQUIRES(mutex_);
  void settle_parked() REQUIRES(mutex_);
  void tell(std::function<void(MachineListener&)> what) REQUIRES(mutex_);
  void deliver() EXCLUDES(mutex_);
  [[nodiscard]] base::Outcome check_ours(const char* order) const REQUIRES(mutex_);
  void reset_machine();
  base::Outcome reset_parts();
  base::Outcome adopt_cpuid(const runtime::MachineState& state);
  base::Outcome load_parts(const runtime::MachineState& state);
  base::Outcome fail_order(const char* order, std::string_view why) const;

  const MachineConfig config_;
  Kvm kvm_;
  KvmVm vm_;
  GuestMemory memory_;
  VcpuFeatures features_;  // Changed by load() only, before the guest ever ran.
  const std::vector<runtime::Section> power_on_;
  const std::vector<runtime::Section> power_on_vm_;
  runtime::RunGate gate_;
  KvmDirtyLog dirty_log_;
  std::unique_ptr<SerialPort> com1_;
  Ports ports_;
  std::vector<VcpuView> saved_views_;  // Of the migration's thread: save() and first_pages().

  mutable base::Mutex mutex_;
  CpuidTable cpuid_ GUARDED_BY(mutex_);
  Wishes wishes_ GUARDED_BY(mutex_);
  bool told_running_ GUARDED_BY(mutex_) = false;
  MachineListener* listener_ GUARDED_BY(mutex_) = nullptr;
  std::vector<Callback> parked_callbacks_ GUARDED_BY(mutex_);
  std::vector<Callback> ready_ GUARDED_BY(mutex_);  ///< The migration's, to be called.
  std::deque<Callback> outbox_ GUARDED_BY(mutex_);  ///< The listener's, to be told in order.
  bool delivering_ GUARDED_BY(mutex_) = false;

  // Last: their threads use everything above and end first.
  std::unique_ptr<Console> console_;
  std::unique_ptr<VcpuPool> pool_;
};

}  // namespace towline::vmm
