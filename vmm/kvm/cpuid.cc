#include "vmm/kvm/cpuid.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include <fmt/format.h>

namespace towline::vmm {
namespace {

using base::ErrorKind;
using base::fail;

enum class Register : std::uint8_t { kEax, kEbx, kEcx, kEdx };

constexpr std::uint32_t kKvmFeatures = 0x40000001;
constexpr std::uint32_t kExtended = 0x80000001;

struct Feature {
  const char* name;
  std::uint32_t leaf;
  std::uint32_t index;
  Register in;
  unsigned bit;
};

// Names as in /proc/cpuinfo; of KVM's own as in Linux' Documentation/virt/kvm/x86/cpuid.rst.
// clang-format off
constexpr std::array kFeatures{
    Feature{"fpu",        0x1, 0, Register::kEdx,  0}, Feature{"tsc",        0x1, 0, Register::kEdx,  4},
    Feature{"msr",        0x1, 0, Register::kEdx,  5}, Feature{"pae",        0x1, 0, Register::kEdx,  6},
    Feature{"cx8",        0x1, 0, Register::kEdx,  8}, Feature{"apic",       0x1, 0, Register::kEdx,  9},
    Feature{"mtrr",       0x1, 0, Register::kEdx, 12}, Feature{"pge",        0x1, 0, Register::kEdx, 13},
    Feature{"cmov",       0x1, 0, Register::kEdx, 15}, Feature{"pat",        0x1, 0, Register::kEdx, 16},
    Feature{"clflush",    0x1, 0, Register::kEdx, 19}, Feature{"mmx",        0x1, 0, Register::kEdx, 23},
    Feature{"fxsr",       0x1, 0, Register::kEdx, 24}, Feature{"sse",        0x1, 0, Register::kEdx, 25},
    Feature{"sse2",       0x1, 0, Register::kEdx, 26}, Feature{"pni",        0x1, 0, Register::kEcx,  0},
    Feature{"pclmulqdq",  0x1, 0, Register::kEcx,  1}, Feature{"ssse3",      0x1, 0, Register::kEcx,  9},
    Feature{"fma",        0x1, 0, Register::kEcx, 12}, Feature{"cx16",       0x1, 0, Register::kEcx, 13},
    Feature{"pcid",       0x1, 0, Register::kEcx, 17}, Feature{"sse4_1",     0x1, 0, Register::kEcx, 19},
    Feature{"sse4_2",     0x1, 0, Register::kEcx, 20}, Feature{"x2apic",     0x1, 0, Register::kEcx, 21},
    Feature{"movbe",      0x1, 0, Register::kEcx, 22}, Feature{"popcnt",     0x1, 0, Register::kEcx, 23},
    Feature{"tsc_deadline_timer", 0x1, 0, Register::kEcx, 24},
    Feature{"aes",        0x1, 0, Register::kEcx, 25}, Feature{"xsave",      0x1, 0, Register::kEcx, 26},
    Feature{"avx",        0x1, 0, Register::kEcx, 28}, Feature{"f16c",       0x1, 0, Register::kEcx, 29},
    Feature{"rdrand",     0x1, 0, Register::kEcx, 30}, Feature{"hypervisor", 0x1, 0, Register::kEcx, 31},
    Feature{"arat",       0x6, 0, Register::kEax,  2},
    Feature{"fsgsbase",   0x7, 0, Register::kEbx,  0}, Feature{"tsc_adjust", 0x7, 0, Register::kEbx,  1},
    Feature{"bmi1",       0x7, 0, Register::kEbx,  3}, Feature{"avx2",       0x7, 0, Register::kEbx,  5},
    Feature{"smep",       0x7, 0, Register::kEbx,  7}, Feature{"bmi2",       0x7, 0, Register::kEbx,  8},
    Feature{"erms",       0x7, 0, Register::kEbx,  9}, Feature{"invpcid",    0x7, 0, Register::kEbx, 10},
    Feature{"avx512f",    0x7, 0, Register::kEbx, 16}, Feature{"avx512dq",   0x7, 0, Register::kEbx, 17},
    Feature{"rdseed",     0x7, 0, Register::kEbx, 18}, Feature{"adx",        0x7, 0, Register::kEbx, 19},
    Feature{"smap",       0x7, 0, Register::kEbx, 20}, Feature{"clflushopt", 0x7, 0, Register::kEbx, 23},
    Feature{"clwb",       0x7, 0, Register::kEbx, 24}, Feature{"avx512cd",   0x7, 0, Register::kEbx, 28},
    Feature{"sha_ni",     0x7, 0, Register::kEbx, 29}, Feature{"avx512bw",   0x7, 0, Register::kEbx, 30},
    Feature{"avx512vl",   0x7, 0, Register::kEbx, 31}, Feature{"umip",       0x7, 0, Register::kEcx,  2},
    Feature{"pku",        0x7, 0, Register::kEcx,  3}, Feature{"gfni",       0x7, 0, Register::kEcx,  8},
    Feature{"vaes",       0x7, 0, Register::kEcx,  9}, Feature{"vpclmulqdq", 0x7, 0, Register::kEcx, 10},
    Feature{"la57",       0x7, 0, Register::kEcx, 16}, Feature{"rdpid",      0x7, 0, Register::kEcx, 22},
    Feature{"fsrm",       0x7, 0, Register::kEdx,  4}, Feature{"serialize",  0x7, 0, Register::kEdx, 14},
    Feature{"spec_ctrl",  0x7, 0, Register::kEdx, 26}, Feature{"ssbd",       0x7, 0, Register::kEdx, 31},
    Feature{"xsaveopt",   0xd, 1, Register::kEax,  0}, Feature{"xsavec",     0xd, 1, Register::kEax,  1},
    Feature{"xsaves",     0xd, 1, Register::kEax,  3},
    Feature{"kvmclock-old",  kKvmFeatures, 0, Register::kEax,  0},
    Feature{"kvmclock",      kKvmFeatures, 0, Register::kEax,  3},
    Feature{"kvm-asyncpf",   kKvmFeatures, 0, Register::kEax,  4},
    Feature{"kvm-steal-time", kKvmFeatures, 0, Register::kEax,  5},
    Feature{"kvm-pv-eoi",    kKvmFeatures, 0, Register::kEax,  6},
    Feature{"kvm-asyncpf-vmexit", kKvmFeatures, 0, Register::kEax, 10},
    Feature{"kvm-asyncpf-int", kKvmFeatures, 0, Register::kEax, 14},
    Feature{"kvmclock-stable-bit", kKvmFeatures, 0, Register::kEax, 24},
    Feature{"lahf_lm",    kExtended, 0, Register::kEcx,  0}, Feature{"svm",     kExtended, 0, Register::kEcx,  2},
    Feature{"abm",        kExtended, 0, Register::kEcx,  5}, Feature{"sse4a",   kExtended, 0, Register::kEcx,  6},
    Feature{"syscall",    kExtended, 0, Register::kEdx, 11}, Feature{"nx",      kExtended, 0, Register::kEdx, 20},
    Feature{"pdpe1gb",    kExtended, 0, Register::kEdx, 26}, Feature{"rdtscp",  kExtended, 0, Register::kEdx, 27},
    Feature{"lm",         kExtended, 0, Register::kEdx, 29},
    Feature{"constant_tsc", 0x80000007, 0, Register::kEdx, 8},
};

/// Registers whose bits each grant something, and the bits among them that do not.
struct FeatureWord {
  std::uint32_t leaf;
  std::uint32_t index;
  Register in;
  std::uint32_t not_features;
};

constexpr std::array kFeatureWords{
    FeatureWord{0x1, 0, Register::kEcx, 1U << 27U},  // OSXSAVE mirrors CR4.
    FeatureWord{0x1, 0, Register::kEdx, 1U << 28U},  // HTT says that there are several vCPUs.
    FeatureWord{0x6, 0, Register::kEax, ~(1U << 2U)},
    FeatureWord{0x7, 0, Register::kEbx, 0},
    FeatureWord{0x7, 0, Register::kEcx, 1U << 4U},  // OSPKE mirrors CR4.
    FeatureWord{0x7, 0, Register::kEdx, 0},
    FeatureWord{0x7, 1, Register::kEax, 0},
    FeatureWord{0x7, 1, Register::kEdx, 0},
    FeatureWord{0x7, 2, Register::kEdx, 0},
    FeatureWord{0xd, 0, Register::kEax, 0},
    FeatureWord{0xd, 0, Register::kEdx, 0},
    FeatureWord{0xd, 1, Register::kEax, 0},
    FeatureWord{kKvmFeatures, 0, Register::kEax, 0},
    FeatureWord{kExtended, 0, Register::kEcx, 0},
    FeatureWord{kExtended, 0, Register::kEdx, 0},
    FeatureWord{0x80000007, 0, Register::kEdx, 0},
    FeatureWord{0x80000008, 0, Register::kEbx, 0},
    FeatureWord{0x80000021, 0, Register::kEax, 0},
};

// clang-format on

template <typename Entry>
auto& register_of(Entry& entry, Register in) {
  switch (in) {
    case Register::kEax:
      return entry.eax;
    case Register::kEbx:
      return entry.ebx;
    case Register::kEcx:
      return entry.ecx;
    case Register::kEdx:
      return entry.edx;
  }
  __builtin_unreachable();
}

const char* to_string(Register in) {
  constexpr std::array kNames{"EAX", "EBX", "ECX", "EDX"};
  return kNames[static_cast<std::size_t>(in)];
}

const kvm_cpuid_entry2* find_leaf(const CpuidTable& table, std::uint32_t leaf,
                                  std::uint32_t index) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const kvm_cpuid_entry2& entry) {
    return entry.function == leaf && entry.index == index;
  });
  return found == table.end() ? nullptr : &*found;
}

