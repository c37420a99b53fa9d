#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "runtime/ports.h"

/// The reference machine: KVM, x86-64, memory on one memfd, in-kernel interrupt controllers,
/// kvm-clock, one 16550 at COM1.
///
/// The life of one: create() opens KVM, maps the memory, loads the kernel (unless incoming) and
/// makes the vCPU threads, parked. start() lets them run; an incoming machine instead waits for
/// load() and start_here(). end_vcpus() (or the destructor) is the end of the vCPU threads, always
/// before anything that their memory depends on.
namespace towline::vmm {

/// What query-status answers; to_string() gives QEMU's names.
enum class RunState : std::uint8_t {
  kPrelaunch,  ///< Made, not started.
  kRunning,
  kPaused,         ///< Stopped by its user.
  kInmigrate,      ///< The guest is still another process's.
  kFinishMigrate,  ///< Parked for, or given away by, a migration.
  kPostmigrate,    ///< The migration that took the guest away is complete.
  kShutdown,       ///< The guest switched itself off, or was reset without a kernel to boot.
  kInternalError,  ///< KVM or the guest's memory failed; see failure().
};

std::string_view to_string(RunState state);

struct MachineConfig {
  std::string name = "towline";
  std::string kernel;                ///< Path of a PVH ELF. May be empty on an incoming machine.
  std::string append;                ///< Kernel command line.
  std::string initrd;                ///< Path; empty: none.
  base::Bytes memory{256UL << 20U};  ///< Multiple of the page: 4096, or 2 MiB.
  runtime::Backing backing = runtime::Backing::kMemfd;  ///< Or kHugetlb.
  std::string memory_path;  ///< Empty: a memfd. Else a file, or a folder, on a tmpfs.
  std::uint32_t vcpus = 1;
  std::vector<std::string> hidden_features;  ///< CPUID features not to offer: "avx2".
  std::string serial = "stdio";              ///< stdio | file:PATH | unix:PATH | none
  bool incoming = false;                     ///< Loads no kernel; waits for a migration.
  bool start_paused = false;                 ///< Wait for cont() after start().
};

enum class ShutdownCause : std::uint8_t {
  kGuestPoweredOff,
  kGuestReset,  ///< The guest asked for a reset that could not be given: no kernel to boot.
};

/// Told of what happens to the machine, in order, from any thread and with no lock held. Return
/// soon: a vCPU may be waiting. run_state() may be called back.
class MachineListener {
 public:
  MachineListener() = default;
  MachineListener(const MachineListener&) = delete;
  MachineListener& operator=(const MachineListener&) = delete;
  virtual ~MachineListener() = default;

  /// The last vCPU has left the guest (STOP), or the first is about to enter again (RESUME).
  virtual void on_stop() = 0;
  virtual void on_resume() = 0;
  virtual void on_reset() = 0;
  virtual void on_shutdown(ShutdownCause cause) = 0;
  /// The machine went to kInternalError.
  virtual void on_failure(const std::string& reason) = 0;
};

class KvmMachine : public runtime::Machine {
 public:
  /// Errors: kRefused for what the user can change (an unreadable kernel, too much memory, too
  /// many vCPUs), kUnsupported for what this host cannot do; each names value and remedy.
  static base::Expected<std::unique_ptr<KvmMachine>> create(const MachineConfig& config);

  /// Not set: events are forgotten. Set before start(); the listener outlives the machine.
  virtual void set_listener(MachineListener* listener) = 0;

  /// Lets the guest run (unless incoming or start_paused). Once.
  virtual void start() = 0;

  [[nodiscard]] virtual RunState run_state() const = 0;

  /// Why run_state() is kInternalError.
  [[nodiscard]] virtual std::string failure() const = 0;

  [[nodiscard]] virtual const MachineConfig& config() const = 0;

  /// The kernel's id of each vCPU's thread.
  [[nodiscard]] virtual std::vector<pid_t> vcpu_threads() const = 0;

  // What a user may order. None of these waits for a vCPU. Threads: any.

  /// Errors: kRefused once a migration has taken the guest. On an incoming machine: it will not
  /// start by itself.
  virtual base::Outcome stop() = 0;

  /// Errors: kRefused once a migration has taken the guest, after shutdown and after a failure.
  /// On an incoming machine: only notes that the guest shall run when it arrives.
  virtual base::Outcome cont() = 0;

  /// Boots again. Errors: kRefused once a migration has taken or while it takes the guest, and
  /// on a machine that was given no kernel.
  virtual base::Outcome system_reset() = 0;

  /// The migration that took the guest away is complete: run_state() is kPostmigrate from now on.
  virtual void migrated_away() = 0;

  /// Makes every vCPU thread end and joins it, waiting until `deadline` at most. False: a vCPU is
  /// still inside the guest (kernels before 6.2 do not leave a KVM_RUN that waits for a page);
  /// nothing that its memory depends on may go, except with the whole process.
  [[nodiscard]] virtual bool end_vcpus(std::chrono::steady_clock::time_point deadline) = 0;
};

}  // namespace towline::vmm
