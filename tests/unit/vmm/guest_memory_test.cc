#include "vmm/guest_memory.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <string>

#include <doctest/doctest.h>

#include "vmm/kvm/first_pages.h"

namespace towline::vmm {
namespace {

using base::Bytes;
using base::GuestAddress;
using base::PageIndex;

GuestMemory memory_of(Bytes size) {
  auto memory = GuestMemory::create(size, 46);
  REQUIRE(memory.ok());
  return std::move(memory).value();
}

std::string refusal(Bytes size, unsigned bits) {
  const auto memory = GuestMemory::create(size, bits);
  REQUIRE_FALSE(memory.ok());
  CHECK(memory.error().kind == base::ErrorKind::kRefused);
  return memory.error().detail;
}

MemoryKind in_file(const std::string& path, bool reserve = false) {
  return {.backing = runtime::Backing::kMemfd, .path = path, .reserve = reserve};
}

MemoryKind on_huge_pages(bool reserve = false) {
  return {.backing = runtime::Backing::kHugetlb, .path = "", .reserve = reserve};
}

TEST_CASE("small memory is one region, large memory leaves a hole below 4 GiB") {
  using base::operator""_GiB;
  using base::operator""_MiB;
  CHECK(memory_of(16_MiB).regions().size() == 1);
  CHECK(memory_of(3_GiB).regions().size() == 1);

  const GuestMemory memory = memory_of(8_GiB);
  REQUIRE(memory.regions().size() == 2);
  const auto& low = memory.regions()[0];
  const auto& high = memory.regions()[1];
  CHECK(low.name == "ram.low");
  CHECK(low.size == 3_GiB);
  CHECK(high.name == "ram.high");
  CHECK(high.start == kHighMemoryStart);
  CHECK(high.size == 5_GiB);
  CHECK(high.fd == low.fd);
  CHECK(high.fd_offset == low.size.value);
}

TEST_CASE("memory that is never touched costs nothing") {
  using base::operator""_GiB;
  const GuestMemory memory = memory_of(64_GiB);

  struct stat about {};

  REQUIRE(::fstat(memory.regions()[0].fd, &about) == 0);
  CHECK(about.st_blocks == 0);
  memory.slice(GuestAddress{5UL << 30U}, Bytes{1})->front() = std::byte{1};
  REQUIRE(::fstat(memory.regions()[0].fd, &about) == 0);
  CHECK(about.st_blocks == 8);
}

TEST_CASE("memory larger than can be mapped names the value and the limit") {
  // 36 bits are 64 GiB of addresses, of which one lies in the hole.
  const std::string text = refusal(Bytes{64UL << 30U}, 36);
  CHECK(text.find("65536 MiB") != std::string::npos);
  CHECK(text.find("64512 MiB") != std::string::npos);
  CHECK(GuestMemory::create(Bytes{63UL << 30U}, 36).ok());
  CHECK(refusal(Bytes{1UL << 50U}, 52).find("1073741824 MiB is larger") != std::string::npos);
}

TEST_CASE("memory that is nothing or no whole number of pages is refused") {
  CHECK(refusal(Bytes{0}, 46).find("multiple of 4096") != std::string::npos);
  CHECK(refusal(Bytes{5000}, 46).find("5000 bytes") != std::string::npos);
}

TEST_CASE("a slice is given only if one region holds all of it") {
  const GuestMemory memory = memory_of(Bytes{4UL << 30U});
  CHECK(memory.slice(GuestAddress{0}, Bytes{3UL << 30U}));
  CHECK_FALSE(memory.slice(GuestAddress{0}, Bytes{(3UL << 30U) + 1}));
  CHECK_FALSE(memory.slice(GuestAddress{3UL << 30U}, Bytes{1}));
  CHECK(memory.slice(GuestAddress{4UL << 30U}, Bytes{1UL << 30U}));
  CHECK_FALSE(memory.slice(GuestAddress{5UL << 30U}, Bytes{1}));
  CHECK_FALSE(memory.slice(GuestAddress{4096}, Bytes{~std::uint64_t{0}}));
}

TEST_CASE("pages are counted through all regions") {
  const GuestMemory memory = memory_of(Bytes{4UL << 30U});
  CHECK(memory.page_of(GuestAddress{0x1fff}) == PageIndex{1});
  CHECK_FALSE(memory.page_of(GuestAddress{3UL << 30U}));
  CHECK(memory.page_of(GuestAddress{4UL << 30U}) == PageIndex{3UL << 18U});
}

/// Puts one 64-bit value into guest memory.
void poke(const GuestMemory& memory, std::uint64_t at, std::uint64_t value) {
  std::memcpy(memory.slice(GuestAddress{at}, Bytes{8})->data(), &value, 8);
}

VcpuView long_mode(std::uint64_t cr3) {
  VcpuView vcpu;
  vcpu.cr0 = 0x80000011;
  vcpu.cr3 = cr3;
  vcpu.efer = 0x500;
  return vcpu;
}

TEST_CASE("the first pages are KVM's own, then the tables on the way to code and stack") {
  const GuestMemory memory = memory_of(Bytes{16UL << 20U});
  // 0x1000 -> 0x2000 -> 0x3000 -> 2 MiB page for code; 0x3008 -> 0x4000 -> 4 KiB page for the
  // stack.
  poke(memory, 0x1000, 0x2003);
  poke(memory, 0x2000, 0x3003);
  poke(memory, 0x3000, 0x400083);
  poke(memory, 0x3008, 0x4003);
  poke(memory, 0x4008, 0x700003);
  VcpuView vcpu = long_mode(0x1000);
  vcpu.rip = 0x5123;    // In the large page: 0x405123.
  vcpu.rsp = 0x201ff8;  // Its page is 0x700000.
  vcpu.kvm_pages = {0x9000};
  const std::array vcpus{vcpu};
  const auto pages = find_first_pages(memory, vcpus);
  REQUIRE(pages.size() >= 7);
  CHECK(pages[0] == PageIndex{9});
  CHECK(pages[1] == PageIndex{1});
  CHECK(pages[2] == PageIndex{2});
  CHECK(pages[3] == PageIndex{3});
  CHECK(pages[4] == PageIndex{0x405});
  CHECK(pages[5] == PageIndex{4});
  CHECK(pages[6] == PageIndex{0x700});
}

TEST_CASE("no page is named twice, by one vCPU or by several") {
  const GuestMemory memory = memory_of(Bytes{16UL << 20U});
  poke(memory, 0x1000, 0x2003);
  poke(memory, 0x2000, 0x83);  // A gibibyte in one page.
  VcpuView vcpu = long_mode(0x1000);
  vcpu.rip = 0x300000;
  vcpu.rsp = 0x301000;
  const std::array vcpus{vcpu, vcpu};
  auto pages = find_first_pages(memory, vcpus);
  const std::size_t named = pages.size();
  std::sort(pages.begin(), pages.end());
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  CHECK(pages.size() == named);
  CHECK(std::find(pages.begin(), pages.end(), PageIndex{0x300}) != pages.end());
}

TEST_CASE("page tables that lead nowhere, round in circles or out of memory end the walk") {
  const GuestMemory memory = memory_of(Bytes{1UL << 20U});
  VcpuView vcpu = long_mode(0xfffffff000);
  const std::array outside{vcpu};
  CHECK(find_first_pages(memory, outside).empty());
  vcpu.cr3 = 0x1000;
  poke(memory, 0x1000, 0x1003);  // Points at itself on every level.
  vcpu.cr4 = 1U << 12U;
  const std::array circle{vcpu};
  CHECK(find_first_pages(memory, circle).size() <= kFirstPagesPerVcpu);
}

TEST_CASE("without paging the addresses are physical") {
  const GuestMemory memory = memory_of(Bytes{1UL << 20U});
  VcpuView vcpu;
  vcpu.cr0 = 0x11;
  vcpu.rip = 0x20000;
  vcpu.rsp = 0x30000;
  const std::array vcpus{vcpu};
  const auto pages = find_first_pages(memory, vcpus);
  REQUIRE(pages.size() > 1);
  CHECK(pages[0] == PageIndex{0x20});
  CHECK(pages[1] == PageIndex{0x30});
}

/// A folder on a tmpfs, which every Linux with POSIX shared memory has; empty if this one has none.
std::string tmpfs_folder() {
  struct statfs system {};

  return ::statfs("/dev/shm", &system) == 0 && system.f_type == TMPFS_MAGIC ? "/dev/shm" : "";
}

TEST_CASE("memory in a folder of a tmpfs is a file without a name") {
  const std::string folder = tmpfs_folder();
  if (folder.empty()) {
    return;
  }
  const auto memory = GuestMemory::create(Bytes{1U << 20U}, 46, in_file(folder, true));
  REQUIRE(memory.ok());

  struct stat file {};

  REQUIRE(::fstat(memory.value().regions().front().fd, &file) == 0);
  CHECK(file.st_nlink == 0);
  CHECK(file.st_size == 1 << 20);
  CHECK(file.st_blocks * 512 >= 1 << 20);  // All of it was taken.
}

TEST_CASE("a file is one machine's memory, and begins empty") {
  const std::string folder = tmpfs_folder();
  if (folder.empty()) {
    return;
  }
  const std::string path = folder + "/towline-unit-" + std::to_string(::getpid());
  std::ofstream(path) << "left behind by another machine";
  {
    const auto memory = GuestMemory::create(Bytes{1U << 20U}, 46, in_file(path));
    REQUIRE(memory.ok());
    char first = 'x';
    REQUIRE(::pread(memory.value().regions().front().fd, &first, 1, 0) == 1);
    CHECK(first == 0);
    const auto again = GuestMemory::create(Bytes{1U << 20U}, 46, in_file(path));
    REQUIRE_FALSE(again.ok());
    CHECK(again.error().kind == base::ErrorKind::kRefused);
    CHECK(again.error().detail.find("another machine's memory") != std::string::npos);
  }
  ::unlink(path.c_str());
}

TEST_CASE("memory on huge pages is a multiple of them, or refused with both values") {
  const auto odd = GuestMemory::create(Bytes{5U << 20U}, 46, on_huge_pages());
  REQUIRE_FALSE(odd.ok());
  CHECK(odd.error().kind == base::ErrorKind::kRefused);
  CHECK(odd.error().detail.find("5242880") != std::string::npos);
  CHECK(odd.error().detail.find("2097152") != std::string::npos);
}

TEST_CASE("memory on huge pages that come as they are needed takes none, and says its page") {
  using base::operator""_GiB;
  const auto made = GuestMemory::create(8_GiB, 46, on_huge_pages());
  if (!made.ok()) {
    CHECK(made.error().kind == base::ErrorKind::kUnsupported);
    return;  // A kernel without them.
  }
  const GuestMemory& memory = made.value();
  REQUIRE(memory.regions().size() == 2);
  for (const auto& region : memory.regions()) {
    CHECK(region.page_size == base::kHugePage);
    CHECK(region.backing == runtime::Backing::kHugetlb);
    CHECK(region.mapping.value % base::kHugePage.value == 0);
  }
  CHECK(memory.page_of(kHighMemoryStart) == PageIndex{3 * 512});

  struct stat file {};

  REQUIRE(::fstat(memory.regions().front().fd, &file) == 0);
  CHECK(file.st_blocks == 0);
}

TEST_CASE("a machine that does not get its huge pages is told how many there are") {
  const auto made = GuestMemory::create(Bytes{1UL << 44U}, 46, on_huge_pages(true));
  REQUIRE_FALSE(made.ok());
  if (made.error().kind == base::ErrorKind::kRefused) {
    CHECK(made.error().detail.find("8388608 huge pages of 2 MiB are needed") != std::string::npos);
    CHECK(made.error().detail.find("sysctl vm.nr_hugepages=") != std::string::npos);
  }
}

TEST_CASE("memory that is not on a tmpfs is refused by name") {
  for (const char* path : {"/sys", "/proc/self/no/such/folder"}) {
    CAPTURE(path);
    const auto memory = GuestMemory::create(Bytes{1U << 20U}, 46, in_file(path));
    REQUIRE_FALSE(memory.ok());
    CHECK(memory.error().kind == base::ErrorKind::kRefused);
    CHECK(memory.error().detail.find(path) != std::string::npos);
  }
}

}  // namespace
}  // namespace towline::vmm
