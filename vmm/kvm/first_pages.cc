#include "vmm/kvm/first_pages.h"

#include <cstring>
#include <optional>
#include <unordered_set>

namespace towline::vmm {
namespace {

using base::Bytes;
using base::GuestAddress;

constexpr std::uint64_t kPaging = 1UL << 31U;          // CR0.PG
constexpr std::uint64_t kFiveLevels = 1UL << 12U;      // CR4.LA57
constexpr std::uint64_t kLongModeActive = 1UL << 10U;  // EFER.LMA
constexpr std::uint64_t kPresent = 1;
constexpr std::uint64_t kLarge = 1UL << 7U;
constexpr std::uint64_t kAddressBits = 0x000ffffffffff000;
constexpr std::uint64_t kPage = 4096;

/// Collects pages of one vCPU, each once.
class Collector {
 public:
  Collector(const GuestMemory& memory, std::unordered_set<std::uint64_t>& seen,
            std::vector<base::PageIndex>& into)
      : memory_(memory), seen_(seen), into_(into) {}

  void add_physical(std::uint64_t address) {
    const auto page = memory_.page_of(GuestAddress{address});
    if (page && left_ > 0 && seen_.insert(page->value).second) {
      into_.push_back(*page);
      --left_;
    }
  }

  /// Adds the tables on the way and then the page of the linear address.
  void add_linear(const VcpuView& vcpu, std::uint64_t address) {
    if ((vcpu.cr0 & kPaging) == 0) {
      add_physical(address);
      return;
    }
    if ((vcpu.efer & kLongModeActive) == 0) {
      return;  // 32-bit paging: guests that still run in it are not in a hurry.
    }
    const unsigned levels = (vcpu.cr4 & kFiveLevels) != 0 ? 5 : 4;
    std::uint64_t table = vcpu.cr3 & kAddressBits;
    for (unsigned level = levels; level > 0; --level) {
      const unsigned shift = 12 + 9 * (level - 1);
      const std::uint64_t slot = table + (address >> shift & 0x1ffU) * 8;
      add_physical(slot);
      const auto entry = read(slot);
      if (!entry || (*entry & kPresent) == 0) {
        return;
      }
      if (level == 1 || (level < 4 && (*entry & kLarge) != 0)) {
        const std::uint64_t below = (1UL << shift) - 1;
        add_physical((*entry & kAddressBits & ~below) | (address & below));
        return;
      }
      table = *entry & kAddressBits;
    }
  }

 private:
  [[nodiscard]] std::optional<std::uint64_t> read(std::uint64_t address) const {
    const auto bytes = memory_.slice(GuestAddress{address}, Bytes{8});
    if (!bytes) {
      return std::nullopt;
    }
    std::uint64_t value = 0;
    std::memcpy(&value, bytes->data(), sizeof value);
    return value;
  }

  const GuestMemory& memory_;
  std::unordered_set<std::uint64_t>& seen_;
  std::vector<base::PageIndex>& into_;
  std::size_t left_ = kFirstPagesPerVcpu;
};

}  // namespace

std::vector<base::PageIndex> find_first_pages(const GuestMemory& memory,
                                              std::span<const VcpuView> vcpus) {
  std::vector<base::PageIndex> pages;
  std::unordered_set<std::uint64_t> seen;
  for (const VcpuView& vcpu : vcpus) {
    Collector collector(memory, seen, pages);
    // KVM touches its own before the first instruction, with every vCPU waiting.
    for (const std::uint64_t address : vcpu.kvm_pages) {
      collector.add_physical(address);
    }
    collector.add_linear(vcpu, vcpu.cs_base + vcpu.rip);
    collector.add_linear(vcpu, vcpu.ss_base + vcpu.rsp);
    for (const std::uint64_t table : {vcpu.gdt_base, vcpu.idt_base, vcpu.tr_base}) {
      collector.add_linear(vcpu, table);
    }
    // Code runs on, a stack grows down and is unwound upwards: guesses, two pages each.
    for (const std::uint64_t distance : {kPage, 2 * kPage}) {
      collector.add_linear(vcpu, vcpu.cs_base + vcpu.rip + distance);
      collector.add_linear(vcpu, vcpu.ss_base + vcpu.rsp - distance);
      collector.add_linear(vcpu, vcpu.ss_base + vcpu.rsp + distance);
    }
  }
  return pages;
}

}  // namespace towline::vmm
