#pragma once

#include <cstddef>
#include <cstdint>

/// The instructions that C++ has no words for.
namespace guest {

inline std::uint64_t read_tsc() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
  return (static_cast<std::uint64_t>(high) << 32U) | low;
}

inline void write_port(std::uint16_t port, std::uint8_t value) {
  asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

inline std::uint8_t read_port(std::uint16_t port) {
  std::uint8_t value = 0;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}

inline void pause() {
  asm volatile("pause" : : : "memory");
}

/// a * b / c without losing the high half of the product. The result must fit.
inline std::uint64_t multiply_divide(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  std::uint64_t high = 0;
  asm("mulq %2; divq %3" : "+&a"(a), "=&d"(high) : "r"(b), "r"(c) : "cc");
  return a;
}

/// Nothing is moved across by the compiler. The processor keeps stores in order by itself.
inline void compiler_barrier() {
  asm volatile("" : : : "memory");
}

template <typename T>
T load(const T& from) {
  return __atomic_load_n(&from, __ATOMIC_ACQUIRE);
}

template <typename T>
void store(T& to, T value) {
  __atomic_store_n(&to, value, __ATOMIC_RELEASE);
}

/// Physical memory is mapped where it is.
template <typename T>
T* at(std::uint64_t physical) {
  return reinterpret_cast<T*>(physical);  // NOLINT(performance-no-int-to-ptr)
}

}  // namespace guest
