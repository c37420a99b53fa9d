#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace towline::base {

/// The huge pages of 2 MiB that this host has set aside. No process is killed for want of them by
/// the kernel's own choice, but one that touches a page that cannot be had dies by SIGBUS: ask for
/// it by fallocate() first.
struct HugePages {
  std::uint64_t total = 0;
  std::uint64_t free = 0;  ///< Neither used nor promised to a mapping.

  bool operator==(const HugePages&) const = default;
};

/// As they are now; nullopt: this kernel has none. `folder`: tests have their own.
/// Source: Documentation/admin-guide/mm/hugetlbpage.rst.
std::optional<HugePages> huge_pages(
    const std::string& folder = "/sys/kernel/mm/hugepages/hugepages-2048kB");

/// For the user, who needs `needed` further ones: what there is, and what to do.
std::string explain(const std::optional<HugePages>& pages, std::uint64_t needed);

}  // namespace towline::base
