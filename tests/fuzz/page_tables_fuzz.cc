// Page tables that a guest made: wherever they lead, nothing outside its memory is read, and no
// more pages are named than may be. Input: twelve registers of 8 bytes, then the guest's memory.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <set>

#include "base/ensure.h"
#include "vmm/kvm/first_pages.h"

namespace base = towline::base;
namespace vmm = towline::vmm;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kRegisters = 12;
  constexpr std::size_t kBytes = 64U << 10U;
  static const auto made = vmm::GuestMemory::create(base::Bytes{kBytes}, 40);
  ENSURE(made.ok(), "a small memory");
  std::array<std::uint64_t, kRegisters> registers{};
  std::memcpy(registers.data(), data, std::min(size, sizeof registers));
  const auto all = made.value().slice(base::GuestAddress{0}, base::Bytes{kBytes});
  ENSURE(all.has_value(), "all of it");
  std::fill(all->begin(), all->end(), std::byte{0});
  if (size > sizeof registers) {
    std::memcpy(all->data(), data + sizeof registers,
                std::min(size - sizeof registers, all->size()));
  }
  vmm::VcpuView view;
  std::size_t next = 0;
  for (std::uint64_t* one :
       {&view.rip, &view.rsp, &view.cr0, &view.cr3, &view.cr4, &view.efer, &view.cs_base,
        &view.ss_base, &view.gdt_base, &view.idt_base, &view.tr_base}) {
    *one = registers[next++];
  }
  view.kvm_pages = {registers[next], ~registers[next]};
  const std::array views{view, view};
  const auto pages = vmm::find_first_pages(made.value(), views);
  ENSURE(pages.size() <= views.size() * vmm::kFirstPagesPerVcpu, "no more than may be");
  std::set<std::uint64_t> seen;
  for (const base::PageIndex page : pages) {
    ENSURE(page.value < kBytes / base::kSmallPage.value, "of this machine");
    ENSURE(seen.insert(page.value).second, "each once");
  }
  return 0;
}
