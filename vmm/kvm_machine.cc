#include "vmm/kvm_machine.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"

// What users, the guest and the migration order, and what follows from it. How state is saved and
// loaded is in kvm_machine_state.cc.

namespace towline::vmm {

using base::ErrorKind;
using base::fail;
using base::Lock;
using runtime::Ownership;

KvmMachineImpl::KvmMachineImpl(const MachineConfig& config, MachineParts parts)
    : config_(config),
      kvm_(std::move(parts.kvm)),
      vm_(std::move(parts.vm)),
      memory_(std::move(parts.memory)),
      features_(std::move(parts.features)),
      power_on_(std::move(parts.power_on)),
      power_on_vm_(std::move(parts.power_on_vm)),
      gate_(config.incoming ? Ownership::kIncoming : Ownership::kHere),
      dirty_log_(vm_, memory_.regions()),
      com1_(std::make_unique<SerialPort>(SerialPort::Wiring{
          [this](bool level) {
            if (const auto set = vm_.set_irq_line(kCom1Gsi, level); !set.ok()) {
              base::log(base::LogLevel::kError, "serial.interrupt-lost reason={}",
                        to_string(set.error()));
            }
          },
          [this](std::byte byte) { console_->put(byte); }, [this] { console_->poke(); }})),
      ports_(*com1_),
      cpuid_(std::move(parts.cpuid)),
      console_(std::move(parts.console)) {
  wishes_.user_runs = !config.start_paused;
  com1_->hold_input(config.incoming);
  console_->start({[this] { return com1_->room(); },
                   [this](std::span<const std::byte> bytes) { com1_->receive(bytes); }});
  pool_ = std::make_unique<VcpuPool>(
      std::move(parts.vcpus),
      VcpuPool::Hooks{[this] { return gate_.may_run(); }, [this](kvm_run& run) { on_port(run); },
                      [this](kvm_run& run) { on_memory(run); },
                      [this](const kvm_run& run) { on_system(run); },
                      [this](const std::string& reason) { guest_failed(reason); },
                      [this](std::size_t vcpu, base::HostAddress at) { on_lost(vcpu, at); },
                      [this] { on_parked(); }});
}

// ---- decisions ----------------------------------------------------------------------------------

bool KvmMachineImpl::should_run() const {
  return wishes_.started && wishes_.user_runs && !wishes_.migration_parks && !wishes_.resetting &&
         !wishes_.shut_down && !wishes_.failed && (!config_.incoming || wishes_.loaded) &&
         gate_.may_run();
}

RunState KvmMachineImpl::state() const {
  if (wishes_.failed) {
    return RunState::kInternalError;
  }
  if (wishes_.migrated_away) {
    return RunState::kPostmigrate;
  }
  if (wishes_.shut_down) {
    return RunState::kShutdown;
  }
  switch (gate_.ownership()) {
    case Ownership::kIncoming:
      return RunState::kInmigrate;
    case Ownership::kHeld:
    case Ownership::kOrdered:
    case Ownership::kGone:
      return RunState::kFinishMigrate;
    case Ownership::kHere:
      break;
  }
  if (!wishes_.started) {
    return RunState::kPrelaunch;
  }
  return wishes_.user_runs ? RunState::kRunning : RunState::kPaused;
}

void KvmMachineImpl::settle(Callback entered) {
  if (should_run()) {
    if (!std::exchange(told_running_, true)) {
      tell([](MachineListener& listener) { listener.on_resume(); });
    }
    pool_->release(std::move(entered));
    return;
  }
  // Nobody will enter: it is paused, and ours.
  if (auto unmet = pool_->hold(); unmet) {
    ready_.push_back(std::move(unmet));
  }
  if (entered) {
    ready_.push_back(std::move(entered));
  }
  if (pool_->all_parked()) {
    settle_parked();
  }
}

void KvmMachineImpl::settle_parked() {
  if (std::exchange(told_running_, false)) {
    tell([](MachineListener& listener) { listener.on_stop(); });
  }
  if (wishes_.resetting) {
    if (!std::exchange(wishes_.reset_posted, true)) {
      // On a vCPU's thread: it reads files and touches guest memory, and whoever asked must not
      // wait for either.
      pool_->post([this] { reset_machine(); });
    }
    return;
  }
  for (Callback& parked : std::exchange(parked_callbacks_, {})) {
    ready_.push_back(std::move(parked));
  }
}

void KvmMachineImpl::on_parked() {
  {
    const Lock lock(mutex_);
    if (!should_run() && pool_->all_parked()) {
      settle_parked();
    }
  }
  deliver();
}

void KvmMachineImpl::tell(std::function<void(MachineListener&)> what) {
  outbox_.push_back([this, what = std::move(what)] {
    MachineListener* listener = nullptr;
    {
      const Lock lock(mutex_);
      listener = listener_;
    }
    if (listener != nullptr) {
      what(*listener);
    }
  });
}

void KvmMachineImpl::deliver() {
  mutex_.lock();
  // The migration first and by whoever is here: its pause does not wait for anybody's telling.
  for (std::vector<Callback> ready = std::exchange(ready_, {}); !ready.empty();
       ready = std::exchange(ready_, {})) {
    mutex_.unlock();
    for (const Callback& call : ready) {
      call();
    }
    mutex_.lock();
  }
  // One thread at a time, so that what happened first is told first; it also tells what others
  // add meanwhile.
  if (!std::exchange(delivering_, true)) {
    while (!outbox_.empty()) {
      const Callback next = std::move(outbox_.front());
      outbox_.pop_front();
      mutex_.unlock();
      next();
      mutex_.lock();
    }
    delivering_ = false;
  }
  mutex_.unlock();
}

// ---- the guest ----------------------------------------------------------------------------------

void KvmMachineImpl::on_port(kvm_run& run) {
  auto* data = reinterpret_cast<std::byte*>(&run) + run.io.data_offset;
  for (std::uint32_t i = 0; i < run.io.count; ++i, data += run.io.size) {
    const std::span<std::byte> access(data, run.io.size);
    if (run.io.direction == KVM_EXIT_IO_IN) {
      ports_.read(run.io.port, access);
    } else {
      guest_wants(ports_.write(run.io.port, access));
    }
  }
}

void KvmMachineImpl::on_memory(kvm_run& run) {
  const base::GuestAddress at{run.mmio.phys_addr};
  if (memory_.page_of(at).has_value()) {
    // KVM emulates an instruction, and takes memory that it cannot read or write for a device.
    return guest_failed(lost_memory(fmt::format("guest address {:#x}", at.value)));
  }
  if (run.mmio.is_write == 0) {
    std::fill(std::begin(run.mmio.data), std::end(run.mmio.data), 0xff);
  }
}

void KvmMachineImpl::on_lost(std::size_t vcpu, base::HostAddress at) {
  for (const runtime::Region& region : memory_.regions()) {
    const std::uint64_t offset = at.value - region.mapping.value;
    if (at.value >= region.mapping.value && offset < region.size.value) {
      return guest_failed(lost_memory(
          fmt::format("vCPU {} at guest address {:#x}", vcpu, region.start.value + offset)));
    }
  }
  guest_failed(
      fmt::format("vCPU {} met broken memory outside of the guest's, at {:#x}", vcpu, at.value));
}

std::string KvmMachineImpl::lost_memory(const std::string& where) const {
  const Lock lock(mutex_);
  return wishes_.lost_pages == 0
             ? fmt::format("{}: the host's memory is broken there; the guest is stopped", where)
             : fmt::format(
                   "{}: the page was lost with the source of the migration and is poisoned "
                   "(policy poison, {} pages); the guest is stopped, every other page is "
                   "intact",
                   where, wishes_.lost_pages);
}

bool KvmMachineImpl::misses_memory() const {
  const Lock lock(mutex_);
  return wishes_.lost_pages != 0;
}

void KvmMachineImpl::pages_lost(std::uint64_t pages) {
  const Lock lock(mutex_);
  wishes_.lost_pages = pages;
}

void KvmMachineImpl::on_system(const kvm_run& run) {
  if (run.exit_reason == KVM_EXIT_SHUTDOWN && misses_memory()) {
    // KVM walks the guest's page tables itself, and takes one that it cannot read for the guest's
    // own fault; nor can it read the way to the fault's handler.
    return guest_failed(lost_memory("a triple fault, perhaps in its page tables"));
  }
  const bool off = run.exit_reason == KVM_EXIT_SYSTEM_EVENT &&
                   run.system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN;
  guest_wants(off ? PortRequest::kPowerOff : PortRequest::kReset);
}

void KvmMachineImpl::guest_wants(PortRequest request) {
  if (request == PortRequest::kNone) {
    return;
  }
  {
    const Lock lock(mutex_);
    const bool can_reset = !config_.kernel.empty() && wishes_.lost_pages == 0;
    if (request == PortRequest::kReset && can_reset) {
      wishes_.resetting = true;
    } else if (!std::exchange(wishes_.shut_down, true)) {
      const auto cause = request == PortRequest::kReset ? ShutdownCause::kGuestReset
                                                        : ShutdownCause::kGuestPoweredOff;
      tell([cause](MachineListener& listener) { listener.on_shutdown(cause); });
    }
    settle();
  }
  deliver();
}

void KvmMachineImpl::reset_machine() {
  const auto done = reset_parts();
  {
    const Lock lock(mutex_);
    wishes_.resetting = false;
    wishes_.reset_posted = false;
    if (done.ok()) {
      wishes_.shut_down = false;
      tell([](MachineListener& listener) { listener.on_reset(); });
    } else {
      wishes_.failed = true;
      wishes_.failure = "reset failed: " + to_string(done.error());
      tell([reason = wishes_.failure](MachineListener& listener) { listener.on_failure(reason); });
    }
    settle();
  }
  deliver();
}

void KvmMachineImpl::guest_failed(const std::string& reason) {
  {
    const Lock lock(mutex_);
    if (!std::exchange(wishes_.failed, true)) {
      wishes_.failure = reason;
      base::log(base::LogLevel::kError, "machine.failed reason={}", reason);
      tell([reason](MachineListener& listener) { listener.on_failure(reason); });
    }
    settle();
  }
  deliver();
}

// ---- the migration ------------------------------------------------------------------------------

void KvmMachineImpl::park(std::function<void()> parked) {
  {
    const Lock lock(mutex_);
    wishes_.migration_parks = true;
    parked_callbacks_.push_back(std::move(parked));
    settle();
  }
  deliver();
}

void KvmMachineImpl::unpark() {
  com1_->hold_input(false);
  {
    const Lock lock(mutex_);
    wishes_.migration_parks = false;
    parked_callbacks_.clear();
    settle();
  }
  deliver();
}

void KvmMachineImpl::start_here(std::function<void()> entered) {
  com1_->hold_input(false);
  {
    const Lock lock(mutex_);
    wishes_.started = true;
    settle(std::move(entered));
  }
  deliver();
}

bool KvmMachineImpl::wants_to_run() const {
  const Lock lock(mutex_);
  return wishes_.started && wishes_.user_runs && !wishes_.shut_down && !wishes_.failed;
}

void KvmMachineImpl::migrated_away() {
  const Lock lock(mutex_);
  wishes_.migrated_away = true;
}

// ---- the user -----------------------------------------------------------------------------------

void KvmMachineImpl::set_listener(MachineListener* listener) {
  const Lock lock(mutex_);
  listener_ = listener;
}

void KvmMachineImpl::start() {
  {
    const Lock lock(mutex_);
    wishes_.started = true;
    settle();
  }
  deliver();
}

RunState KvmMachineImpl::run_state() const {
  const Lock lock(mutex_);
  return state();
}

std::string KvmMachineImpl::failure() const {
  const Lock lock(mutex_);
  return wishes_.failure;
}

base::Outcome KvmMachineImpl::fail_order(const char* order, std::string_view why) const {
  return fail(ErrorKind::kRefused, "order", fmt::format("'{}' is refused: {}", order, why));
}

base::Outcome KvmMachineImpl::check_ours(const char* order) const {
  switch (gate_.ownership()) {
    case Ownership::kHere:
    case Ownership::kIncoming:
      return base::Done{};
    case Ownership::kHeld:
      return fail_order(order,
                        "a migration is handing the guest over; ask again, or at the target");
    case Ownership::kOrdered:
      return fail_order(order,
                        "the target was told to run the guest and may do so; running it here too "
                        "would make two of it");
    case Ownership::kGone:
      return fail_order(order, "the guest runs at the migration's target; give the order there");
  }
  __builtin_unreachable();
}

base::Outcome KvmMachineImpl::stop() {
  {
    const Lock lock(mutex_);
    TRY(check_ours("stop"));
    wishes_.user_runs = false;
    settle();
  }
  deliver();
  return base::Done{};
}

base::Outcome KvmMachineImpl::cont() {
  {
    const Lock lock(mutex_);
    TRY(check_ours("cont"));
    if (wishes_.failed) {
      return fail_order("cont", "the machine failed: " + wishes_.failure);
    }
    if (wishes_.shut_down) {
      return fail_order("cont", "the guest is shut down; reset the machine first");
    }
    if (gate_.ownership() == Ownership::kHere && told_running_ && !wishes_.user_runs) {
      // Stopped, and not yet all out: who waits for STOP and RESUME gets both, in order.
      told_running_ = false;
      tell([](MachineListener& listener) { listener.on_stop(); });
    }
    wishes_.user_runs = true;
    settle();
  }
  deliver();
  return base::Done{};
}

base::Outcome KvmMachineImpl::system_reset() {
  {
    const Lock lock(mutex_);
    TRY(check_ours("system_reset"));
    if (gate_.ownership() == Ownership::kIncoming) {
      return fail_order("system_reset", "the guest is not here yet");
    }
    if (wishes_.lost_pages != 0) {
      return fail_order("system_reset",
                        fmt::format("{} pages of its memory are poisoned; start another machine",
                                    wishes_.lost_pages));
    }
    if (config_.kernel.empty()) {
      return fail_order("system_reset",
                        "this machine was given no kernel to boot; start it with --kernel too");
    }
    wishes_.resetting = true;
    settle();
  }
  deliver();
  return base::Done{};
}

bool KvmMachineImpl::end_vcpus(std::chrono::steady_clock::time_point deadline) {
  return pool_->end_all(deadline);
}

}  // namespace towline::vmm
