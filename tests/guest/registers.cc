#include "tests/guest/registers.h"

#include "tests/guest/mix.h"

namespace guest {

namespace {

constexpr std::uint64_t kPatternWords = 28;

struct alignas(16) PatternWords {
  std::uint64_t words[kPatternWords];
};

void make_pattern(std::uint64_t salt, PatternWords& pattern) {
  for (std::uint64_t i = 0; i < kPatternWords; ++i) {
    pattern.words[i] = mix(salt + i * kGolden);
  }
}

}  // namespace

void set_pattern_registers(std::uint64_t salt) {
  PatternWords pattern;
  make_pattern(salt, pattern);
  asm volatile(
      "movdqu 0x00(%0), %%xmm0; movdqu 0x10(%0), %%xmm1; movdqu 0x20(%0), %%xmm2;"
      "movdqu 0x30(%0), %%xmm3; movdqu 0x40(%0), %%xmm4; movdqu 0x50(%0), %%xmm5;"
      "movdqu 0x60(%0), %%xmm6; movdqu 0x70(%0), %%xmm7; movdqu 0x80(%0), %%xmm8;"
      "movdqu 0x90(%0), %%xmm9; movdqu 0xa0(%0), %%xmm10; movdqu 0xb0(%0), %%xmm11;"
      "movdqu 0xc0(%0), %%xmm12; movdqu 0xd0(%0), %%xmm13;"
      :
      : "r"(&pattern)
      : "memory");
}

bool pattern_registers_are_right(std::uint64_t salt) {
  PatternWords expected;
  PatternWords found{};
  make_pattern(salt, expected);
  asm volatile(
      "movdqu %%xmm0, 0x00(%0); movdqu %%xmm1, 0x10(%0); movdqu %%xmm2, 0x20(%0);"
      "movdqu %%xmm3, 0x30(%0); movdqu %%xmm4, 0x40(%0); movdqu %%xmm5, 0x50(%0);"
      "movdqu %%xmm6, 0x60(%0); movdqu %%xmm7, 0x70(%0); movdqu %%xmm8, 0x80(%0);"
      "movdqu %%xmm9, 0x90(%0); movdqu %%xmm10, 0xa0(%0); movdqu %%xmm11, 0xb0(%0);"
      "movdqu %%xmm12, 0xc0(%0); movdqu %%xmm13, 0xd0(%0);"
      :
      : "r"(&found)
      : "memory");
  for (std::uint64_t i = 0; i < kPatternWords; ++i) {
    if (expected.words[i] != found.words[i]) {
      return false;
    }
  }
  return true;
}

}  // namespace guest
