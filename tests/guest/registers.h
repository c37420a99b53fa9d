#pragma once

#include <cstdint>

/// State that lives in registers only, so that a vCPU restored without them is noticed: SSE
/// registers 0 to 13 hold a pattern, 14 the digest, 15 the sum of generations, GS base points to
/// the vCPU's block. The rest of the guest is compiled without SSE.
namespace guest {

inline void set_digest_register(std::uint64_t digest) {
  asm volatile("movq %0, %%xmm14" : : "r"(digest));
}

inline void set_sum_register(std::uint64_t sum) {
  asm volatile("movq %0, %%xmm15" : : "r"(sum));
}

inline std::uint64_t digest_register() {
  std::uint64_t value = 0;
  asm volatile("movq %%xmm14, %0" : "=r"(value));
  return value;
}

inline std::uint64_t sum_register() {
  std::uint64_t value = 0;
  asm volatile("movq %%xmm15, %0" : "=r"(value));
  return value;
}

inline const void* gs_self() {
  const void* value = nullptr;
  asm volatile("movq %%gs:0, %0" : "=r"(value));
  return value;
}

/// Loads the pattern of this vCPU.
void set_pattern_registers(std::uint64_t salt);

bool pattern_registers_are_right(std::uint64_t salt);

}  // namespace guest
