// Placing pages: what CONTINUE, COPY, ZEROPAGE and POISON do to mapped, cached and absent pages.
#include <array>
#include <csignal>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include "tests/contract/support.h"
#include "uffd/installer.h"
#include "uffd/shards.h"

namespace towline::contract {
namespace {

using uffd::Backing;
using uffd::Event;
using uffd::Installer;
using uffd::Mode;
using uffd::RunEnd;
using uffd::RunOutcome;
using uffd::Wake;

constexpr Bytes kSmall{kPage};
constexpr Mode kBoth{.missing = true, .minor = true, .write_protect = false};
constexpr Mode kMissing{.missing = true, .minor = false, .write_protect = false};
const uffd::FeatureSet kShmem = uffd::features_for(Backing::kShmem, kBoth);

/// Guest memory on a memfd, registered missing and minor.
struct ShmemGuest {
  explicit ShmemGuest(std::size_t pages) : memory(pages), userfault(open_userfault(kShmem)) {
    const auto can = userfault.register_range(memory.guest.at(), Bytes{memory.guest.size()}, kBoth,
                                              Backing::kShmem);
    REQUIRE(can.ok());
  }

  [[nodiscard]] Installer installer() const { return Installer(userfault.fd()); }

  [[nodiscard]] HostAddress at(std::size_t page) const { return memory.guest.at(page * kPage); }

  [[nodiscard]] std::byte* data(std::size_t page) const {
    return memory.guest.data() + page * kPage;
  }

  TwoMappings memory;
  uffd::Userfault userfault;
};

TEST_CASE("a thread that touched a missing page goes on with the bytes written to the alias") {
  SKIP_IF(no_userfaultfd(kShmem));
  const ShmemGuest guest(4);
  std::uint8_t seen = 0;
  Toucher toucher([&] { seen = peek(guest.data(2) + 7); });

  const Event event = next_event(guest.userfault);
  CHECK(event.kind == Event::Kind::kFault);
  CHECK(event.address == guest.at(2));
  CHECK_FALSE(event.minor);
  CHECK_FALSE(event.write);

  guest.memory.fill(2, 0x5a);
  const auto outcome = guest.installer().continue_run(guest.at(2), PageCount{1}, kSmall);
  toucher.join();
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == RunOutcome{PageCount{1}, PageCount{0}, RunEnd::kComplete});
  CHECK(seen == 0x5a);
}

TEST_CASE("a continued run steps over a page that is mapped and counts it apart") {
  SKIP_IF(no_userfaultfd(kShmem));
  const ShmemGuest guest(8);
  for (std::size_t page = 0; page < 8; ++page) {
    guest.memory.fill(page, static_cast<std::uint8_t>(page + 1));
  }
  REQUIRE(guest.installer().continue_run(guest.at(3), PageCount{1}, kSmall).ok());

  const auto outcome = guest.installer().continue_run(guest.at(0), PageCount{8}, kSmall);
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == RunOutcome{PageCount{7}, PageCount{1}, RunEnd::kComplete});
  for (std::size_t page = 0; page < 8; ++page) {
    CHECK(is_mapped(guest.at(page)));
    CHECK(all_bytes(guest.data(page), kPage, static_cast<std::uint8_t>(page + 1)));
  }
}

TEST_CASE("a continued run ends in front of a hole of the file") {
  SKIP_IF(no_userfaultfd(kShmem));
  const ShmemGuest guest(4);
  guest.memory.fill(0, 1);
  guest.memory.fill(1, 2);
  guest.memory.fill(3, 4);
  const auto outcome = guest.installer().continue_run(guest.at(0), PageCount{4}, kSmall);
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == RunOutcome{PageCount{2}, PageCount{0}, RunEnd::kNoPage});
  CHECK_FALSE(is_mapped(guest.at(2)));
}

