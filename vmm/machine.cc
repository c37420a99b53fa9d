#include "vmm/machine.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "vmm/kvm/vm_state.h"
#include "vmm/kvm_machine.h"

namespace towline::vmm {
namespace {

using base::ErrorKind;
using base::fail;

// Both below 4 GiB and in nobody's way; Intel's KVM needs them for real mode. As in
// Documentation/virt/kvm/api.rst.
constexpr std::uint32_t kTssAddress = 0xfffbd000;
constexpr std::uint64_t kIdentityMapAddress = 0xfffbc000;

constexpr std::uint32_t kMostVcpus = 254;  // APIC ids of eight bits; 255 means everybody.
constexpr std::uint64_t kManualProtectInitiallySet = 3;

base::Outcome check_vcpus(const Kvm& kvm, std::uint32_t vcpus) {
  const auto limit =
      std::min(kMostVcpus, static_cast<std::uint32_t>(kvm.check_extension(KVM_CAP_MAX_VCPUS)));
  if (vcpus == 0 || vcpus > limit) {
    return fail(ErrorKind::kRefused, "vCPUs",
                fmt::format("{} vCPUs: this host's KVM offers 1 to {} (--vcpus)", vcpus, limit));
  }
  return base::Done{};
}

base::Expected<KvmVm> make_vm(const Kvm& kvm) {
  auto vm = TRY(kvm.create_vm());
  TRY(vm.set_tss_address(kTssAddress));
  TRY(vm.set_identity_map_address(kIdentityMapAddress));
  TRY(vm.create_irqchip());
  const int dirty_log = vm.check_extension(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
  if ((dirty_log & static_cast<int>(kManualProtectInitiallySet)) != 3) {
    return fail(
        ErrorKind::kUnsupported, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
        "this KVM's dirty log cannot be cleared page by page: Linux 5.7 or newer is needed");
  }
  TRY(vm.enable_capability(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, kManualProtectInitiallySet));
  return vm;
}

base::Outcome map_memory(const KvmVm& vm, const GuestMemory& memory) {
  for (std::size_t i = 0; i < memory.regions().size(); ++i) {
    const runtime::Region& region = memory.regions()[i];
    auto mapped =
        vm.set_memory(static_cast<std::uint32_t>(i), 0, region.start, region.size, region.mapping);
    if (!mapped.ok()) {
      base::Error error = std::move(mapped).error();
      error.kind = ErrorKind::kRefused;
      error.detail = fmt::format("KVM does not take {} MiB of memory as '{}'; give less (--memory)",
                                 region.size.value >> 20U, region.name);
      return base::Err{std::move(error)};
    }
  }
  return base::Done{};
}

base::Expected<std::vector<KvmVcpu>> make_vcpus(const KvmVm& vm, CpuidTable& cpuid,
                                                std::uint32_t count) {
  std::vector<KvmVcpu> vcpus;
  for (std::uint32_t i = 0; i < count; ++i) {
    vcpus.push_back(TRY(vm.create_vcpu(i)));
    if (i == 0) {
      add_timing_leaf(cpuid, TRY(vcpus.front().get_tsc_khz()));
    }
    TRY(vcpus.back().set_cpuid(cpuid_for(cpuid, i, count)));
  }
  // KVM draws its map of APIC ids while it makes a vCPU, before that one is on its list: the last
  // one would be found by no interrupt that names it. Writing an APIC back draws the map again.
  kvm_lapic_state lapic{};
  TRY(vcpus.back().get(KVM_GET_LAPIC, "KVM_GET_LAPIC", lapic));
  TRY(vcpus.back().set(KVM_SET_LAPIC, "KVM_SET_LAPIC", lapic));
  return vcpus;
}

/// Boots, unless the guest comes from elsewhere; and keeps what a reset goes back to.
base::Outcome prepare_boot(const MachineConfig& config, MachineParts& parts) {
  if (!config.kernel.empty()) {
    for (std::uint32_t i = 0; i < config.vcpus; ++i) {
      parts.power_on.push_back(TRY(save_vcpu(parts.vcpus[i], parts.features, i)));
    }
    TRY(save_vm(parts.vm, parts.power_on_vm));
  }
  if (config.incoming) {
    return base::Done{};  // Memory stays untouched: it is the migration's to fill.
  }
  if (config.kernel.empty()) {
    return fail(ErrorKind::kRefused, "kernel", "no kernel was given (--kernel PATH)");
  }
  const LoadedKernel loaded =
      TRY(load_kernel(parts.memory, {config.kernel, config.append, config.initrd}));
  return set_boot_state(parts.vcpus.front(), loaded.entry);
}

base::Expected<MachineParts> make_parts(const MachineConfig& config) {
  auto console = TRY(Console::open(config.serial));
  auto kvm = TRY(Kvm::open());
  TRY(check_vcpus(kvm, config.vcpus));
  auto supported = TRY(kvm.supported_cpuid());
  auto cpuid =
      TRY(make_cpuid(std::move(supported), kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER) != 0,
                     config.hidden_features));
  auto memory = TRY(GuestMemory::create(
      config.memory, physical_address_bits(cpuid),
      MemoryKind{
          .backing = config.backing, .path = config.memory_path, .reserve = !config.incoming}));
  auto vm = TRY(make_vm(kvm));
  TRY(map_memory(vm, memory));
  auto vcpus = TRY(make_vcpus(vm, cpuid, config.vcpus));
  auto features = TRY(probe_vcpu_features(kvm, vm, vcpus.front()));
  MachineParts parts{std::move(kvm),
                     std::move(vm),
                     std::move(memory),
                     std::move(vcpus),
                     std::move(cpuid),
                     std::move(features),
                     {},
                     {},
                     std::move(console)};
  TRY(prepare_boot(config, parts));
  return parts;
}

}  // namespace

std::string_view to_string(RunState state) {
  switch (state) {
    case RunState::kPrelaunch:
      return "prelaunch";
    case RunState::kRunning:
      return "running";
    case RunState::kPaused:
      return "paused";
    case RunState::kInmigrate:
      return "inmigrate";
    case RunState::kFinishMigrate:
      return "finish-migrate";
    case RunState::kPostmigrate:
      return "postmigrate";
    case RunState::kShutdown:
      return "shutdown";
    case RunState::kInternalError:
      return "internal-error";
  }
  __builtin_unreachable();
}

base::Expected<std::unique_ptr<KvmMachine>> KvmMachine::create(const MachineConfig& config) {
  auto parts = TRY(make_parts(config));
  return std::unique_ptr<KvmMachine>(new KvmMachineImpl(config, std::move(parts)));
}

}  // namespace towline::vmm
