#pragma once

#include <compare>
#include <cstdint>

namespace towline::base {

/// A length in bytes.
struct Bytes {
  std::uint64_t value = 0;
  auto operator<=>(const Bytes&) const = default;  // NOLINT(modernize-use-nullptr): not our 0.
};

/// Guest physical address. Bytes.
struct GuestAddress {
  std::uint64_t value = 0;
  auto operator<=>(const GuestAddress&) const =
      default;  // NOLINT(modernize-use-nullptr): not our 0.
};

/// Address in this process. Bytes.
struct HostAddress {
  std::uintptr_t value = 0;
  auto operator<=>(const HostAddress&) const =
      default;  // NOLINT(modernize-use-nullptr): not our 0.
};

/// Number of a guest page in the machine's flat page space: the regions of the machine one after
/// the other, in table order, each counted in its own page size (runtime/core/memory_layout.h).
struct PageIndex {
  std::uint64_t value = 0;
  auto operator<=>(const PageIndex&) const = default;  // NOLINT(modernize-use-nullptr): not our 0.
};

struct PageCount {
  std::uint64_t value = 0;
  auto operator<=>(const PageCount&) const = default;  // NOLINT(modernize-use-nullptr): not our 0.
};

/// Pages [first, first + count).
struct PageRange {
  PageIndex first;
  PageCount count;

  [[nodiscard]] PageIndex end() const { return PageIndex{first.value + count.value}; }

  [[nodiscard]] bool empty() const { return count.value == 0; }

  [[nodiscard]] bool contains(PageIndex page) const {
    return page.value >= first.value && page.value - first.value < count.value;
  }

  bool operator==(const PageRange&) const = default;
};

inline constexpr Bytes kSmallPage{4096};
inline constexpr Bytes kHugePage{2UL << 20U};

constexpr Bytes operator""_KiB(unsigned long long n) {
  return Bytes{n << 10U};
}

constexpr Bytes operator""_MiB(unsigned long long n) {
  return Bytes{n << 20U};
}

constexpr Bytes operator""_GiB(unsigned long long n) {
  return Bytes{n << 30U};
}

}  // namespace towline::base