std::uint32_t word_of(const CpuidTable& table, std::uint32_t leaf, std::uint32_t index,
                      Register in) {
  const kvm_cpuid_entry2* entry = find_leaf(table, leaf, index);
  return entry == nullptr ? 0 : register_of(*entry, in);
}

void set_bit(CpuidTable& table, std::uint32_t leaf, std::uint32_t index, Register in, unsigned bit,
             bool on) {
  for (kvm_cpuid_entry2& entry : table) {
    if (entry.function == leaf && entry.index == index) {
      auto& word = register_of(entry, in);
      word = on ? word | 1U << bit : word & ~(1U << bit);
    }
  }
}

std::string describe(const FeatureWord& word, unsigned bit) {
  const auto named = std::find_if(kFeatures.begin(), kFeatures.end(), [&](const Feature& feature) {
    return feature.leaf == word.leaf && feature.index == word.index && feature.in == word.in &&
           feature.bit == bit;
  });
  const std::string name =
      named == kFeatures.end() ? std::string() : fmt::format(" '{}'", named->name);
  return fmt::format("CPUID feature{} (leaf {:#x}, index {}, {} bit {})", name, word.leaf,
                     word.index, to_string(word.in), bit);
}

std::string vendor_of(const CpuidTable& table) {
  const kvm_cpuid_entry2* entry = find_leaf(table, 0, 0);
  if (entry == nullptr) {
    return "";
  }
  const std::array<std::uint32_t, 3> words{entry->ebx, entry->edx, entry->ecx};
  std::string vendor(12, '\0');
  std::memcpy(vendor.data(), words.data(), vendor.size());
  std::replace_if(
      vendor.begin(), vendor.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return vendor;
}

}  // namespace

