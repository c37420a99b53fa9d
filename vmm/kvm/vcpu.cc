#include "vmm/kvm/vcpu.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "vmm/kvm/memory_error.h"

namespace towline::vmm {
namespace {

using base::Lock;

/// The kick is SIGUSR1 with a handler that does nothing: enough to end KVM_RUN with EINTR.
void install_kick_handler() {
  struct sigaction action {};

  action.sa_handler = [](int) {};
  sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // No SA_RESTART: the whole point is to interrupt.
  ::sigaction(SIGUSR1, &action, nullptr);
}

void set_immediate_exit(const KvmVcpu& vcpu, bool on) {
  // Read by the kernel at each KVM_RUN and written by whoever kicks.
  std::atomic_ref<__u8>(vcpu.run_page().immediate_exit).store(on ? 1 : 0);
}

std::string describe_exit(const KvmVcpu& vcpu, std::size_t index) {
  const kvm_run& run = vcpu.run_page();
  kvm_regs regs{};
  // The thread of the vCPU itself asks; that it fails too only makes the message poorer.
  const bool known = vcpu.get(KVM_GET_REGS, "KVM_GET_REGS", regs).ok();
  const std::string at = known ? fmt::format(" at RIP {:#x}", regs.rip) : std::string();
  switch (run.exit_reason) {
    case KVM_EXIT_INTERNAL_ERROR:
      return fmt::format("KVM internal error {} on vCPU {}{}", run.internal.suberror, index, at);
    case KVM_EXIT_FAIL_ENTRY:
      return fmt::format("KVM could not enter vCPU {}{}: hardware reason {:#x}", index, at,
                         run.fail_entry.hardware_entry_failure_reason);
    default:
      return fmt::format("KVM left vCPU {}{} for reason {}, which this machine does not know",
                         index, at, run.exit_reason);
  }
}

}  // namespace

VcpuPool::VcpuPool(std::vector<KvmVcpu> vcpus, Hooks hooks)
    : hooks_(std::move(hooks)), parked_(vcpus.size()) {
  install_kick_handler();
  install_memory_error_handler();
  for (KvmVcpu& one : vcpus) {
    vcpus_.push_back(std::make_unique<Vcpu>(std::move(one), vcpus_.size()));
  }
  for (const auto& vcpu : vcpus_) {
    vcpu->thread = base::NamedThread(fmt::format("vcpu-{}", vcpu->index),
                                     [this, one = vcpu.get()] { loop(*one); });
  }
}

VcpuPool::~VcpuPool() {
  // Waits as long as it takes: a thread inside the guest uses all that is about to go.
  while (!end_all(std::chrono::steady_clock::now() + std::chrono::seconds(1))) {
  }
}

std::function<void()> VcpuPool::hold() {
  held_.store(true);
  const Lock lock(mutex_);
  kick_all();
  return std::exchange(entered_, {});
}

void VcpuPool::release(std::function<void()> entered) {
  const Lock lock(mutex_);
  if (entered) {
    entered_ = std::move(entered);
  }
  held_.store(false);
  changed_.notify_all();
}

bool VcpuPool::all_parked() {
  const Lock lock(mutex_);
  return parked_ == vcpus_.size();
}

void VcpuPool::post(std::function<void()> work) {
  const Lock lock(mutex_);
  work_.push_back(std::move(work));
  changed_.notify_all();
}

bool VcpuPool::end_all(std::chrono::steady_clock::time_point deadline) {
  if (const auto unmet = hold(); unmet) {
    unmet();
  }
  {
    const Lock lock(mutex_);
    if (joined_) {
      return true;
    }
    ending_ = true;
    changed_.notify_all();
    kick_all();  // Again: somebody may have released them in between.
    const bool all = changed_.wait_until(
        mutex_, deadline, [this]() REQUIRES(mutex_) { return ended_ == vcpus_.size(); });
    if (!all) {
      return false;
    }
    joined_ = true;
  }
  for (const auto& vcpu : vcpus_) {
    vcpu->thread.join();
  }
  return true;
}

void VcpuPool::kick_all() {
  if (joined_) {
    return;
  }
  for (const auto& vcpu : vcpus_) {
    set_immediate_exit(vcpu->kvm, true);
    ::pthread_kill(vcpu->thread.native_handle(), SIGUSR1);
  }
}

std::vector<pid_t> VcpuPool::thread_ids() const {
  std::vector<pid_t> ids;
  ids.reserve(vcpus_.size());
  for (const auto& vcpu : vcpus_) {
    ids.push_back(vcpu->thread_id);
  }
  return ids;
}

void VcpuPool::loop(Vcpu& vcpu) {
  vcpu.thread_id = ::gettid();
  accept_memory_errors();
  if (wait_parked(vcpu)) {  // Born parked, and counted so.
    while (enter(vcpu)) {
      handle(vcpu, run_guest(vcpu));
    }
  }
  const Lock lock(mutex_);
  ++ended_;
  changed_.notify_all();
}

bool VcpuPool::enter(Vcpu& vcpu) {
  for (;;) {
    set_immediate_exit(vcpu.kvm, false);
    if (may_enter()) {
      return true;
    }
    finish_exit(vcpu);
    arrive();
    if (!wait_parked(vcpu)) {
      return false;
    }
  }
}

void VcpuPool::arrive() {
  bool last = false;
  {
    const Lock lock(mutex_);
    last = ++parked_ == vcpus_.size() && !ending_;
  }
  if (last) {
    hooks_.on_parked();
  }
}

bool VcpuPool::wait_parked(Vcpu& vcpu) {
  for (;;) {
    std::function<void()> next;
    bool leaves = false;
    {
      const Lock lock(mutex_);
      const auto has_work = [&]() REQUIRES(mutex_) { return vcpu.index == 0 && !work_.empty(); };
      changed_.wait(mutex_,
                    [&]() REQUIRES(mutex_) { return ending_ || has_work() || may_enter(); });
      if (ending_) {
        return false;
      }
      if (has_work()) {
        next = std::move(work_.front());
        work_.pop_front();
      } else {
        --parked_;
        leaves = true;
        next = std::exchange(entered_, {});
      }
    }
    if (next) {
      next();
    }
    if (leaves) {
      return true;
    }
  }
}

void VcpuPool::finish_exit(Vcpu& vcpu) {
  // KVM completes the instruction that left for user space at the next KVM_RUN; until then the
  // registers are half of one instruction and half of the next. With immediate_exit that KVM_RUN
  // executes no guest code, so the gate, which may be closed by now, is not asked.
  while (vcpu.exit_pending) {
    set_immediate_exit(vcpu.kvm, true);
    handle(vcpu, run_guest(vcpu));
  }
}

int VcpuPool::run_guest(const Vcpu& vcpu) {
  enter_guest();
  const int error = vcpu.kvm.run();
  leave_guest();
  return error;
}

void VcpuPool::handle(Vcpu& vcpu, int error) {
  vcpu.exit_pending = false;
  if (const auto lost = take_memory_error(); lost.has_value()) {
    held_.store(true);  // At once for this one, as below.
    return hooks_.on_memory_error(vcpu.index, *lost);
  }
  switch (error) {
    case 0:
      handle_exit(vcpu);
      break;
    case EINTR:
    case EAGAIN:  // An application processor got its INIT or SIPI.
      break;
    default:
      held_.store(true);  // At once for this one, before it can come round again.
      hooks_.on_failure(fmt::format("KVM_RUN of vCPU {} failed: {}", vcpu.index,
                                    std::generic_category().message(error)));
  }
}

void VcpuPool::handle_exit(Vcpu& vcpu) {
  kvm_run& run = vcpu.kvm.run_page();
  switch (run.exit_reason) {
    case KVM_EXIT_IO:
      vcpu.exit_pending = true;
      hooks_.on_port(run);
      break;
    case KVM_EXIT_MMIO:
      vcpu.exit_pending = true;
      hooks_.on_memory(run);
      break;
    case KVM_EXIT_SHUTDOWN:
    case KVM_EXIT_SYSTEM_EVENT:
      hooks_.on_system(run);
      break;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_HLT:  // The in-kernel APIC halts inside; one that comes out is just asked again.
      break;
    default:
      held_.store(true);
      hooks_.on_failure(describe_exit(vcpu.kvm, vcpu.index));
  }
}

}  // namespace towline::vmm
