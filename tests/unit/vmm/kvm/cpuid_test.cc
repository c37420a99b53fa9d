#include "vmm/kvm/cpuid.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include <doctest/doctest.h>

namespace towline::vmm {
namespace {

kvm_cpuid_entry2 leaf(std::uint32_t function, std::uint32_t index, std::uint32_t eax,
                      std::uint32_t ebx, std::uint32_t ecx, std::uint32_t edx) {
  kvm_cpuid_entry2 entry{};
  entry.function = function;
  entry.index = index;
  entry.eax = eax;
  entry.ebx = ebx;
  entry.ecx = ecx;
  entry.edx = edx;
  return entry;
}

CpuidTable sample() {
  return {leaf(0x0, 0, 0x1f, 0x756e6547, 0x6c65746e, 0x49656e69),  // GenuineIntel
          leaf(0x1, 0, 0, 0x00ff0800, 1U << 20U | 1U << 5U, 1U << 25U),
          leaf(0x7, 0, 2, 1U << 5U | 1U << 3U, 0, 0),
          leaf(0xb, 0, 0, 0, 0, 0),
          leaf(0xb, 1, 0, 0, 0, 0),
          leaf(0x40000000, 0, 0x40000001, 0, 0, 0),
          leaf(0x80000001, 0, 0, 0, 1U << 2U | 1U, 0),
          leaf(0x80000008, 0, 0x3930, 0, 0, 0)};
}

const kvm_cpuid_entry2& find(const CpuidTable& table, std::uint32_t function,
                             std::uint32_t index = 0) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const kvm_cpuid_entry2& entry) {
    return entry.function == function && entry.index == index;
  });
  REQUIRE(found != table.end());
  return *found;
}

bool any_mentions(const std::vector<std::string>& lines, const std::string& what) {
  return std::any_of(lines.begin(), lines.end(),
                     [&](const std::string& line) { return line.find(what) != std::string::npos; });
}

TEST_CASE("the guest sees a hypervisor and a TSC deadline, and no nested virtualisation") {
  const auto made = make_cpuid(sample(), true, {});
  REQUIRE(made.ok());
  const std::uint32_t features = find(made.value(), 1).ecx;
  CHECK((features >> 31U & 1U) == 1);
  CHECK((features >> 24U & 1U) == 1);
  CHECK((features >> 5U & 1U) == 0);
  CHECK((find(made.value(), 0x80000001).ecx & 0x5U) == 1);
}

TEST_CASE("a feature is hidden by its well-known name, and an unknown name is refused") {
  const std::array<std::string, 1> avx2{"avx2"};
  const auto made = make_cpuid(sample(), false, avx2);
  REQUIRE(made.ok());
  CHECK(find(made.value(), 7).ebx == 1U << 3U);
  const std::array<std::string, 1> wrong{"avx3"};
  const auto refused = make_cpuid(sample(), false, wrong);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().detail.find("'avx3'") != std::string::npos);
}

TEST_CASE("each vCPU gets its own APIC id and all know how many they are") {
  const CpuidTable table = cpuid_for(sample(), 3, 4);
  CHECK(find(table, 1).ebx == 0x03040800);
  CHECK((find(table, 1).edx >> 28U & 1U) == 1);
  CHECK(find(table, 0xb, 0).edx == 3);
  CHECK(find(table, 0xb, 1).edx == 3);
  CHECK((find(table, 0x80000008).ecx & 0xffU) == 3);
  CHECK((find(cpuid_for(sample(), 0, 1), 1).edx >> 28U & 1U) == 0);
}

TEST_CASE("the guest is told how fast its TSC counts") {
  CpuidTable table = sample();
  add_timing_leaf(table, 2'300'000);
  CHECK(find(table, 0x40000000).eax == 0x40000010);
  CHECK(find(table, 0x40000010).eax == 2'300'000);
  add_timing_leaf(table, 2'300'000);
  CHECK(std::count_if(table.begin(), table.end(), [](const kvm_cpuid_entry2& entry) {
          return entry.function == 0x40000010;
        }) == 1);
}

TEST_CASE("a CPUID table survives its section") {
  CpuidTable table = sample();
  table[3].flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  const auto back = load_cpuid(save_cpuid(table));
  REQUIRE(back.ok());
  CHECK(same_answers(back.value(), table));
  table[3].eax = 1;
  CHECK_FALSE(same_answers(back.value(), table));
}

TEST_CASE("a CPUID field that names no leaf is refused") {
  for (const std::string name : {"leaf", "1", "1.", "00000001.x", "1.0.0"}) {
    runtime::Section section;
    section.device = "cpuid";
    section.put_bytes(name, std::vector<std::byte>(20));
    const auto loaded = load_cpuid(section);
    CAPTURE(name);
    REQUIRE_FALSE(loaded.ok());
    CHECK(loaded.error().detail.find(name) != std::string::npos);
  }
  runtime::Section section;
  section.device = "cpuid";
  section.put_bytes("1.0", std::vector<std::byte>(19));
  CHECK_FALSE(load_cpuid(section).ok());
}

TEST_CASE("the same table lacks nothing, and one that has more lacks nothing either") {
  CHECK(missing_features(sample(), sample()).empty());
  CpuidTable more = sample();
  more[2].ebx |= 1U << 16U;
  CHECK(missing_features(sample(), more).empty());
}

TEST_CASE("a missing feature is named by name, leaf, register and bit") {
  CpuidTable here = sample();
  here[2].ebx &= ~(1U << 5U);
  const auto lines = missing_features(sample(), here);
  REQUIRE(lines.size() == 1);
  CHECK(lines[0] == "CPUID feature 'avx2' (leaf 0x7, index 0, EBX bit 5) is missing at the target");
}

TEST_CASE("a missing feature that nobody gave a name is named by its place") {
  CpuidTable source = sample();
  source[2].ecx |= 1U << 27U;
  const auto lines = missing_features(source, sample());
  REQUIRE(lines.size() == 1);
  CHECK(lines[0] == "CPUID feature (leaf 0x7, index 0, ECX bit 27) is missing at the target");
}

TEST_CASE("a leaf that is not there at all lacks all that the source has in it") {
  CpuidTable here = sample();
  here.erase(here.begin() + 2);
  CHECK(missing_features(sample(), here).size() == 2);
}

TEST_CASE("bits that only mirror the guest's own doing are no features") {
  CpuidTable source = sample();
  source[1].ecx |= 1U << 27U;
  source[1].edx |= 1U << 28U;
  source[2].ecx |= 1U << 4U;
  CHECK(missing_features(source, sample()).empty());
}

TEST_CASE("another vendor and fewer address bits are named with both values") {
  CpuidTable here = sample();
  here[0] = leaf(0x0, 0, 0x10, 0x68747541, 0x444d4163, 0x69746e65);
  here[7].eax = 0x3928;
  const auto lines = missing_features(sample(), here);
  CHECK(any_mentions(lines, "'GenuineIntel', the target 'AuthenticAMD'"));
  CHECK(any_mentions(lines, "48 physical address bits, the target 40"));
}

}  // namespace
}  // namespace towline::vmm