base::Expected<CpuidTable> make_cpuid(CpuidTable supported, bool tsc_deadline,
                                      std::span<const std::string> hidden) {
  set_bit(supported, 0x1, 0, Register::kEcx, 24, tsc_deadline);  // KVM never reports it itself.
  set_bit(supported, 0x1, 0, Register::kEcx, 31, true);
  // Nested state is not carried over, so a guest must not begin to have any: VMX and SVM.
  set_bit(supported, 0x1, 0, Register::kEcx, 5, false);
  set_bit(supported, kExtended, 0, Register::kEcx, 2, false);
  for (const std::string& name : hidden) {
    const auto* feature =
        std::find_if(kFeatures.begin(), kFeatures.end(),
                     [&](const Feature& candidate) { return candidate.name == name; });
    if (feature == kFeatures.end()) {
      return fail(ErrorKind::kRefused, "CPUID",
                  fmt::format("CPU feature '{}' is not known; use names as in /proc/cpuinfo: avx2, "
                              "sse4_2, xsave, …",
                              name));
    }
    set_bit(supported, feature->leaf, feature->index, feature->in, feature->bit, false);
  }
  return supported;
}

void add_timing_leaf(CpuidTable& table, std::uint32_t tsc_khz) {
  constexpr std::uint32_t kHypervisor = 0x40000000;
  constexpr std::uint32_t kTiming = 0x40000010;
  constexpr std::uint32_t kApicBusKhz = 1'000'000;  // KVM's local APIC timer: 1 ns.
  const bool there = find_leaf(table, kTiming, 0) != nullptr;
  for (kvm_cpuid_entry2& entry : table) {
    if (entry.function == kHypervisor) {
      entry.eax = std::max(entry.eax, kTiming);
    }
  }
  if (!there) {
    kvm_cpuid_entry2 timing{};
    timing.function = kTiming;
    timing.eax = tsc_khz;
    timing.ebx = kApicBusKhz;
    table.push_back(timing);
  }
}

