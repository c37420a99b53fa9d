#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include "vmm/kvm/kvm.h"
#include "vmm/kvm/vcpu_state.h"

// What KVM writes into guest memory by itself, and when the dirty log knows. Relied on by
// KvmMachine::save(), which makes its last vCPU ioctl before it returns, and by the source, which
// reads the log after it: whoever read the log first would leave such a page old at the target.

namespace towline::vmm {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kPages = 64;
constexpr std::uint64_t kCodeAt = 0x1000;
constexpr std::uint64_t kStealTimeAt = 0x8000;
constexpr std::uint64_t kClockAt = 0x9000;
constexpr std::uint32_t kMsrSystemTimeNew = 0x4b564d01;
constexpr std::uint32_t kMsrStealTime = 0x4b564d03;

using Pages = std::set<std::size_t>;

template <typename T>
T good(base::Expected<T> got) {
  REQUIRE_MESSAGE(got.ok(), (got.ok() ? "" : to_string(got.error())));
  return std::move(got).value();
}

/// A vCPU whose guest leaves at once, again and again, and never writes to memory.
class Watched {
 public:
  Watched() {
    REQUIRE(memory_ != MAP_FAILED);
    constexpr std::array<std::uint8_t, 4> kCode{0xe6, 0x80, 0xeb, 0xfc};  // out 0x80, al; again
    std::memcpy(bytes() + kCodeAt, kCode.data(), kCode.size());
    REQUIRE(vm_.set_tss_address(0xfffbd000).ok());
    REQUIRE(vm_.create_irqchip().ok());
    REQUIRE(vm_.set_memory(0, KVM_MEM_LOG_DIRTY_PAGES, base::GuestAddress{0},
                           base::Bytes{kPages * kPageBytes},
                           base::HostAddress{reinterpret_cast<std::uint64_t>(memory_)})
                .ok());
    vcpu_.emplace(good(vm_.create_vcpu(0)));
    REQUIRE(vcpu_->set_cpuid(good(kvm_.supported_cpuid())).ok());
    features_ = good(probe_vcpu_features(kvm_, vm_, *vcpu_));
    kvm_sregs special{};
    REQUIRE(vcpu_->get(KVM_GET_SREGS, "KVM_GET_SREGS", special).ok());
    special.cs.base = 0;
    special.cs.selector = 0;
    REQUIRE(vcpu_->set(KVM_SET_SREGS, "KVM_SET_SREGS", special).ok());
    kvm_regs registers{};
    registers.rip = kCodeAt;
    registers.rflags = 2;
    REQUIRE(vcpu_->set(KVM_SET_REGS, "KVM_SET_REGS", registers).ok());
    std::array<kvm_msr_entry, 2> msrs{};
    msrs[0].index = kMsrStealTime;
    msrs[0].data = kStealTimeAt | 1U;
    msrs[1].index = kMsrSystemTimeNew;
    msrs[1].data = kClockAt | 1U;
    REQUIRE(good(vcpu_->set_msrs(msrs)) == msrs.size());
    (void)dirty();
  }

  ~Watched() {
    vcpu_.reset();
    ::munmap(memory_, kPages * kPageBytes);
  }

  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  /// Into the guest and out again.
  void run() const {
    REQUIRE(vcpu_->run() == 0);
    REQUIRE(vcpu_->run_page().exit_reason == KVM_EXIT_IO);
  }

  /// All that save() asks a vCPU for, behind the KVM_RUN that completes its instruction.
  void save() const {
    vcpu_->run_page().immediate_exit = 1;
    CHECK(vcpu_->run() == EINTR);
    vcpu_->run_page().immediate_exit = 0;
    REQUIRE(save_vcpu(*vcpu_, features_, 0).ok());
    vcpu_->note_pause();
  }

  /// The pages that the log names; it begins anew.
  [[nodiscard]] Pages dirty() const {
    std::array<std::uint64_t, kPages / 64> bitmap{};
    REQUIRE(vm_.get_dirty_log(0, bitmap).ok());
    Pages found;
    for (std::size_t page = 0; page < kPages; ++page) {
      if ((bitmap[page / 64] >> page % 64 & 1U) != 0) {
        found.insert(page);
      }
    }
    return found;
  }

  [[nodiscard]] std::vector<std::uint8_t> content() const {
    return {bytes(), bytes() + kPages * kPageBytes};
  }

  [[nodiscard]] Pages changed_since(const std::vector<std::uint8_t>& before) const {
    Pages found;
    for (std::size_t page = 0; page < kPages; ++page) {
      if (std::memcmp(bytes() + page * kPageBytes, before.data() + page * kPageBytes, kPageBytes) !=
          0) {
        found.insert(page);
      }
    }
    return found;
  }

 private:
  [[nodiscard]] std::uint8_t* bytes() const { return static_cast<std::uint8_t*>(memory_); }

  void* memory_ = ::mmap(nullptr, kPages* kPageBytes, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Kvm kvm_ = good(Kvm::open());
  KvmVm vm_ = good(kvm_.create_vm());
  std::optional<KvmVcpu> vcpu_;
  VcpuFeatures features_;
};

const Pages kOwnPages{kStealTimeAt / kPageBytes, kClockAt / kPageBytes};

TEST_CASE("KVM writes a vCPU's clock and steal time itself, and the log names both afterwards") {
  const Watched watched;
  const auto before = watched.content();
  CHECK(watched.dirty().empty());
  watched.run();
  CHECK(watched.changed_since(before) == kOwnPages);
  CHECK(watched.dirty() == kOwnPages);
  // A log that is read here does not have what the next ioctl writes; one that is read after it
  // does.
  const auto between = watched.content();
  CHECK(watched.dirty().empty());
  watched.run();
  const Pages later = watched.changed_since(between);
  CHECK(later.contains(kStealTimeAt / kPageBytes));
  CHECK(watched.dirty() == later);
}

TEST_CASE("whatever KVM wrote while a vCPU was saved is in a log that is read after that") {
  const Watched watched;
  for (int i = 0; i < 20; ++i) {
    watched.run();
    (void)watched.dirty();
    const auto before = watched.content();
    watched.save();
    const Pages named = watched.dirty();
    for (const std::size_t page : watched.changed_since(before)) {
      CAPTURE(page);
      CHECK(named.contains(page));
    }
  }
}

}  // namespace
}  // namespace towline::vmm
