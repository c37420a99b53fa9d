// Several descriptors over one guest: installs and wakes reach the owner, runs cross its borders.
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/contract/support.h"
#include "uffd/shards.h"

namespace towline::contract {
namespace {

using uffd::Backing;
using uffd::Mode;
using uffd::RunEnd;
using uffd::RunOutcome;
using uffd::ShardedUserfault;
using uffd::Wake;

constexpr Bytes kSmall{kPage};
constexpr Mode kBoth{.missing = true, .minor = true, .write_protect = false};
constexpr Mode kMissing{.missing = true, .minor = false, .write_protect = false};

/// Twelve pages in three shards of four.
struct ShardedGuest {
  ShardedGuest() : memory(12), userfaults(open()) {}

  [[nodiscard]] ShardedUserfault open() const {
    const std::array ranges{
        uffd::Range{memory.guest.at(), Bytes{12 * kPage}, kSmall, Backing::kShmem, kBoth}};
    auto opened =
        ShardedUserfault::open(ranges, {}, {.shard_size = Bytes{4 * kPage}, .most_shards = 16});
    REQUIRE(opened.ok());
    REQUIRE(opened.value().shards().size() == 3);
    return std::move(opened).value();
  }

  [[nodiscard]] HostAddress at(std::size_t page) const { return memory.guest.at(page * kPage); }

  [[nodiscard]] std::byte* data(std::size_t page) const {
    return memory.guest.data() + page * kPage;
  }

  TwoMappings memory;
  ShardedUserfault userfaults;
};

std::string unusable() {
  return no_userfaultfd(uffd::features_for(Backing::kShmem, kBoth));
}

TEST_CASE("a run over three shards wakes the waiters of each") {
  SKIP_IF(unusable());
  const ShardedGuest guest;
  for (std::size_t page = 0; page < 12; ++page) {
    guest.memory.fill(page, static_cast<std::uint8_t>(page + 1));
  }
  std::array<std::uint8_t, 3> seen{};
  {
    Toucher a([&] { seen[0] = peek(guest.data(1)); });
    Toucher b([&] { seen[1] = peek(guest.data(5)); });
    Toucher c([&] { seen[2] = peek(guest.data(11)); });
    CHECK(next_event(guest.userfaults.userfault(0)).address == guest.at(1));
    CHECK(next_event(guest.userfaults.userfault(1)).address == guest.at(5));
    CHECK(next_event(guest.userfaults.userfault(2)).address == guest.at(11));
    const auto outcome = guest.userfaults.continue_run(guest.at(1), PageCount{11});
    REQUIRE(outcome.ok());
    CHECK(outcome.value() == RunOutcome{PageCount{11}, PageCount{0}, RunEnd::kComplete});
  }
  CHECK(seen == std::array<std::uint8_t, 3>{2, 6, 12});
}

TEST_CASE("a run that ends inside a later shard counts the pages of the earlier ones") {
  SKIP_IF(unusable());
  const ShardedGuest guest;
  for (std::size_t page = 0; page < 6; ++page) {
    guest.memory.fill(page, 1);
  }
  REQUIRE(guest.userfaults.continue_run(guest.at(2), PageCount{1}).ok());
  const auto outcome = guest.userfaults.continue_run(guest.at(0), PageCount{12});
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == RunOutcome{PageCount{5}, PageCount{1}, RunEnd::kNoPage});
}

TEST_CASE("a copied run over shards takes each page's own bytes") {
  SKIP_IF(unusable());
  const ShardedGuest guest;
  std::vector<std::byte> source(12 * kPage);
  for (std::size_t i = 0; i < source.size(); ++i) {
    source[i] = static_cast<std::byte>(i / kPage + 1);
  }
  const auto outcome = guest.userfaults.copy_run(guest.at(0), source);
  REQUIRE(outcome.ok());
  CHECK(outcome.value().installed == PageCount{12});
  for (std::size_t page = 0; page < 12; ++page) {
    CHECK(all_bytes(guest.data(page), kPage, static_cast<std::uint8_t>(page + 1)));
  }
}

TEST_CASE("a later wake reaches every shard of its range and no other") {
  SKIP_IF(unusable());
  const ShardedGuest guest;
  Toucher a([&] { (void)peek(guest.data(3)); });
  Toucher b([&] { (void)peek(guest.data(4)); });
  Toucher c([&] { (void)peek(guest.data(8)); });
  for (std::size_t shard = 0; shard < 3; ++shard) {
    (void)next_event(guest.userfaults.userfault(shard));
  }
  REQUIRE(guest.userfaults.zero_run(guest.at(0), PageCount{12}, Wake::kLater).ok());
  CHECK(waiters(guest.userfaults.userfault(0)) == 1);
  guest.userfaults.wake(guest.at(3), Bytes{2 * kPage});
  CHECK(waiters(guest.userfaults.userfault(0)) == 0);
  CHECK(waiters(guest.userfaults.userfault(1)) == 0);
  CHECK(waiters(guest.userfaults.userfault(2)) == 1);
  guest.userfaults.wake(guest.at(0), Bytes{12 * kPage});
  CHECK(waiters(guest.userfaults.userfault(2)) == 0);
}

TEST_CASE("pages outside every shard are gone") {
  SKIP_IF(unusable());
  const ShardedGuest guest;
  const auto outside = guest.userfaults.continue_run(guest.at(12), PageCount{1});
  REQUIRE(outside.ok());
  CHECK(outside.value().end == RunEnd::kGone);
  const auto over = guest.userfaults.zero_run(guest.at(11), PageCount{2});
  REQUIRE(over.ok());
  CHECK(over.value() == RunOutcome{PageCount{1}, PageCount{0}, RunEnd::kGone});
}

TEST_CASE("a combination that cannot be is refused with nothing registered") {
  SKIP_IF(unusable());
  const TwoMappings memory(4);
  const Mapping anonymous(-1, 4 * kPage);
  const std::array ranges{
      uffd::Range{memory.guest.at(), Bytes{4 * kPage}, kSmall, Backing::kShmem, kBoth},
      uffd::Range{anonymous.at(), Bytes{4 * kPage}, kSmall, Backing::kAnonymous, kBoth}};
  const auto refused = ShardedUserfault::open(ranges);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().kind == base::ErrorKind::kUnsupported);
  CHECK(peek(memory.guest.data()) == 0);  // Nobody would answer a fault.
}

