#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// Debian 12's <linux/stddef.h> declares flexible arrays through an empty struct. In C++ that one
// has size 1, so that sizes, offsets and with them ioctl numbers come out wrong (KVM_SET_CPUID2,
// KVM_GET_MSRS, KVM_GET_XSAVE and a dozen more: plain EINVAL or ENOTTY). This must come first.
#include <linux/stddef.h>
#undef __DECLARE_FLEX_ARRAY
// NOLINTNEXTLINE(bugprone-reserved-identifier, readability-identifier-naming): the kernel's name.
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[]
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#include <linux/kvm.h>
#pragma GCC diagnostic pop

#include "base/error.h"
#include "base/fd.h"
#include "base/units.h"

// The numbers as C computes them.
static_assert(KVM_GET_MSR_INDEX_LIST == 0xc004ae02 && KVM_GET_SUPPORTED_CPUID == 0xc008ae05);
static_assert(KVM_GET_MSRS == 0xc008ae88 && KVM_SET_MSRS == 0x4008ae89);
static_assert(KVM_SET_CPUID2 == 0x4008ae90 && KVM_SET_SIGNAL_MASK == 0x4004ae8b);
static_assert(KVM_GET_XSAVE == 0x9000aea4 && KVM_SET_XSAVE == 0x5000aea5);
static_assert(KVM_GET_XSAVE2 == 0x9000aecf);

namespace towline::vmm {

/// The ioctls of KVM that this machine uses, typed. Nothing here has an opinion.
///
/// Threads: as the kernel's: any, one at a time per vCPU. Errors: kFailed with the errno and the
/// name of the ioctl, unless a function says otherwise.

/// The page that KVM_RUN and user space share, unmapped by the destructor.
class RunPage {
 public:
  RunPage() = default;

  RunPage(void* at, std::size_t size) : at_(at), size_(size) {}

  RunPage(RunPage&& other) noexcept;
  RunPage& operator=(RunPage&& other) noexcept;
  RunPage(const RunPage&) = delete;
  RunPage& operator=(const RunPage&) = delete;
  ~RunPage();

  [[nodiscard]] kvm_run* get() const { return static_cast<kvm_run*>(at_); }

  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  void* at_ = nullptr;
  std::size_t size_ = 0;
};

/// One virtual CPU.
class KvmVcpu {
 public:
  KvmVcpu(base::OwnedFd fd, RunPage page) : fd_(std::move(fd)), page_(std::move(page)) {}

  [[nodiscard]] kvm_run& run_page() const { return *page_.get(); }

  [[nodiscard]] std::size_t run_page_size() const { return page_.size(); }

  /// KVM_RUN. Returns 0 (see run_page().exit_reason) or the errno: EINTR after a kick.
  int run() const;

  /// Any KVM_GET_… or KVM_SET_… that takes a struct: get(KVM_GET_REGS, "KVM_GET_REGS", regs).
  template <typename T>
  base::Outcome get(unsigned long request, const char* name, T& into) const {
    return call(request, name, &into);
  }

  template <typename T>
  base::Outcome set(unsigned long request, const char* name, const T& from) const {
    // The kernel only reads it; ioctl() has one signature for both directions.
    return call(request, name, const_cast<T*>(&from));
  }

  /// For the variable-sized ones (KVM_GET_XSAVE2): `data` is as large as the kernel expects.
  base::Outcome call(unsigned long request, const char* name, void* data) const;

  base::Outcome set_cpuid(std::span<const kvm_cpuid_entry2> entries) const;

  /// Reads every MSR of `entries` in one ioctl. Returns how many were read: fewer than all means
  /// that entries[count] cannot be read.
  base::Expected<std::size_t> get_msrs(std::span<kvm_msr_entry> entries) const;
  base::Expected<std::size_t> set_msrs(std::span<const kvm_msr_entry> entries) const;

  [[nodiscard]] bool has_tsc_offset() const;
  base::Expected<std::uint64_t> get_tsc_offset() const;
  base::Outcome set_tsc_offset(std::uint64_t offset) const;

  base::Expected<std::uint32_t> get_tsc_khz() const;

  /// Tells the guest's watchdogs that it was paused. A guest without kvm-clock has none: no error.
  void note_pause() const;

 private:
  base::OwnedFd fd_;
  RunPage page_;
};

/// One virtual machine.
class KvmVm {
 public:
  KvmVm(base::OwnedFd fd, std::size_t run_page_size)
      : fd_(std::move(fd)), run_page_size_(run_page_size) {}

  base::Expected<KvmVcpu> create_vcpu(std::uint32_t id) const;
  base::Outcome set_memory(std::uint32_t slot, std::uint32_t flags, base::GuestAddress start,
                           base::Bytes size, base::HostAddress mapping) const;
  base::Outcome set_tss_address(std::uint32_t address) const;
  base::Outcome set_identity_map_address(std::uint64_t address) const;
  base::Outcome create_irqchip() const;
  base::Outcome enable_capability(std::uint32_t capability, std::uint64_t value) const;
  [[nodiscard]] int check_extension(unsigned long capability) const;

  base::Outcome set_irq_line(std::uint32_t gsi, bool level) const;
  base::Expected<kvm_irqchip> get_irqchip(std::uint32_t chip) const;
  base::Outcome set_irqchip(const kvm_irqchip& chip) const;
  base::Expected<kvm_clock_data> get_clock() const;
  base::Outcome set_clock(const kvm_clock_data& clock) const;

  base::Outcome get_dirty_log(std::uint32_t slot, std::span<std::uint64_t> bitmap) const;
  base::Outcome clear_dirty_log(std::uint32_t slot, std::uint64_t first, std::uint32_t count,
                                std::span<const std::uint64_t> bitmap) const;

 private:
  base::OwnedFd fd_;
  std::size_t run_page_size_;
};

/// /dev/kvm.
class Kvm {
 public:
  /// Errors: kUnsupported, naming what is missing (the device, the permission, the version) and
  /// the remedy.
  static base::Expected<Kvm> open(const char* path = "/dev/kvm");

  [[nodiscard]] int check_extension(unsigned long capability) const;
  base::Expected<KvmVm> create_vm() const;
  base::Expected<std::vector<kvm_cpuid_entry2>> supported_cpuid() const;
  base::Expected<std::vector<std::uint32_t>> msr_index_list() const;

 private:
  Kvm(base::OwnedFd fd, std::size_t run_page_size)
      : fd_(std::move(fd)), run_page_size_(run_page_size) {}

  base::OwnedFd fd_;
  std::size_t run_page_size_;
};

}  // namespace towline::vmm
