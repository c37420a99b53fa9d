#include "base/huge_pages.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include <doctest/doctest.h>

namespace towline::base {
namespace {

namespace fs = std::filesystem;

TEST_CASE("what is promised to a mapping is not free") {
  std::string folder = fs::temp_directory_path() / "towline-huge-XXXXXX";
  REQUIRE(::mkdtemp(folder.data()) != nullptr);
  CHECK_FALSE(huge_pages(folder).has_value());
  std::ofstream(folder + "/nr_hugepages") << "40\n";
  std::ofstream(folder + "/free_hugepages") << "12\n";
  std::ofstream(folder + "/resv_hugepages") << "5\n";
  CHECK(huge_pages(folder) == HugePages{40, 7});
  std::ofstream(folder + "/resv_hugepages") << "13\n";
  CHECK(huge_pages(folder) == HugePages{40, 0});
  fs::remove_all(folder);
}

TEST_CASE("who needs huge pages is told how many there are and the number to set") {
  CHECK(explain(HugePages{40, 7}, 32) ==
        "32 huge pages of 2 MiB are needed and 7 of 40 are free; reserve more (sysctl "
        "vm.nr_hugepages=65)");
  CHECK(explain(std::nullopt, 32).find("--memory-backing memfd") != std::string::npos);
}

TEST_CASE("free huge pages that were refused are somebody's limit") {
  const std::string text = explain(HugePages{40, 32}, 32);
  CHECK(text.find("control group") != std::string::npos);
  CHECK(text.find("sysctl") == std::string::npos);
}

}  // namespace
}  // namespace towline::base
