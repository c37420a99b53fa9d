#pragma once

#include <elf.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace towline::tests {

/// Where the tiny guest leaves its traces. Guest physical.
inline constexpr std::uint64_t kCounterAt = 0x200000;       ///< u32, counts for ever.
inline constexpr std::uint64_t kTscAt = 0x200008;           ///< u64, the TSC of the last round.
inline constexpr std::uint64_t kSecondCounterAt = 0x40000;  ///< u32, counted by the second vCPU.

/// The smallest PVH kernel: writes one 'B' to COM1, wakes the second processor, and counts.
///
/// All of it runs at CPL 0 without paging, which every KVM executes, if only by emulation.
class TinyGuest {
 public:
  /// What it does after the 'B'.
  enum class Then : std::uint8_t { kCount, kPowerOff, kReset, kTripleFault };

  /// Writes the image to `path`.
  static void write(const std::string& path, Then then = Then::kCount) {
    const std::vector<std::uint8_t> image = TinyGuest::image(then);
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(image.data()), static_cast<long>(image.size()));
  }

  static std::vector<std::uint8_t> image(Then then = Then::kCount) {
    std::vector<std::uint8_t> code = {
        0xba, 0xf8, 0x03, 0x00, 0x00,  // mov edx, 0x3f8
        0xb0, 0x42,                    // mov al, 'B'
        0xee,                          // out dx, al
    };
    const std::vector<std::uint8_t> rest = code_for(then);
    code.insert(code.end(), rest.begin(), rest.end());
    const std::vector<std::uint8_t> second = {
        0xb8, 0x00, 0x40,              // mov ax, 0x4000 (16-bit)
        0x8e, 0xd8,                    // mov ds, ax
        0x66, 0xff, 0x06, 0x00, 0x00,  // loop: inc dword [0]
        0xeb, 0xf9,                    // jmp loop
    };
    return build(code, second);
  }

 private:
  static std::vector<std::uint8_t> code_for(Then then) {
    switch (then) {
      case Then::kPowerOff:
        return {0xba, 0x00, 0x06, 0x00, 0x00,  // mov edx, 0x600
                0xb0, 0x34, 0xee,              // mov al, 0x34; out dx, al
                0xeb, 0xfe};                   // jmp $
      case Then::kReset:
        return {0xb0, 0xfe, 0xe6, 0x64,  // mov al, 0xfe; out 0x64, al
                0xeb, 0xfe};             // jmp $
      case Then::kTripleFault:
        return {0x0f, 0x0b};  // ud2, without any interrupt table
      case Then::kCount:
        break;
    }
    return {
        0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x01,  // to APIC id 1, by number:
        0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x45, 0x00, 0x00,  // INIT
        0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x30, 0x46, 0x00, 0x00,  // SIPI, at 0x30000
        0xff, 0x05, 0x00, 0x00, 0x20, 0x00,                          // loop: inc [kCounterAt]
        0x0f, 0x31,                                                  // rdtsc
        0xa3, 0x08, 0x00, 0x20, 0x00,                                // mov [kTscAt], eax
        0x89, 0x15, 0x0c, 0x00, 0x20, 0x00,                          // mov [kTscAt + 4], edx
        0xeb, 0xeb,                                                  // jmp loop
    };
  }

  static std::vector<std::uint8_t> build(const std::vector<std::uint8_t>& code,
                                         const std::vector<std::uint8_t>& second) {
    constexpr std::uint64_t kNoteAt = 0x200;
    constexpr std::uint64_t kCodeAt = 0x300;
    constexpr std::uint64_t kSecondAt = 0x400;
    std::vector<std::uint8_t> image(0x500);
    const auto put = [&](std::uint64_t at, const void* data, std::size_t size) {
      std::memcpy(image.data() + at, data, size);
    };
    Elf64_Ehdr header{};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_phoff = sizeof header;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = 3;
    put(0, &header, sizeof header);
    const auto program = [&](std::size_t n, std::uint32_t type, std::uint64_t offset,
                             std::uint64_t to, std::uint64_t size) {
      Elf64_Phdr one{};
      one.p_type = type;
      one.p_offset = offset;
      one.p_paddr = to;
      one.p_filesz = size;
      one.p_memsz = size;
      put(sizeof header + n * sizeof one, &one, sizeof one);
    };
    const std::uint32_t note[] = {4, 4, 18, 0x006e6558, 0x100000};
    program(0, PT_NOTE, kNoteAt, 0, sizeof note);
    program(1, PT_LOAD, kCodeAt, 0x100000, code.size());
    program(2, PT_LOAD, kSecondAt, 0x30000, second.size());
    put(kNoteAt, note, sizeof note);
    put(kCodeAt, code.data(), code.size());
    put(kSecondAt, second.data(), second.size());
    return image;
  }
};

}  // namespace towline::tests
