#include "vmm/kvm/vcpu_state.h"

#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include <fmt/format.h>

#include "base/log.h"

namespace towline::vmm {
namespace {

using base::ErrorKind;
using base::fail;
using runtime::Field;
using runtime::FieldType;
using runtime::Section;

constexpr std::uint32_t kMsrTsc = 0x10;
constexpr std::uint32_t kMsrTscDeadline = 0x6e0;
constexpr std::uint32_t kMsrWallClock = 0x11;
constexpr std::uint32_t kMsrSystemTime = 0x12;
constexpr std::uint32_t kMsrWallClockNew = 0x4b564d00;
constexpr std::uint32_t kMsrSystemTimeNew = 0x4b564d01;
constexpr std::uint32_t kMsrAsyncFault = 0x4b564d02;
constexpr std::uint32_t kMsrStealTime = 0x4b564d03;
constexpr std::uint32_t kMsrPvEoi = 0x4b564d04;

/// Where a member of a KVM struct lives and what it is called in the stream: up to eight bytes
/// travel as a number, more as bytes.
struct Member {
  const char* name;
  std::size_t offset;
  std::size_t size;
};

#define REGISTER(STRUCT, NAME)                          \
  Member {                                              \
#NAME, offsetof(STRUCT, NAME), sizeof(STRUCT::NAME) \
  }

// clang-format off
constexpr std::array kRegs{
    REGISTER(kvm_regs, rax), REGISTER(kvm_regs, rbx), REGISTER(kvm_regs, rcx),
    REGISTER(kvm_regs, rdx), REGISTER(kvm_regs, rsi), REGISTER(kvm_regs, rdi),
    REGISTER(kvm_regs, rsp), REGISTER(kvm_regs, rbp), REGISTER(kvm_regs, r8),
    REGISTER(kvm_regs, r9),  REGISTER(kvm_regs, r10), REGISTER(kvm_regs, r11),
    REGISTER(kvm_regs, r12), REGISTER(kvm_regs, r13), REGISTER(kvm_regs, r14),
    REGISTER(kvm_regs, r15), REGISTER(kvm_regs, rip), REGISTER(kvm_regs, rflags),
};
constexpr std::array kSregs{
    REGISTER(kvm_sregs2, cs),   REGISTER(kvm_sregs2, ds),  REGISTER(kvm_sregs2, es),
    REGISTER(kvm_sregs2, fs),   REGISTER(kvm_sregs2, gs),  REGISTER(kvm_sregs2, ss),
    REGISTER(kvm_sregs2, tr),   REGISTER(kvm_sregs2, ldt), REGISTER(kvm_sregs2, gdt),
    REGISTER(kvm_sregs2, idt),  REGISTER(kvm_sregs2, cr0), REGISTER(kvm_sregs2, cr2),
    REGISTER(kvm_sregs2, cr3),  REGISTER(kvm_sregs2, cr4), REGISTER(kvm_sregs2, cr8),
    REGISTER(kvm_sregs2, efer), REGISTER(kvm_sregs2, apic_base),
    Member{"sregs-flags", offsetof(kvm_sregs2, flags), sizeof(kvm_sregs2::flags)},
    REGISTER(kvm_sregs2, pdptrs),
};
// clang-format on

#undef REGISTER

template <typename Struct>
std::span<const std::byte> bytes_of(const Struct& from) {
  return std::as_bytes(std::span(&from, 1));
}

template <typename Struct, std::size_t N>
void put_members(Section& section, const std::array<Member, N>& members, const Struct& from) {
  const auto bytes = bytes_of(from);
  for (const Member& member : members) {
    if (member.size <= sizeof(std::uint64_t)) {
      std::uint64_t value = 0;
      std::memcpy(&value, bytes.data() + member.offset, member.size);
      section.put(member.name, value);
    } else {
      section.put_bytes(member.name, bytes.subspan(member.offset, member.size));
    }
  }
}

template <typename Struct, std::size_t N>
base::Outcome get_members(const Section& section, const std::array<Member, N>& members,
                          Struct& into) {
  auto* bytes = reinterpret_cast<std::byte*>(&into);
  for (const Member& member : members) {
    if (member.size <= sizeof(std::uint64_t)) {
      const std::uint64_t value = TRY(section.get(member.name));
      std::memcpy(bytes + member.offset, &value, member.size);
    } else {
      const auto value = TRY(section.get_bytes(member.name, member.size));
      std::memcpy(bytes + member.offset, value.data(), member.size);
    }
  }
  return base::Done{};
}

template <typename Struct>
base::Outcome get_struct(const Section& section, const char* name, Struct& into) {
  const auto value = TRY(section.get_bytes(name, sizeof(Struct)));
  std::memcpy(&into, value.data(), sizeof(Struct));
  return base::Done{};
}

void put_msrs(Section& section, std::span<const kvm_msr_entry> msrs) {
  Field field{"msrs", FieldType::kWords64, {}};
  for (const kvm_msr_entry& msr : msrs) {
    const std::array<std::uint64_t, 2> pair{msr.index, msr.data};
    const auto bytes = std::as_bytes(std::span(pair));
    field.bytes.insert(field.bytes.end(), bytes.begin(), bytes.end());
  }
  section.fields.push_back(std::move(field));
}

base::Expected<std::vector<kvm_msr_entry>> get_msrs(const Section& section) {
  const auto field = std::find_if(
      section.fields.begin(), section.fields.end(),
      [](const Field& one) { return one.name == "msrs" && one.type == FieldType::kWords64; });
  if (field == section.fields.end() || field->bytes.size() % 16 != 0) {
    return fail(
        ErrorKind::kCorrupt, "load vCPU",
        fmt::format("vcpu[{}]: field 'msrs' is missing or is not made of pairs", section.instance));
  }
  std::vector<kvm_msr_entry> msrs;
  for (std::size_t at = 0; at < field->bytes.size(); at += 16) {
    std::array<std::uint64_t, 2> pair{};
    std::memcpy(pair.data(), field->bytes.data() + at, sizeof pair);
    kvm_msr_entry entry{};
    entry.index = static_cast<std::uint32_t>(pair[0]);
    entry.data = pair[1];
    msrs.push_back(entry);
  }
  return msrs;
}

/// Writes MSRs in one call. One that this KVM does not take is passed over if it holds nothing.
base::Outcome write_msrs(const KvmVcpu& vcpu, std::span<const kvm_msr_entry> msrs,
                         std::uint32_t instance) {
  while (!msrs.empty()) {
    const std::size_t written = TRY(vcpu.set_msrs(msrs));
    if (written == msrs.size()) {
      break;
    }
    const kvm_msr_entry& refused = msrs[written];
    if (refused.data != 0) {
      return fail(
          ErrorKind::kFailed, "KVM_SET_MSRS",
          fmt::format("vcpu[{}]: field 'msrs': the KVM that loads it refuses MSR {:#x} = {:#x}",
                      instance, refused.index, refused.data));
    }
    msrs = msrs.subspan(written + 1);
  }
  return base::Done{};
}

base::Outcome save_fpu(const KvmVcpu& vcpu, const VcpuFeatures& features, Section& section) {
  std::vector<std::byte> xsave(features.xsave_bytes);
  if (features.xsave2) {
    TRY(vcpu.call(KVM_GET_XSAVE2, "KVM_GET_XSAVE2", xsave.data()));
  } else {
    TRY(vcpu.call(KVM_GET_XSAVE, "KVM_GET_XSAVE", xsave.data()));
  }
  section.put_bytes("xsave", xsave);
  if (features.xcrs) {
    kvm_xcrs xcrs{};
    TRY(vcpu.get(KVM_GET_XCRS, "KVM_GET_XCRS", xcrs));
    section.put_bytes("xcrs", bytes_of(xcrs));
  }
  return base::Done{};
}

base::Outcome load_fpu(const KvmVcpu& vcpu, const VcpuFeatures& features, const Section& section) {
  // XCR0 first: it says which parts of the XSAVE area count.
  if (section.has("xcrs")) {
    kvm_xcrs xcrs{};
    TRY(get_struct(section, "xcrs", xcrs));
    TRY(vcpu.set(KVM_SET_XCRS, "KVM_SET_XCRS", xcrs));
  }
  const auto saved = TRY(section.get_bytes("xsave"));
  const std::size_t kept = std::min(saved.size(), features.xsave_bytes);
  if (std::any_of(saved.begin() + static_cast<long>(kept), saved.end(),
                  [](std::byte one) { return one != std::byte{0}; })) {
    return fail(
        ErrorKind::kFailed, "KVM_SET_XSAVE",
        fmt::format(
            "vcpu[{}]: field 'xsave' of {} bytes uses more than the {} of the host that loads it",
            section.instance, saved.size(), features.xsave_bytes));
  }
  std::vector<std::byte> xsave(features.xsave_bytes);
  std::copy_n(saved.begin(), kept, xsave.begin());
  return vcpu.call(KVM_SET_XSAVE, "KVM_SET_XSAVE", xsave.data());
}

base::Expected<std::uint64_t> read_tsc_offset(const KvmVcpu& vcpu, const VcpuFeatures& features) {
  if (features.tsc_offset) {
    return vcpu.get_tsc_offset();
  }
  std::array<kvm_msr_entry, 1> tsc{};
  tsc[0].index = kMsrTsc;
  if (TRY(vcpu.get_msrs(tsc)) != tsc.size()) {
    return fail(ErrorKind::kFailed, "KVM_GET_MSRS", "the TSC cannot be read");
  }
  return tsc[0].data - __rdtsc();
}

base::Outcome write_tsc_offset(const KvmVcpu& vcpu, const VcpuFeatures& features,
                               std::uint64_t offset, std::uint32_t instance) {
  if (features.tsc_offset) {
    TRY(vcpu.set_tsc_offset(offset));
    // A KVM that runs guest code without the processor's help takes the offset and keeps none.
    if (const std::uint64_t kept = TRY(vcpu.get_tsc_offset()); kept != offset) {
      base::log(base::LogLevel::kWarning, "clock.guest-tsc-jumps vcpu={} ticks={}", instance,
                static_cast<std::int64_t>(kept - offset));
    }
    return base::Done{};
  }
  std::array<kvm_msr_entry, 1> tsc{};
  tsc[0].index = kMsrTsc;
  tsc[0].data = __rdtsc() + offset;
  return write_msrs(vcpu, tsc, instance);
}

base::Outcome load_registers(const KvmVcpu& vcpu, const Section& section) {
  kvm_sregs2 sregs{};
  TRY(get_members(section, kSregs, sregs));
  TRY(vcpu.set(KVM_SET_SREGS2, "KVM_SET_SREGS2", sregs));  // APIC_BASE: before the LAPIC.
  kvm_regs regs{};
  TRY(get_members(section, kRegs, regs));
  return vcpu.set(KVM_SET_REGS, "KVM_SET_REGS", regs);
}

/// The mp-state comes last but one: what was set before may not run yet.
base::Outcome load_events(const KvmVcpu& vcpu, const Section& section) {
  kvm_vcpu_events events{};
  TRY(get_struct(section, "events", events));
  TRY(vcpu.set(KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS", events));
  kvm_mp_state mp_state{};
  mp_state.mp_state = static_cast<std::uint32_t>(TRY(section.get("mp-state")));
  return vcpu.set(KVM_SET_MP_STATE, "KVM_SET_MP_STATE", mp_state);
}

kvm_segment flat_segment(std::uint16_t selector, std::uint8_t type, bool code_or_data) {
  kvm_segment segment{};
  segment.limit = code_or_data ? 0xffffffff : 0x67;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.db = code_or_data ? 1 : 0;
  segment.s = code_or_data ? 1 : 0;
  segment.g = code_or_data ? 1 : 0;
  return segment;
}

}  // namespace

base::Expected<VcpuFeatures> probe_vcpu_features(const Kvm& kvm, const KvmVm& vm,
                                                 const KvmVcpu& vcpu) {
  if (vm.check_extension(KVM_CAP_SREGS2) == 0) {
    return fail(ErrorKind::kUnsupported, "KVM_CAP_SREGS2",
                "this KVM cannot save all vCPU registers: Linux 5.14 or newer is needed");
  }
  VcpuFeatures features;
  if (const int bytes = vm.check_extension(KVM_CAP_XSAVE2); bytes > 0) {
    features.xsave2 = true;
    features.xsave_bytes = std::max<std::size_t>(static_cast<std::size_t>(bytes), 4096);
  }
  features.xcrs = vm.check_extension(KVM_CAP_XCRS) != 0;
  features.tsc_offset = vcpu.has_tsc_offset();
  features.tsc_khz = TRY(vcpu.get_tsc_khz());
  bool has_deadline = false;
  for (const std::uint32_t index : TRY(kvm.msr_index_list())) {
    std::array<kvm_msr_entry, 1> entry{};
    entry[0].index = index;
    const auto got = vcpu.get_msrs(entry);
    if (!got.ok() || got.value() != 1 || index == kMsrTsc) {
      continue;  // The TSC travels as an offset.
    }
    if (index == kMsrTscDeadline) {
      has_deadline = true;
    } else {
      features.msrs.push_back(index);
    }
  }
  if (has_deadline) {
    // Ignored by KVM unless the local APIC and the TSC are there already.
    features.msrs.push_back(kMsrTscDeadline);
  }
  return features;
}

base::Expected<Section> save_vcpu(const KvmVcpu& vcpu, const VcpuFeatures& features,
                                  std::uint32_t index) {
  Section section;
  section.device = "vcpu";
  section.instance = index;
  section.version = kVcpuStateVersion;
  section.fields.reserve(48);

  kvm_mp_state mp_state{};  // First: reading it makes KVM process a pending INIT or SIPI.
  TRY(vcpu.get(KVM_GET_MP_STATE, "KVM_GET_MP_STATE", mp_state));
  section.put("mp-state", mp_state.mp_state);
  kvm_regs regs{};
  TRY(vcpu.get(KVM_GET_REGS, "KVM_GET_REGS", regs));
  put_members(section, kRegs, regs);
  kvm_sregs2 sregs{};
  TRY(vcpu.get(KVM_GET_SREGS2, "KVM_GET_SREGS2", sregs));
  put_members(section, kSregs, sregs);
  TRY(save_fpu(vcpu, features, section));
  kvm_debugregs debug{};
  TRY(vcpu.get(KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS", debug));
  section.put_bytes("debugregs", bytes_of(debug));
  kvm_lapic_state lapic{};
  TRY(vcpu.get(KVM_GET_LAPIC, "KVM_GET_LAPIC", lapic));
  section.put_bytes("lapic", bytes_of(lapic));

  std::vector<kvm_msr_entry> msrs(features.msrs.size());
  for (std::size_t i = 0; i < msrs.size(); ++i) {
    msrs[i].index = features.msrs[i];
  }
  const std::size_t read = TRY(vcpu.get_msrs(msrs));
  if (read != msrs.size()) {
    return fail(
        ErrorKind::kFailed, "KVM_GET_MSRS",
        fmt::format("vcpu[{}]: MSR {:#x} cannot be read any more", index, msrs[read].index));
  }
  put_msrs(section, msrs);
  section.put("tsc-khz", features.tsc_khz);
  section.put("tsc-offset", TRY(read_tsc_offset(vcpu, features)));
  kvm_vcpu_events events{};
  TRY(vcpu.get(KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS", events));
  section.put_bytes("events", bytes_of(events));
  return section;
}

base::Outcome load_vcpu(const KvmVcpu& vcpu, const VcpuFeatures& features, const Section& section,
                        const ClockShift& shift) {
  if (section.version != kVcpuStateVersion) {
    return fail(ErrorKind::kRefused, "load vCPU",
                fmt::format("vcpu[{}] has version {}; this program reads version {}",
                            section.instance, section.version, kVcpuStateVersion));
  }
  TRY(load_registers(vcpu, section));
  TRY(load_fpu(vcpu, features, section));
  kvm_debugregs debug{};
  TRY(get_struct(section, "debugregs", debug));
  TRY(vcpu.set(KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS", debug));
  kvm_lapic_state lapic{};
  TRY(get_struct(section, "lapic", lapic));
  TRY(vcpu.set(KVM_SET_LAPIC, "KVM_SET_LAPIC", lapic));
  const std::uint64_t offset = TRY(section.get("tsc-offset")) + shift.tsc_offset;
  TRY(write_tsc_offset(vcpu, features, offset, section.instance));
  const auto msrs = TRY(get_msrs(section));
  TRY(write_msrs(vcpu, msrs, section.instance));
  TRY(load_events(vcpu, section));
  vcpu.note_pause();
  return base::Done{};
}

base::Outcome set_boot_state(const KvmVcpu& vcpu, const BootEntry& entry) {
  kvm_sregs sregs{};
  TRY(vcpu.get(KVM_GET_SREGS, "KVM_GET_SREGS", sregs));
  sregs.cr0 = 0x11;  // PE | ET
  sregs.cs = flat_segment(0x8, 0xb, true);
  sregs.ds = flat_segment(0x10, 0x3, true);
  sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
  sregs.tr = flat_segment(0x18, 0xb, false);
  sregs.gdt.base = entry.gdt.value;
  sregs.gdt.limit = 4 * 8 - 1;
  TRY(vcpu.set(KVM_SET_SREGS, "KVM_SET_SREGS", sregs));
  kvm_regs regs{};
  regs.rip = entry.entry.value;
  regs.rbx = entry.start_info.value;
  regs.rflags = 0x2;
  TRY(vcpu.set(KVM_SET_REGS, "KVM_SET_REGS", regs));
  kvm_mp_state mp_state{};
  mp_state.mp_state = KVM_MP_STATE_RUNNABLE;
  return vcpu.set(KVM_SET_MP_STATE, "KVM_SET_MP_STATE", mp_state);
}

base::Expected<VcpuView> view_of(const Section& section) {
  kvm_sregs2 sregs{};
  TRY(get_members(section, kSregs, sregs));
  VcpuView view;
  view.rip = TRY(section.get("rip"));
  view.rsp = TRY(section.get("rsp"));
  view.cr0 = sregs.cr0;
  view.cr3 = sregs.cr3;
  view.cr4 = sregs.cr4;
  view.efer = sregs.efer;
  view.cs_base = sregs.cs.base;
  view.ss_base = sregs.ss.base;
  view.gdt_base = sregs.gdt.base;
  view.idt_base = sregs.idt.base;
  view.tr_base = sregs.tr.base;
  constexpr std::array kWithAddress{kMsrWallClock,     kMsrSystemTime, kMsrWallClockNew,
                                    kMsrSystemTimeNew, kMsrAsyncFault, kMsrStealTime,
                                    kMsrPvEoi};
  for (const kvm_msr_entry& msr : TRY(get_msrs(section))) {
    // Their low bits are flags; what is not enabled is zero.
    const std::uint64_t address = msr.data & ~std::uint64_t{0x3f};
    if (address != 0 &&
        std::find(kWithAddress.begin(), kWithAddress.end(), msr.index) != kWithAddress.end()) {
      view.kvm_pages.push_back(address);
    }
  }
  return view;
}

}  // namespace towline::vmm