CpuidTable cpuid_for(const CpuidTable& table, std::uint32_t vcpu, std::uint32_t vcpus) {
  CpuidTable result = table;
  for (kvm_cpuid_entry2& entry : result) {
    switch (entry.function) {
      case 0x1:
        entry.ebx = (entry.ebx & 0x0000ffffU) | vcpu << 24U | std::min(vcpus, 255U) << 16U;
        entry.edx = vcpus > 1 ? entry.edx | 1U << 28U : entry.edx & ~(1U << 28U);
        break;
      case 0xb:
      case 0x1f:
        entry.edx = vcpu;
        break;
      case 0x80000008:
        entry.ecx = (entry.ecx & ~0xffU) | (vcpus - 1 < 0xff ? vcpus - 1 : 0xff);
        break;
      case 0x8000001e:
        entry.eax = vcpu;
        break;
      default:
        break;
    }
  }
  return result;
}

runtime::Section save_cpuid(const CpuidTable& table) {
  runtime::Section section;
  section.device = "cpuid";
  section.fields.reserve(table.size());
  for (const kvm_cpuid_entry2& entry : table) {
    const std::array<std::uint32_t, 5> words{entry.flags, entry.eax, entry.ebx, entry.ecx,
                                             entry.edx};
    section.put_bytes(fmt::format("{:08x}.{:x}", entry.function, entry.index),
                      std::as_bytes(std::span(words)));
  }
  return section;
}

base::Expected<CpuidTable> load_cpuid(const runtime::Section& section) {
  CpuidTable table;
  for (const runtime::Field& field : section.fields) {
    kvm_cpuid_entry2 entry{};
    const char* end = field.name.data() + field.name.size();
    const auto leaf = std::from_chars(field.name.data(), end, entry.function, 16);
    const bool dotted = leaf.ec == std::errc() && leaf.ptr != end && *leaf.ptr == '.';
    const auto index =
        dotted ? std::from_chars(leaf.ptr + 1, end, entry.index, 16) : std::from_chars_result{};
    if (!dotted || index.ec != std::errc() || index.ptr != end) {
      return fail(ErrorKind::kCorrupt, "load CPUID",
                  fmt::format("cpuid[0]: field '{}' does not name a leaf", field.name));
    }
    std::array<std::uint32_t, 5> words{};
    const auto bytes = TRY(section.get_bytes(field.name, sizeof words));
    std::memcpy(words.data(), bytes.data(), sizeof words);
    entry.flags = words[0];
    entry.eax = words[1];
    entry.ebx = words[2];
    entry.ecx = words[3];
    entry.edx = words[4];
    table.push_back(entry);
  }
  return table;
}

bool same_answers(const CpuidTable& one, const CpuidTable& other) {
  return std::equal(one.begin(), one.end(), other.begin(), other.end(),
                    [](const kvm_cpuid_entry2& left, const kvm_cpuid_entry2& right) {
                      return std::memcmp(&left, &right, sizeof left) == 0;
                    });
}

std::vector<std::string> missing_features(const CpuidTable& source, const CpuidTable& here) {
  std::vector<std::string> missing;
  if (vendor_of(source) != vendor_of(here)) {
    missing.push_back(
        fmt::format("CPU vendor differs: the source's guest has '{}', the target '{}'",
                    vendor_of(source), vendor_of(here)));
  }
  for (const FeatureWord& word : kFeatureWords) {
    const std::uint32_t theirs = word_of(source, word.leaf, word.index, word.in);
    const std::uint32_t ours = word_of(here, word.leaf, word.index, word.in);
    const std::uint32_t lacking = theirs & ~ours & ~word.not_features;
    for (unsigned bit = 0; bit < 32; ++bit) {
      if ((lacking >> bit & 1U) != 0) {
        missing.push_back(describe(word, bit) + " is missing at the target");
      }
    }
  }
  if (physical_address_bits(source) > physical_address_bits(here)) {
    missing.push_back(fmt::format("the source's guest has {} physical address bits, the target {}",
                                  physical_address_bits(source), physical_address_bits(here)));
  }
  return missing;
}

unsigned physical_address_bits(const CpuidTable& table) {
  const std::uint32_t bits = word_of(table, 0x80000008, 0, Register::kEax) & 0xffU;
  return bits == 0 ? 36 : bits;  // 36: what a processor without the leaf has (Intel SDM, CPUID).
}

}  // namespace towline::vmm
