// Which kinds of memory can be registered for which faults, and how they may be resolved.
#include <sys/ioctl.h>

#include <array>
#include <cerrno>

#include <doctest/doctest.h>

#include "tests/contract/support.h"
#include "uffd/shards.h"
#include "uffd/uapi.h"

namespace towline::contract {
namespace {

using uffd::Backing;
using uffd::Mode;

constexpr Mode kBoth{.missing = true, .minor = true, .write_protect = false};
constexpr Mode kMissing{.missing = true, .minor = false, .write_protect = false};

TEST_CASE("the kernel refuses minor faults on anonymous memory") {
  SKIP_IF(no_userfaultfd());
  const Mapping memory(-1, kPage);
  const auto userfault = open_userfault();
  uffdio_register request{};
  request.range = {.start = memory.at().value, .len = kPage};
  request.mode = UFFDIO_REGISTER_MODE_MINOR;
  REQUIRE(::ioctl(userfault.fd(), UFFDIO_REGISTER, &request) == -1);
  CHECK(errno == EINVAL);
}

TEST_CASE(
    "memory that is not what it was said to be is refused by the kernel, and that is a typed "
    "error") {
  SKIP_IF(no_userfaultfd());
  const Mapping memory(-1, kPage);
  const auto userfault = open_userfault();
  const auto refused = userfault.register_range(memory.at(), Bytes{kPage}, kBoth, Backing::kShmem);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().kind == base::ErrorKind::kUnsupported);
  CHECK(refused.error().errno_value == EINVAL);
}

TEST_CASE("shmem offers continue, copy, zeros and wake") {
  SKIP_IF(no_userfaultfd(uffd::features_for(Backing::kShmem, kBoth)));
  const auto fd = make_memfd(kPage);
  const Mapping memory(fd.get(), kPage);
  const auto userfault = open_userfault(uffd::features_for(Backing::kShmem, kBoth));
  const auto can = userfault.register_range(memory.at(), Bytes{kPage}, kBoth, Backing::kShmem);
  REQUIRE(can.ok());
  CHECK(can.value().wake);
  CHECK(can.value().resume);
  CHECK(can.value().copy);
  CHECK(can.value().zero);
}

TEST_CASE("hugetlb offers no zero page, by its mask and by its answer") {
  SKIP_IF(no_userfaultfd(uffd::features_for(Backing::kHugetlb, kBoth)));
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(kHuge, kHugeMemfd);
  const Mapping memory(fd.get(), kHuge, kHuge);
  const auto userfault = open_userfault(uffd::features_for(Backing::kHugetlb, kBoth));
  const auto can = userfault.register_range(memory.at(), Bytes{kHuge}, kBoth, Backing::kHugetlb);
  REQUIRE(can.ok());
  CHECK_FALSE(can.value().zero);
  CHECK(can.value().resume);
  const auto raw =
      uffd::Installer(userfault.fd()).zero_run(memory.at(), PageCount{1}, Bytes{kHuge});
  REQUIRE_FALSE(raw.ok());
  CHECK(raw.error().errno_value == EINVAL);
}

TEST_CASE("zeros for hugetlb are refused as unsupported before the kernel is asked") {
  SKIP_IF(no_userfaultfd(uffd::features_for(Backing::kHugetlb, kBoth)));
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(kHuge, kHugeMemfd);
  const Mapping memory(fd.get(), kHuge, kHuge);
  const std::array ranges{
      uffd::Range{memory.at(), Bytes{kHuge}, Bytes{kHuge}, Backing::kHugetlb, kBoth}};
  const auto all = uffd::ShardedUserfault::open(ranges);
  REQUIRE(all.ok());
  const auto refused = all.value().zero_run(memory.at(), PageCount{1});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().kind == base::ErrorKind::kUnsupported);
}

TEST_CASE("a range that another userfaultfd has is refused and stays with its owner") {
  SKIP_IF(no_userfaultfd());
  const Mapping memory(-1, kPage);
  const auto owner = open_userfault();
  const auto second = open_userfault();
  REQUIRE(owner.register_range(memory.at(), Bytes{kPage}, kMissing, Backing::kAnonymous).ok());
  const auto refused =
      second.register_range(memory.at(), Bytes{kPage}, kMissing, Backing::kAnonymous);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().kind == base::ErrorKind::kRefused);
  Toucher toucher([&] { (void)peek(memory.data()); });
  CHECK(next_event(owner).address == memory.at());
  CHECK(uffd::Installer(owner.fd()).zero_run(memory.at(), PageCount{1}, Bytes{kPage}).ok());
}

TEST_CASE("a feature that this kernel lacks is named, and those that it has are not") {
  SKIP_IF(no_userfaultfd(uffd::feature::kThreadId));
  const uffd::FeatureSet unknown{1ULL << 60U};
  const auto refused = uffd::Userfault::open(uffd::feature::kThreadId | unknown);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().kind == base::ErrorKind::kUnsupported);
  CHECK(refused.error().detail.find("bit-60") != std::string::npos);
  CHECK(refused.error().detail.find("thread-id") == std::string::npos);
}

TEST_CASE("what is registered can be taken away and given to another") {
  SKIP_IF(no_userfaultfd());
  const Mapping memory(-1, kPage);
  const auto first = open_userfault();
  const auto later = open_userfault();
  REQUIRE(first.register_range(memory.at(), Bytes{kPage}, kMissing, Backing::kAnonymous).ok());
  REQUIRE(first.unregister(memory.at(), Bytes{kPage}).ok());
  CHECK(later.register_range(memory.at(), Bytes{kPage}, kMissing, Backing::kAnonymous).ok());
}

}  // namespace
}  // namespace towline::contract
