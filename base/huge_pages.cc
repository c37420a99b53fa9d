#include "base/huge_pages.h"

#include <algorithm>
#include <fstream>

#include <fmt/format.h>

namespace towline::base {
namespace {

std::optional<std::uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

}  // namespace

std::optional<HugePages> huge_pages(const std::string& folder) {
  const auto total = number_in(folder + "/nr_hugepages");
  const auto free = number_in(folder + "/free_hugepages");
  const auto promised = number_in(folder + "/resv_hugepages");
  if (!total.has_value() || !free.has_value() || !promised.has_value()) {
    return std::nullopt;
  }
  return HugePages{*total, *free - std::min(*free, *promised)};
}

std::string explain(const std::optional<HugePages>& pages, std::uint64_t needed) {
  if (!pages.has_value()) {
    return "this kernel has no huge pages of 2 MiB; use --memory-backing memfd";
  }
  std::string text = fmt::format("{} huge pages of 2 MiB are needed and {} of {} are free", needed,
                                 pages->free, pages->total);
  if (needed <= pages->free) {
    return text + ", which a control group (hugetlb) or a cpuset keeps from this process";
  }
  return text + fmt::format("; reserve more (sysctl vm.nr_hugepages={})",
                            pages->total + needed - pages->free);
}

}  // namespace towline::base
