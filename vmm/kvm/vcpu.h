#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/sync.h"
#include "base/thread.h"
#include "vmm/kvm/kvm.h"

namespace towline::vmm {

/// The vCPUs and their threads ("vcpu-N"): inside the guest, or parked.
///
/// The life of a vCPU thread: parked from its birth; after release() it enters the guest and
/// handles exits; hold() makes it leave, finish the exit in progress and park; end_all() ends it.
/// Before every KVM_RUN it clears its own kick and then asks `may_run`, so that whoever changes the
/// answer and kicks afterwards cannot be missed.
///
/// hold(), release() and post() return at once and never wait for a vCPU: one that waits for a page
/// of guest memory may take as long as the network does.
class VcpuPool {
 public:
  struct Hooks {
    std::function<bool()> may_run;  ///< The gate. Asked before every KVM_RUN.
    /// Port and memory accesses of the guest; run from its vCPU's thread.
    std::function<void(kvm_run&)> on_port;
    std::function<void(kvm_run&)> on_memory;
    /// KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT.
    std::function<void(const kvm_run&)> on_system;
    std::function<void(const std::string& reason)> on_failure;
    /// The guest touched memory that is lost, at this host address, from its vCPU's thread.
    std::function<void(std::size_t vcpu, base::HostAddress at)> on_memory_error;
    /// The last vCPU has parked. Called with no lock held, from its thread.
    std::function<void()> on_parked;
  };

  VcpuPool(std::vector<KvmVcpu> vcpus, Hooks hooks);
  VcpuPool(const VcpuPool&) = delete;
  VcpuPool& operator=(const VcpuPool&) = delete;
  ~VcpuPool();

  [[nodiscard]] std::size_t size() const { return vcpus_.size(); }

  /// For state ioctls while every vCPU is parked.
  [[nodiscard]] const KvmVcpu& vcpu(std::size_t index) const { return vcpus_[index]->kvm; }

  /// Returns what the last release() was to call, if no vCPU has come to enter since: it is the
  /// caller's to call now, for nobody else will.
  [[nodiscard]] std::function<void()> hold();

  /// `entered`, if any, is called once by the first vCPU to enter, just before its KVM_RUN; or by
  /// end_all().
  void release(std::function<void()> entered = {});

  [[nodiscard]] bool all_parked();

  /// The kernel's ids of the threads, for whoever pins them. 0: that one has not begun yet.
  [[nodiscard]] std::vector<pid_t> thread_ids() const;

  /// Runs `work` on the thread of vCPU 0 the next time that it is parked.
  void post(std::function<void()> work);

  /// Makes every thread end. False: one had not ended at `deadline`; ask again or give up.
  bool end_all(std::chrono::steady_clock::time_point deadline);

 private:
  struct Vcpu {
    explicit Vcpu(KvmVcpu from, std::size_t number) : kvm(std::move(from)), index(number) {}

    KvmVcpu kvm;
    const std::size_t index;
    bool exit_pending = false;  // Of its own thread: KVM finishes the access at the next KVM_RUN.
    std::atomic<pid_t> thread_id{0};
    base::NamedThread thread;
  };

  void loop(Vcpu& vcpu);
  bool enter(Vcpu& vcpu);
  void arrive();
  bool wait_parked(Vcpu& vcpu);
  void finish_exit(Vcpu& vcpu);
  static int run_guest(const Vcpu& vcpu);
  void handle(Vcpu& vcpu, int error);
  void handle_exit(Vcpu& vcpu);
  void kick_all() REQUIRES(mutex_);

  [[nodiscard]] bool may_enter() const { return !held_.load() && hooks_.may_run(); }

  const Hooks hooks_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  std::atomic<bool> held_{true};

  base::Mutex mutex_;
  base::Condition changed_;
  std::size_t parked_ GUARDED_BY(mutex_);
  std::size_t ended_ GUARDED_BY(mutex_) = 0;
  bool ending_ GUARDED_BY(mutex_) = false;
  bool joined_ GUARDED_BY(mutex_) = false;  ///< No thread may be signalled any more.
  std::function<void()> entered_ GUARDED_BY(mutex_);
  std::deque<std::function<void()>> work_ GUARDED_BY(mutex_);
};

}  // namespace towline::vmm
