#pragma once

#include <cstddef>
#include <string>

namespace towline::tests {

/// Reserves 2 MiB hugetlb pages for its scope and gives back what it took.
class HugePages {
 public:
  explicit HugePages(std::size_t wanted);
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;
  ~HugePages();

  /// Why there are not enough; empty if there are.
  [[nodiscard]] const std::string& missing() const { return missing_; }

 private:
  std::size_t taken_ = 0;
  std::string missing_;
};

}  // namespace towline::tests
