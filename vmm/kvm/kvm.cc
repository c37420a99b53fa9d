#include "vmm/kvm/kvm.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include <fmt/format.h>

namespace towline::vmm {
namespace {

using base::ErrorKind;
using base::fail;
using base::fail_errno;

// C++ refuses a struct that ends in a flexible array as a member, so the lists get types of their
// own, laid out as the kernel's.
constexpr std::size_t kMaxCpuidEntries = 256;  // KVM_MAX_CPUID_ENTRIES in Linux 6.x.
constexpr std::size_t kMaxMsrs = 512;          // Guess: four times what a 6.18 kernel lists.

struct CpuidList {
  std::uint32_t count = 0;
  std::uint32_t padding = 0;
  std::array<kvm_cpuid_entry2, kMaxCpuidEntries> entries{};
};

static_assert(offsetof(CpuidList, entries) == offsetof(kvm_cpuid2, entries));

struct MsrList {
  std::uint32_t count = 0;
  std::uint32_t padding = 0;
  std::array<kvm_msr_entry, kMaxMsrs> entries{};
};

static_assert(offsetof(MsrList, entries) == offsetof(kvm_msrs, entries));

struct MsrIndexList {
  std::uint32_t count = 0;
  std::array<std::uint32_t, kMaxMsrs> indices{};
};

static_assert(offsetof(MsrIndexList, indices) == offsetof(kvm_msr_list, indices));

base::Outcome call_ioctl(int fd, unsigned long request, const char* name, void* data) {
  if (::ioctl(fd, request, data) < 0) {
    return fail_errno(ErrorKind::kFailed, name);
  }
  return base::Done{};
}

base::Outcome call_ioctl(int fd, unsigned long request, const char* name, unsigned long value) {
  if (::ioctl(fd, request, value) < 0) {
    return fail_errno(ErrorKind::kFailed, name);
  }
  return base::Done{};
}

}  // namespace

RunPage::RunPage(RunPage&& other) noexcept
    : at_(std::exchange(other.at_, nullptr)), size_(std::exchange(other.size_, 0)) {
}

RunPage& RunPage::operator=(RunPage&& other) noexcept {
  std::swap(at_, other.at_);
  std::swap(size_, other.size_);
  return *this;
}

RunPage::~RunPage() {
  if (at_ != nullptr) {
    ::munmap(at_, size_);
  }
}

// ---- vCPU ---------------------------------------------------------------------------------------

int KvmVcpu::run() const {
  return ::ioctl(fd_.get(), KVM_RUN, 0) < 0 ? errno : 0;
}

base::Outcome KvmVcpu::call(unsigned long request, const char* name, void* data) const {
  return call_ioctl(fd_.get(), request, name, data);
}

base::Outcome KvmVcpu::set_cpuid(std::span<const kvm_cpuid_entry2> entries) const {
  if (entries.size() > kMaxCpuidEntries) {
    return fail(ErrorKind::kFailed, "KVM_SET_CPUID2",
                fmt::format("{} CPUID entries are more than the kernel's {}", entries.size(),
                            kMaxCpuidEntries));
  }
  const auto list = std::make_unique<CpuidList>();
  list->count = static_cast<std::uint32_t>(entries.size());
  std::copy(entries.begin(), entries.end(), list->entries.begin());
  return call_ioctl(fd_.get(), KVM_SET_CPUID2, "KVM_SET_CPUID2", list.get());
}

base::Expected<std::size_t> KvmVcpu::get_msrs(std::span<kvm_msr_entry> entries) const {
  if (entries.size() > kMaxMsrs) {
    return fail(ErrorKind::kFailed, "KVM_GET_MSRS", "too many MSRs for one call");
  }
  MsrList list;
  list.count = static_cast<std::uint32_t>(entries.size());
  std::copy(entries.begin(), entries.end(), list.entries.begin());
  const int got = ::ioctl(fd_.get(), KVM_GET_MSRS, &list);
  if (got < 0) {
    return fail_errno(ErrorKind::kFailed, "KVM_GET_MSRS");
  }
  std::copy_n(list.entries.begin(), entries.size(), entries.begin());
  return static_cast<std::size_t>(got);
}

base::Expected<std::size_t> KvmVcpu::set_msrs(std::span<const kvm_msr_entry> entries) const {
  if (entries.size() > kMaxMsrs) {
    return fail(ErrorKind::kCorrupt, "KVM_SET_MSRS", "too many MSRs for one call");
  }
  MsrList list;
  list.count = static_cast<std::uint32_t>(entries.size());
  std::copy(entries.begin(), entries.end(), list.entries.begin());
  const int set = ::ioctl(fd_.get(), KVM_SET_MSRS, &list);
  if (set < 0) {
    return fail_errno(ErrorKind::kFailed, "KVM_SET_MSRS");
  }
  return static_cast<std::size_t>(set);
}

bool KvmVcpu::has_tsc_offset() const {
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  return ::ioctl(fd_.get(), KVM_HAS_DEVICE_ATTR, &attribute) == 0;
}

base::Expected<std::uint64_t> KvmVcpu::get_tsc_offset() const {
  std::uint64_t offset = 0;
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<std::uintptr_t>(&offset);
  TRY(call_ioctl(fd_.get(), KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR(TSC_OFFSET)", &attribute));
  return offset;
}

base::Outcome KvmVcpu::set_tsc_offset(std::uint64_t offset) const {
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<std::uintptr_t>(&offset);
  return call_ioctl(fd_.get(), KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR(TSC_OFFSET)", &attribute);
}

base::Expected<std::uint32_t> KvmVcpu::get_tsc_khz() const {
  const int khz = ::ioctl(fd_.get(), KVM_GET_TSC_KHZ, 0);
  if (khz < 0) {
    return fail_errno(ErrorKind::kFailed, "KVM_GET_TSC_KHZ");
  }
  return static_cast<std::uint32_t>(khz);
}

void KvmVcpu::note_pause() const {
  ::ioctl(fd_.get(), KVM_KVMCLOCK_CTRL, 0);
}

// ---- machine ------------------------------------------------------------------------------------

base::Expected<KvmVcpu> KvmVm::create_vcpu(std::uint32_t id) const {
  base::OwnedFd fd(::ioctl(fd_.get(), KVM_CREATE_VCPU, static_cast<unsigned long>(id)));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kFailed, "KVM_CREATE_VCPU", fmt::format("vCPU {}", id));
  }
  void* page = ::mmap(nullptr, run_page_size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (page == MAP_FAILED) {
    return fail_errno(ErrorKind::kFailed, "mmap kvm_run", fmt::format("vCPU {}", id));
  }
  return KvmVcpu(std::move(fd), RunPage(page, run_page_size_));
}

base::Outcome KvmVm::set_memory(std::uint32_t slot, std::uint32_t flags, base::GuestAddress start,
                                base::Bytes size, base::HostAddress mapping) const {
  kvm_userspace_memory_region region{};
  region.slot = slot;
  region.flags = flags;
  region.guest_phys_addr = start.value;
  region.memory_size = size.value;
  region.userspace_addr = mapping.value;
  return call_ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &region);
}

base::Outcome KvmVm::set_tss_address(std::uint32_t address) const {
  return call_ioctl(fd_.get(), KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR",
                    static_cast<unsigned long>(address));
}

base::Outcome KvmVm::set_identity_map_address(std::uint64_t address) const {
  return call_ioctl(fd_.get(), KVM_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR", &address);
}

base::Outcome KvmVm::create_irqchip() const {
  return call_ioctl(fd_.get(), KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP", 0UL);
}

base::Outcome KvmVm::enable_capability(std::uint32_t capability, std::uint64_t value) const {
  kvm_enable_cap enable{};
  enable.cap = capability;
  enable.args[0] = value;
  return call_ioctl(fd_.get(), KVM_ENABLE_CAP, "KVM_ENABLE_CAP", &enable);
}

int KvmVm::check_extension(unsigned long capability) const {
  return std::max(0, ::ioctl(fd_.get(), KVM_CHECK_EXTENSION, capability));
}

base::Outcome KvmVm::set_irq_line(std::uint32_t gsi, bool level) const {
  kvm_irq_level line{};
  line.irq = gsi;
  line.level = level ? 1 : 0;
  return call_ioctl(fd_.get(), KVM_IRQ_LINE, "KVM_IRQ_LINE", &line);
}

base::Expected<kvm_irqchip> KvmVm::get_irqchip(std::uint32_t chip) const {
  kvm_irqchip state{};
  state.chip_id = chip;
  TRY(call_ioctl(fd_.get(), KVM_GET_IRQCHIP, "KVM_GET_IRQCHIP", &state));
  return state;
}

base::Outcome KvmVm::set_irqchip(const kvm_irqchip& chip) const {
  return call_ioctl(fd_.get(), KVM_SET_IRQCHIP, "KVM_SET_IRQCHIP", const_cast<kvm_irqchip*>(&chip));
}

base::Expected<kvm_clock_data> KvmVm::get_clock() const {
  kvm_clock_data clock{};
  TRY(call_ioctl(fd_.get(), KVM_GET_CLOCK, "KVM_GET_CLOCK", &clock));
  return clock;
}

base::Outcome KvmVm::set_clock(const kvm_clock_data& clock) const {
  return call_ioctl(fd_.get(), KVM_SET_CLOCK, "KVM_SET_CLOCK", const_cast<kvm_clock_data*>(&clock));
}

base::Outcome KvmVm::get_dirty_log(std::uint32_t slot, std::span<std::uint64_t> bitmap) const {
  kvm_dirty_log log{};
  log.slot = slot;
  log.dirty_bitmap = bitmap.data();
  return call_ioctl(fd_.get(), KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", &log);
}

base::Outcome KvmVm::clear_dirty_log(std::uint32_t slot, std::uint64_t first, std::uint32_t count,
                                     std::span<const std::uint64_t> bitmap) const {
  kvm_clear_dirty_log log{};
  log.slot = slot;
  log.first_page = first;
  log.num_pages = count;
  log.dirty_bitmap = const_cast<std::uint64_t*>(bitmap.data());
  return call_ioctl(fd_.get(), KVM_CLEAR_DIRTY_LOG, "KVM_CLEAR_DIRTY_LOG", &log);
}

// ---- /dev/kvm -----------------------------------------------------------------------------------

base::Expected<Kvm> Kvm::open(const char* path) {
  base::OwnedFd fd(::open(path, O_RDWR | O_CLOEXEC));
  if (!fd.valid()) {
    const int cause = errno;
    std::string remedy = fmt::format("cannot open {}: ", path);
    if (cause == EACCES || cause == EPERM) {
      remedy += "run as root or join the group 'kvm'";
    } else if (cause == ENOENT || cause == ENXIO || cause == ENODEV) {
      remedy += "load the module kvm_amd or kvm_intel, or enable (nested) virtualisation";
    } else {
      remedy += "is it KVM's device?";
    }
    errno = cause;
    return fail_errno(ErrorKind::kUnsupported, "open", std::move(remedy));
  }
  const int version = ::ioctl(fd.get(), KVM_GET_API_VERSION, 0);
  if (version != KVM_API_VERSION) {
    return fail(ErrorKind::kUnsupported, "KVM_GET_API_VERSION",
                fmt::format("{} speaks KVM API version {}, needed is {}: use a kernel's own "
                            "/dev/kvm (Linux 2.6.22 or newer)",
                            path, version, KVM_API_VERSION));
  }
  const int size = ::ioctl(fd.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (size < static_cast<int>(sizeof(kvm_run))) {
    return fail_errno(ErrorKind::kUnsupported, "KVM_GET_VCPU_MMAP_SIZE");
  }
  return Kvm(std::move(fd), static_cast<std::size_t>(size));
}

int Kvm::check_extension(unsigned long capability) const {
  return std::max(0, ::ioctl(fd_.get(), KVM_CHECK_EXTENSION, capability));
}

base::Expected<KvmVm> Kvm::create_vm() const {
  base::OwnedFd fd(::ioctl(fd_.get(), KVM_CREATE_VM, 0UL));
  if (!fd.valid()) {
    return fail_errno(ErrorKind::kFailed, "KVM_CREATE_VM");
  }
  return KvmVm(std::move(fd), run_page_size_);
}

base::Expected<std::vector<kvm_cpuid_entry2>> Kvm::supported_cpuid() const {
  const auto list = std::make_unique<CpuidList>();
  list->count = kMaxCpuidEntries;
  TRY(call_ioctl(fd_.get(), KVM_GET_SUPPORTED_CPUID, "KVM_GET_SUPPORTED_CPUID", list.get()));
  return std::vector<kvm_cpuid_entry2>(list->entries.begin(),
                                       list->entries.begin() + static_cast<long>(list->count));
}

base::Expected<std::vector<std::uint32_t>> Kvm::msr_index_list() const {
  MsrIndexList list;
  list.count = kMaxMsrs;
  TRY(call_ioctl(fd_.get(), KVM_GET_MSR_INDEX_LIST, "KVM_GET_MSR_INDEX_LIST", &list));
  return std::vector<std::uint32_t>(list.indices.begin(),
                                    list.indices.begin() + static_cast<long>(list.count));
}

}  // namespace towline::vmm