TEST_CASE("a page that was only allocated continues as zeros: success proves nothing") {
  SKIP_IF(no_userfaultfd(kShmem));
  const ShmemGuest guest(1);
  const auto allocated = uffd::allocate(guest.memory.fd.get(), {0, kPage});
  REQUIRE(allocated.ok());
  REQUIRE(allocated.value() == uffd::Allocation::kDone);
  const auto outcome = guest.installer().continue_run(guest.at(0), PageCount{1}, kSmall);
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == RunOutcome{PageCount{1}, PageCount{0}, RunEnd::kComplete});
  CHECK(all_bytes(guest.data(0), kPage, 0));
}

// Zero pages of a target on huge pages are put in front of the guest so.
TEST_CASE("a huge page that was only allocated continues as zeros") {
  const auto needed = uffd::features_for(Backing::kHugetlb, kBoth);
  SKIP_IF(no_userfaultfd(needed));
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(kHuge, kHugeMemfd);
  const Mapping guest(fd.get(), kHuge, kHuge);
  const auto userfault = open_userfault(needed);
  REQUIRE(userfault.register_range(guest.at(), Bytes{kHuge}, kBoth, Backing::kHugetlb).ok());
  const auto allocated = uffd::allocate(fd.get(), {0, kHuge});
  REQUIRE(allocated.ok());
  REQUIRE(allocated.value() == uffd::Allocation::kDone);
  const auto outcome =
      Installer(userfault.fd()).continue_run(guest.at(), PageCount{1}, Bytes{kHuge});
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == RunOutcome{PageCount{1}, PageCount{0}, RunEnd::kComplete});
  CHECK(all_bytes(guest.data(), kHuge, 0));
}

TEST_CASE("a copy over a cached page maps nothing and leaves the stale bytes") {
  SKIP_IF(no_userfaultfd(kShmem));
  const ShmemGuest guest(1);
  guest.memory.fill(0, 0x11);
  const std::vector<std::byte> fresh(kPage, std::byte{0x22});
  const auto copied = guest.installer().copy_run(guest.at(0), fresh, kSmall);
  REQUIRE(copied.ok());
  CHECK(copied.value() == RunOutcome{PageCount{0}, PageCount{1}, RunEnd::kComplete});
  CHECK_FALSE(is_mapped(guest.at(0)));
  CHECK(all_bytes(guest.memory.alias.bytes().data(), kPage, 0x11));

  const auto zeroed = guest.installer().zero_run(guest.at(0), PageCount{1}, kSmall);
  REQUIRE(zeroed.ok());
  CHECK(zeroed.value() == RunOutcome{PageCount{0}, PageCount{1}, RunEnd::kComplete});
  CHECK_FALSE(is_mapped(guest.at(0)));
}

TEST_CASE("a run across two mappings is gone, and nothing of it is installed") {
  SKIP_IF(no_userfaultfd(kShmem));
  const ShmemGuest guest(4);
  for (std::size_t page = 0; page < 4; ++page) {
    guest.memory.fill(page, 1);
  }
  // A second descriptor for the upper half makes a second VMA of it.
  REQUIRE(guest.userfault.unregister(guest.at(2), Bytes{2 * kPage}).ok());
  const auto other = open_userfault(kShmem);
  REQUIRE(other.register_range(guest.at(2), Bytes{2 * kPage}, kBoth, Backing::kShmem).ok());
  const auto outcome = guest.installer().continue_run(guest.at(0), PageCount{4}, kSmall);
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == RunOutcome{PageCount{0}, PageCount{0}, RunEnd::kGone});
  CHECK_FALSE(is_mapped(guest.at(0)));
}

TEST_CASE("another shard's descriptor installs the page and wakes nobody") {
  SKIP_IF(no_userfaultfd(kShmem));
  const ShmemGuest guest(1);
  const auto stranger = open_userfault(kShmem);
  std::uint8_t seen = 0;
  Toucher toucher([&] { seen = peek(guest.data(0)); });
  (void)next_event(guest.userfault);
  guest.memory.fill(0, 0x77);

  const auto wrong = Installer(stranger.fd()).continue_run(guest.at(0), PageCount{1}, kSmall);
  REQUIRE(wrong.ok());
  CHECK(wrong.value().installed == PageCount{1});
  CHECK(is_mapped(guest.at(0)));
  CHECK(waiters(guest.userfault) == 1);

  // The owner finds it there already, which wakes the waiter.
  const auto right = guest.installer().continue_run(guest.at(0), PageCount{1}, kSmall);
  toucher.join();
  REQUIRE(right.ok());
  CHECK(right.value() == RunOutcome{PageCount{0}, PageCount{1}, RunEnd::kComplete});
  CHECK(seen == 0x77);
}

