#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "vmm/kvm/first_pages.h"
#include "vmm/kvm/vm_state.h"
#include "vmm/kvm_machine.h"

// What the machine is, was doing, and does again elsewhere.

namespace towline::vmm {
namespace {

using base::ErrorKind;
using base::fail;
using base::Lock;
using runtime::MachineState;
using runtime::Section;

constexpr std::uint32_t kMachineVersion = 1;

// Two hosts of one kind measure frequencies this far apart: 250 ppm, as other machines allow.
constexpr std::uint64_t kTscTolerancePpm = 250;

struct DeviceVersion {
  const char* name;
  std::uint32_t version;
};

// clang-format off
constexpr std::array kDevices{
    DeviceVersion{"vcpu",      kVcpuStateVersion},
    DeviceVersion{"irqchip",   kVmStateVersion},
    DeviceVersion{"kvm-clock", kVmStateVersion},
    DeviceVersion{"uart",      kSerialStateVersion},
};

// clang-format on

void compare_devices(const Section& theirs, std::vector<std::string>& reasons) {
  for (const runtime::Field& field : theirs.fields) {
    const auto version = theirs.get(field.name);
    const auto* ours =
        std::find_if(kDevices.begin(), kDevices.end(),
                     [&](const DeviceVersion& device) { return device.name == field.name; });
    if (!version.ok()) {
      reasons.push_back(to_string(version.error()));
    } else if (ours == kDevices.end()) {
      reasons.push_back(
          fmt::format("the source has a device '{}', which the target does not know", field.name));
    } else if (version.value() != ours->version) {
      reasons.push_back(
          fmt::format("the state of device '{}' has version {} at the source, {} at the target",
                      field.name, version.value(), ours->version));
    }
  }
}

void compare_machine(const Section& theirs, std::uint32_t vcpus, std::uint32_t tsc_khz,
                     std::vector<std::string>& reasons) {
  const auto their_vcpus = theirs.get("vcpus");
  const auto their_khz = theirs.get("tsc-khz");
  if (!their_vcpus.ok() || !their_khz.ok()) {
    reasons.emplace_back("the source does not say how many vCPUs it has and how fast they count");
    return;
  }
  if (their_vcpus.value() != vcpus) {
    reasons.push_back(fmt::format(
        "the source has {} vCPUs, the target has {}; start the target with the source's "
        "--vcpus",
        their_vcpus.value(), vcpus));
  }
  const std::uint64_t khz = their_khz.value();
  const std::uint64_t apart =
      std::max<std::uint64_t>(khz, tsc_khz) - std::min<std::uint64_t>(khz, tsc_khz);
  if (apart > tsc_khz * kTscTolerancePpm / 1'000'000) {
    reasons.push_back(
        fmt::format("the source's TSC runs at {} kHz, the target's at {} kHz", khz, tsc_khz));
  }
}

}  // namespace

MachineState KvmMachineImpl::shape() const {
  MachineState shape;
  Section machine;
  machine.device = "machine";
  machine.version = kMachineVersion;
  machine.put_text("name", config_.name);
  machine.put("vcpus", config_.vcpus);
  machine.put("tsc-khz", features_.tsc_khz);
  shape.sections.push_back(std::move(machine));
  Section devices;
  devices.device = "devices";
  for (const DeviceVersion& device : kDevices) {
    devices.put(device.name, device.version);
  }
  shape.sections.push_back(std::move(devices));
  const Lock lock(mutex_);
  shape.sections.push_back(save_cpuid(cpuid_));
  return shape;
}

std::vector<std::string> KvmMachineImpl::refusals(const MachineState& source) const {
  std::vector<std::string> reasons;
  const Section* machine = source.find("machine");
  const Section* devices = source.find("devices");
  const Section* cpuid = source.find("cpuid");
  if (machine == nullptr || devices == nullptr || cpuid == nullptr) {
    reasons.emplace_back("the source's description lacks its machine, devices or CPUID");
    return reasons;
  }
  if (machine->version != kMachineVersion) {
    reasons.push_back(
        fmt::format("the source describes a machine of version {}, this is version {}",
                    machine->version, kMachineVersion));
  }
  compare_machine(*machine, config_.vcpus, features_.tsc_khz, reasons);
  compare_devices(*devices, reasons);
  const auto theirs = load_cpuid(*cpuid);
  if (!theirs.ok()) {
    reasons.push_back(to_string(theirs.error()));
    return reasons;
  }
  const Lock lock(mutex_);
  for (std::string& line : missing_features(theirs.value(), cpuid_)) {
    reasons.push_back(std::move(line));
  }
  return reasons;
}

base::Expected<MachineState> KvmMachineImpl::save() {
  if (!pool_->all_parked()) {
    return fail(ErrorKind::kRefused, "save machine", "a vCPU is still in the guest; park first");
  }
  // From here on nothing may raise an interrupt: it would be in the UART's state or in the
  // controller's, not in both.
  com1_->hold_input(true);
  MachineState saved;
  Section machine;
  machine.device = "machine";
  machine.version = kMachineVersion;
  machine.put("vcpus", config_.vcpus);
  machine.put("runs", wants_to_run() ? 1 : 0);
  saved.sections.push_back(std::move(machine));
  {
    const Lock lock(mutex_);
    saved.sections.push_back(save_cpuid(cpuid_));
  }
  saved_views_.clear();
  for (std::uint32_t i = 0; i < config_.vcpus; ++i) {
    saved.sections.push_back(TRY(save_vcpu(pool_->vcpu(i), features_, i)));
    saved_views_.push_back(TRY(view_of(saved.sections.back())));
  }
  TRY(save_vm(vm_, saved.sections));
  saved.sections.push_back(com1_->save());
  return saved;
}

base::Outcome KvmMachineImpl::adopt_cpuid(const MachineState& state) {
  const Section* section = state.find("cpuid");
  if (section == nullptr) {
    return fail(ErrorKind::kCorrupt, "load machine", "section cpuid[0] is missing");
  }
  const CpuidTable table = TRY(load_cpuid(*section));
  {
    const Lock lock(mutex_);
    if (same_answers(table, cpuid_)) {
      return base::Done{};  // The common case, and the guest is waiting.
    }
  }
  for (std::uint32_t i = 0; i < config_.vcpus; ++i) {
    TRY(pool_->vcpu(i).set_cpuid(cpuid_for(table, i, config_.vcpus)));
  }
  // Which MSRs can be read depends on it.
  features_ = TRY(probe_vcpu_features(kvm_, vm_, pool_->vcpu(0)));
  const Lock lock(mutex_);
  cpuid_ = table;
  return base::Done{};
}

base::Outcome KvmMachineImpl::load_parts(const MachineState& state) {
  const ClockShift shift = TRY(load_clock(vm_, state, host_moment(), features_.tsc_khz));
  TRY(load_irqchips(vm_, state));
  for (std::uint32_t i = 0; i < config_.vcpus; ++i) {
    const Section* section = state.find("vcpu", i);
    if (section == nullptr) {
      return fail(ErrorKind::kCorrupt, "load machine",
                  fmt::format("section vcpu[{}] is missing", i));
    }
    TRY(load_vcpu(pool_->vcpu(i), features_, *section, shift));
  }
  return base::Done{};
}

base::Outcome KvmMachineImpl::load(const MachineState& state) {
  if (gate_.ownership() != runtime::Ownership::kIncoming) {
    return fail(ErrorKind::kRefused, "load machine", "this machine was not made for a migration");
  }
  const Section* machine = state.find("machine");
  const Section* uart = state.find("uart");
  if (machine == nullptr || uart == nullptr) {
    return fail(ErrorKind::kCorrupt, "load machine", "section machine[0] or uart[0] is missing");
  }
  if (const auto vcpus = TRY(machine->get("vcpus")); vcpus != config_.vcpus) {
    return fail(
        ErrorKind::kRefused, "load machine",
        fmt::format("machine[0]: field 'vcpus' is {}, the target has {}", vcpus, config_.vcpus));
  }
  const bool runs = TRY(machine->get("runs")) != 0;
  TRY(adopt_cpuid(state));
  TRY(load_parts(state));
  TRY(com1_->load(*uart));
  const Lock lock(mutex_);
  wishes_.loaded = true;
  wishes_.user_runs = wishes_.user_runs && runs;
  return base::Done{};
}

std::vector<base::PageIndex> KvmMachineImpl::first_pages() {
  return find_first_pages(memory_, saved_views_);
}

base::Outcome KvmMachineImpl::reset_parts() {
  MachineState fresh;
  fresh.sections = power_on_vm_;
  fresh.sections.insert(fresh.sections.end(), power_on_.begin(), power_on_.end());
  TRY(load_parts(fresh));
  com1_->reset();
  const auto loaded = load_kernel(memory_, {config_.kernel, config_.append, config_.initrd});
  if (!loaded.ok()) {
    for (const runtime::Region& region : memory_.regions()) {
      dirty_log_.mark(region.start, region.size);  // Half written, and nobody knows which half.
    }
    return base::Err{loaded.error()};
  }
  for (const WrittenRange& range : loaded.value().written) {
    dirty_log_.mark(range.start, range.size);
  }
  return set_boot_state(pool_->vcpu(0), loaded.value().entry);
}

}  // namespace towline::vmm
