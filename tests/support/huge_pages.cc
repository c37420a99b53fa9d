#include "tests/support/huge_pages.h"

#include <fstream>

namespace towline::tests {
namespace {

constexpr const char* kReserved = "/proc/sys/vm/nr_hugepages";

std::size_t read_number(const char* path) {
  std::ifstream file(path);
  std::size_t value = 0;
  file >> value;
  return value;
}

void write_number(const char* path, std::size_t value) {
  std::ofstream file(path);
  file << value;
}

std::size_t free_huge_pages() {
  return read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
}

}  // namespace

HugePages::HugePages(std::size_t wanted) {
  const std::size_t available = free_huge_pages();
  if (available >= wanted) {
    return;
  }
  const std::size_t before = read_number(kReserved);
  write_number(kReserved, before + wanted - available);
  const std::size_t after = read_number(kReserved);
  taken_ = after > before ? after - before : 0;
  if (free_huge_pages() < wanted) {
    missing_ =
        std::to_string(wanted) + " huge pages of 2 MiB cannot be reserved (" + kReserved + ")";
  }
}

HugePages::~HugePages() {
  // Others may have changed the number meanwhile: only what was added here goes.
  if (const std::size_t now = read_number(kReserved); taken_ > 0 && now >= taken_) {
    write_number(kReserved, now - taken_);
  }
}

}  // namespace towline::tests