TEST_CASE("a waiter of a page that was installed without a wake is woken by the next install") {
  SKIP_IF(no_userfaultfd(kShmem));
  const ShmemGuest guest(1);
  Toucher toucher([&] { (void)peek(guest.data(0)); });
  (void)next_event(guest.userfault);
  guest.memory.fill(0, 1);
  REQUIRE(guest.installer().continue_run(guest.at(0), PageCount{1}, kSmall, Wake::kLater).ok());
  CHECK(waiters(guest.userfault) == 1);
  const auto late = guest.installer().continue_run(guest.at(0), PageCount{1}, kSmall, Wake::kLater);
  REQUIRE(late.ok());
  CHECK(late.value().already == PageCount{1});
  CHECK(waiters(guest.userfault) == 0);
}

TEST_CASE("the first copy of an anonymous page wins and the second reports that it came late") {
  SKIP_IF(no_userfaultfd());
  const Mapping memory(-1, kPage);
  const auto userfault = open_userfault();
  REQUIRE(userfault.register_range(memory.at(), Bytes{kPage}, kMissing, Backing::kAnonymous).ok());
  const Installer installer(userfault.fd());
  const std::vector<std::byte> first(kPage, std::byte{0x11});
  const std::vector<std::byte> second(kPage, std::byte{0x22});
  const auto winner = installer.copy_run(memory.at(), first, kSmall);
  const auto loser = installer.copy_run(memory.at(), second, kSmall);
  REQUIRE(winner.ok());
  REQUIRE(loser.ok());
  CHECK(winner.value().installed == PageCount{1});
  CHECK(loser.value().already == PageCount{1});
  CHECK(all_bytes(memory.data(), kPage, 0x11));
}

TEST_CASE("a copied run steps over what is mapped and takes the right bytes behind it") {
  SKIP_IF(no_userfaultfd());
  const Mapping memory(-1, 4 * kPage);
  const auto userfault = open_userfault();
  REQUIRE(
      userfault.register_range(memory.at(), Bytes{4 * kPage}, kMissing, Backing::kAnonymous).ok());
  const Installer installer(userfault.fd());
  REQUIRE(installer.zero_run(memory.at(kPage), PageCount{1}, kSmall).ok());
  std::vector<std::byte> source(4 * kPage);
  for (std::size_t i = 0; i < source.size(); ++i) {
    source[i] = static_cast<std::byte>(i / kPage + 1);
  }
  const auto outcome = installer.copy_run(memory.at(), source, kSmall);
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == RunOutcome{PageCount{3}, PageCount{1}, RunEnd::kComplete});
  CHECK(all_bytes(memory.data(), kPage, 1));
  CHECK(all_bytes(memory.data() + kPage, kPage, 0));
  CHECK(all_bytes(memory.data() + 2 * kPage, kPage, 3));
  CHECK(all_bytes(memory.data() + 3 * kPage, kPage, 4));
}

TEST_CASE("a copy from unreadable memory is a mistake of ours, not an outcome") {
  SKIP_IF(no_userfaultfd());
  const Mapping memory(-1, kPage);
  const auto userfault = open_userfault();
  REQUIRE(userfault.register_range(memory.at(), Bytes{kPage}, kMissing, Backing::kAnonymous).ok());
  const auto* nowhere = reinterpret_cast<const std::byte*>(kPage);  // NOLINT(*-no-int-to-ptr)
  const auto outcome = Installer(userfault.fd()).copy_run(memory.at(), {nowhere, kPage}, kSmall);
  REQUIRE_FALSE(outcome.ok());
  CHECK(outcome.error().kind == base::ErrorKind::kFailed);
  CHECK(outcome.error().errno_value == EFAULT);
}

}  // namespace
}  // namespace towline::contract
