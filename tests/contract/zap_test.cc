// Taking pages away: zap, punch, release; each proven by the page table, not by a return value.
#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <string>

#include <doctest/doctest.h>

#include "tests/contract/support.h"

namespace towline::contract {
namespace {

using uffd::Backing;
using uffd::Installer;
using uffd::Mode;

constexpr Bytes kSmall{kPage};

/// RssShmem of this process.
std::size_t resident_shared_pages() {
  std::ifstream status("/proc/self/status");
  std::size_t kib = 0;
  for (std::string key; status >> key;) {
    if (key == "RssShmem:" && status >> kib) {
      return kib * 1024 / kPage;
    }
  }
  FAIL("/proc/self/status does not say RssShmem");
  return 0;
}

constexpr Mode kBoth{.missing = true, .minor = true, .write_protect = false};

TEST_CASE("a zapped page faults again and keeps its bytes in the file") {
  const auto needed = uffd::features_for(Backing::kShmem, kBoth);
  SKIP_IF(no_userfaultfd(needed));
  const TwoMappings memory(2);
  const auto userfault = open_userfault(needed);
  REQUIRE(
      userfault.register_range(memory.guest.at(), Bytes{2 * kPage}, kBoth, Backing::kShmem).ok());
  memory.fill(0, 1);
  memory.fill(1, 2);
  const Installer installer(userfault.fd());
  REQUIRE(installer.continue_run(memory.guest.at(), PageCount{2}, kSmall).ok());
  REQUIRE(uffd::zap(memory.guest.at(), kSmall, kSmall).ok());
  CHECK_FALSE(is_mapped(memory.guest.at()));
  CHECK(is_mapped(memory.guest.at(kPage)));

  std::uint8_t seen = 0;
  Toucher toucher([&] { seen = peek(memory.guest.data()); });
  CHECK(next_event(userfault).minor);
  memory.fill(0, 9);  // The new bytes of a page that had become stale.
  REQUIRE(installer.continue_run(memory.guest.at(), PageCount{1}, kSmall).ok());
  toucher.join();
  CHECK(seen == 9);
}

TEST_CASE("a part of a huge page is zapped to nothing, with success") {
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(kHuge, kHugeMemfd);
  const Mapping memory(fd.get(), kHuge, kHuge);
  poke(memory.data(), 1);
  REQUIRE(is_mapped(memory.at()));
  CHECK(::madvise(memory.data(), kPage, MADV_DONTNEED) == 0);
  CHECK(is_mapped(memory.at()));
  REQUIRE(uffd::zap(memory.at(), Bytes{kHuge}, Bytes{kHuge}).ok());
  CHECK_FALSE(is_mapped(memory.at()));
}

TEST_CASE("we refuse to zap or punch a part of a page") {
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(kHuge, kHugeMemfd);
  const Mapping memory(fd.get(), kHuge, kHuge);
  const auto zapped = uffd::zap(memory.at(), kSmall, Bytes{kHuge});
  REQUIRE_FALSE(zapped.ok());
  CHECK(zapped.error().kind == base::ErrorKind::kRefused);
  const auto punched = uffd::punch(fd.get(), {kPage, kHuge}, Bytes{kHuge});
  REQUIRE_FALSE(punched.ok());
  CHECK(punched.error().kind == base::ErrorKind::kRefused);
}

TEST_CASE("a punched page leaves every mapping and reads as zeros") {
  const TwoMappings memory(2);
  memory.fill(0, 7);
  memory.fill(1, 7);
  REQUIRE(peek(memory.guest.data()) == 7);
  REQUIRE(uffd::punch(memory.fd.get(), {0, kPage}, kSmall).ok());
  CHECK_FALSE(is_mapped(memory.guest.at()));
  CHECK(all_bytes(memory.guest.data(), kPage, 0));
  CHECK(all_bytes(memory.guest.data() + kPage, kPage, 7));
}

TEST_CASE("a punched huge page reads as zeros") {
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(kHuge, kHugeMemfd);
  const Mapping memory(fd.get(), kHuge, kHuge);
  poke(memory.data() + 5 * kPage, 7);
  REQUIRE(uffd::punch(fd.get(), {0, kHuge}, Bytes{kHuge}).ok());
  CHECK_FALSE(is_mapped(memory.at()));
  CHECK(peek(memory.data() + 5 * kPage) == 0);
}

TEST_CASE("what is released behind the receiver leaves the alias but not the file") {
  const TwoMappings memory(3);
  for (std::size_t page = 0; page < 3; ++page) {
    memory.fill(page, 5);
  }
  // Two and a half pages are done: the half one stays.
  REQUIRE(memory.alias.release({0, 2 * kPage + kPage / 2}, kSmall).ok());
  const HostAddress alias{reinterpret_cast<std::uintptr_t>(memory.alias.bytes().data())};
  CHECK_FALSE(is_mapped(alias));
  CHECK_FALSE(is_mapped(HostAddress{alias.value + kPage}));
  CHECK(is_mapped(HostAddress{alias.value + 2 * kPage}));
  CHECK(all_bytes(memory.guest.data(), kPage, 5));
}

TEST_CASE("two full mappings count every page twice, until the alias is released") {
  constexpr std::size_t kPages = 8192;  // Much more than the slack of the kernel's counters.
  const std::size_t before = resident_shared_pages();
  const TwoMappings memory(kPages);
  for (std::size_t page = 0; page < kPages; ++page) {
    poke(memory.alias.bytes().data() + page * kPage, 1);
    (void)peek(memory.guest.data() + page * kPage);
  }
  CHECK(resident_shared_pages() - before > kPages * 3 / 2);
  REQUIRE(memory.alias.release(memory.alias.extent(), kSmall).ok());
  CHECK(resident_shared_pages() - before < kPages * 3 / 2);
}

TEST_CASE("zapping the guest mapping leaves a huge page's bytes to be continued") {
  const auto needed = uffd::features_for(Backing::kHugetlb, kBoth);
  SKIP_IF(no_userfaultfd(needed));
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(kHuge, kHugeMemfd);
  const Mapping guest(fd.get(), kHuge, kHuge);
  const auto alias = uffd::Alias::map(fd.get(), {0, kHuge}, uffd::Alias::Access::kReadWrite);
  REQUIRE(alias.ok());
  const auto userfault = open_userfault(needed);
  REQUIRE(userfault.register_range(guest.at(), Bytes{kHuge}, kBoth, Backing::kHugetlb).ok());
  poke(alias.value().bytes().data() + 3 * kPage, 0x21);
  const Installer installer(userfault.fd());

  std::uint8_t seen = 0;
  Toucher toucher([&] { seen = peek(guest.data() + 3 * kPage); });
  const auto event = next_event(userfault);
  CHECK(event.minor);
  CHECK(event.address.value / kHuge * kHuge == guest.at().value);
  const auto installed = installer.continue_run(guest.at(), PageCount{1}, Bytes{kHuge});
  REQUIRE(installed.ok());
  CHECK(installed.value().installed == PageCount{1});
  toucher.join();
  CHECK(seen == 0x21);

  REQUIRE(uffd::zap(guest.at(), Bytes{kHuge}, Bytes{kHuge}).ok());
  CHECK_FALSE(is_mapped(guest.at()));
  const auto again = installer.continue_run(guest.at(), PageCount{1}, Bytes{kHuge});
  REQUIRE(again.ok());
  CHECK(again.value().installed == PageCount{1});
  CHECK(peek(guest.data() + 3 * kPage) == 0x21);
}

}  // namespace
}  // namespace towline::contract