TEST_CASE("two threads that install the same pages install each page once") {
  SKIP_IF(unusable());
  const ShardedGuest guest;
  for (std::size_t page = 0; page < 12; ++page) {
    guest.memory.fill(page, 1);
  }
  std::array<RunOutcome, 2> outcomes{};
  {
    Toucher other(
        [&] { outcomes[0] = guest.userfaults.continue_run(guest.at(0), PageCount{12}).value(); });
    outcomes[1] = guest.userfaults.continue_run(guest.at(0), PageCount{12}).value();
  }
  CHECK(outcomes[0].installed.value + outcomes[1].installed.value == 12);
  CHECK(outcomes[0].already.value + outcomes[1].already.value == 12);
}

TEST_CASE("after unregistering everything no fault is reported any more") {
  SKIP_IF(unusable());
  ShardedGuest guest;
  REQUIRE(guest.userfaults.unregister_all().ok());
  CHECK(peek(guest.data(0)) == 0);
  CHECK(peek(guest.data(11)) == 0);
}

TEST_CASE("a poisoned page fails whoever touches it, and does not make them wait") {
  SKIP_IF(no_userfaultfd(uffd::feature::kPoison));
  const Mapping memory(-1, 2 * kPage);
  const std::array ranges{
      uffd::Range{memory.at(), Bytes{2 * kPage}, kSmall, Backing::kAnonymous, kMissing}};
  const auto opened = ShardedUserfault::open(ranges);
  REQUIRE(opened.ok());
  const auto poisoned = opened.value().poison_run(memory.at(), PageCount{2});
  REQUIRE(poisoned.ok());
  CHECK(poisoned.value().installed == PageCount{2});
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  // A system call gets EFAULT where a thread gets SIGBUS, and KVM_RUN gets it too.
  CHECK(::write(ends[1], memory.data(), 1) == -1);
  CHECK(errno == EFAULT);
  CHECK(is_silent(opened.value().userfault(0)));
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_CASE("a poisoned huge page fails whoever touches any part of it") {
  const auto needed = uffd::features_for(Backing::kHugetlb, kBoth);
  SKIP_IF(no_userfaultfd(needed | uffd::feature::kPoison));
  const HugePages pages(2);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(2 * kHuge, kHugeMemfd);
  const Mapping memory(fd.get(), 2 * kHuge, kHuge);
  const std::array ranges{
      uffd::Range{memory.at(), Bytes{2 * kHuge}, Bytes{kHuge}, Backing::kHugetlb, kBoth}};
  const auto opened = ShardedUserfault::open(ranges);
  REQUIRE(opened.ok());
  REQUIRE(opened.value().abilities(0).poison);
  const auto poisoned = opened.value().poison_run(memory.at(kHuge), PageCount{1});
  REQUIRE(poisoned.ok());
  CHECK(poisoned.value().installed == PageCount{1});
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  for (const std::size_t part : {0U, 300U, 511U}) {
    CHECK(::write(ends[1], memory.data() + kHuge + part * kPage, 1) == -1);
    CHECK(errno == EFAULT);
  }
  CHECK(is_silent(opened.value().userfault(0)));
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_CASE("both mappings stay out of children, core dumps and huge pages") {
  const TwoMappings memory(3);
  for (const HostAddress start :
       {memory.guest.at(),
        HostAddress{reinterpret_cast<std::uintptr_t>(memory.alias.bytes().data())}}) {
    const std::string flags = flags_of(start);
    for (const char* flag : {" dc", " dd", " nh"}) {
      CHECK_MESSAGE(flags.find(flag) != std::string::npos, flags);
    }
  }
}

}  // namespace
}  // namespace towline::contract
