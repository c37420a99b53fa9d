#include "uffd/installer.h"

#include <cerrno>

#include <doctest/doctest.h>

namespace towline::uffd {
namespace {

using Action = FillStep::Action;

constexpr Bytes kSmall{4096};
constexpr Bytes kEight{8UL * 4096};
constexpr std::int64_t kPage = 4096;

FillStep continued(int errno_value, std::int64_t mapped = 0) {
  return decode_fill(Fill::kContinue, {-1, errno_value, mapped}, kEight, kSmall);
}

TEST_CASE("a request that went through settles its whole length") {
  CHECK(decode_fill(Fill::kContinue, {0, 0, 8 * kPage}, kEight, kSmall) ==
        FillStep{Action::kAdvance, PageCount{8}, RunEnd::kComplete});
}

TEST_CASE("an errno left over from before does not turn a success into a failure") {
  CHECK(decode_fill(Fill::kCopy, {0, EEXIST, 8 * kPage}, kEight, kSmall).action ==
        Action::kAdvance);
}

TEST_CASE("a length on huge pages is counted in huge pages") {
  CHECK(decode_fill(Fill::kContinue, {0, 0, 4 << 20}, base::Bytes{4U << 20U}, base::kHugePage) ==
        FillStep{Action::kAdvance, PageCount{2}, RunEnd::kComplete});
}

TEST_CASE(
    "a run that stopped short advances by what was mapped, and says nothing of the obstacle") {
  CHECK(continued(EAGAIN, 3 * kPage) ==
        FillStep{Action::kAdvance, PageCount{3}, RunEnd::kComplete});
}

TEST_CASE("stopping with nothing mapped means that the layout is changing") {
  CHECK(continued(EAGAIN, 0) == FillStep{Action::kRetry, PageCount{0}, RunEnd::kLayoutChanging});
}

TEST_CASE("a negative count in the output field is an errno and never a distance") {
  CHECK(continued(EAGAIN, -EAGAIN).action == Action::kRetry);
  CHECK(continued(EEXIST, -EEXIST) == FillStep{Action::kSkip, PageCount{1}, RunEnd::kComplete});
}

TEST_CASE("a page that is there already is skipped alone") {
  CHECK(continued(EEXIST) == FillStep{Action::kSkip, PageCount{1}, RunEnd::kComplete});
}

TEST_CASE("a range without a mapping and a process without memory are both gone") {
  CHECK(continued(ENOENT).end == RunEnd::kGone);
  CHECK(continued(ESRCH).end == RunEnd::kGone);
  CHECK(continued(ENOENT).action == Action::kEnd);
}

TEST_CASE("a bad address means a hole to continue and a bug to everything else") {
  CHECK(continued(EFAULT) == FillStep{Action::kEnd, PageCount{0}, RunEnd::kNoPage});
  for (const Fill fill : {Fill::kCopy, Fill::kZero, Fill::kPoison}) {
    CHECK(decode_fill(fill, {-1, EFAULT, 0}, kSmall, kSmall).action == Action::kBug);
  }
}

TEST_CASE("both ways of the kernel to say that memory ran out are one outcome") {
  for (const int errno_value : {ENOMEM, ENOSPC}) {
    CHECK(decode_fill(Fill::kCopy, {-1, errno_value, -errno_value}, kSmall, kSmall) ==
          FillStep{Action::kEnd, PageCount{0}, RunEnd::kNoMemory});
  }
}

TEST_CASE("a refused argument is a bug of ours, whatever the fill") {
  for (const Fill fill : {Fill::kContinue, Fill::kCopy, Fill::kZero, Fill::kPoison}) {
    CHECK(decode_fill(fill, {-1, EINVAL, 0}, kSmall, kSmall).action == Action::kBug);
  }
}

TEST_CASE("pages that were there already count as examined but not as installed") {
  const RunOutcome outcome{PageCount{5}, PageCount{2}, RunEnd::kNoPage};
  CHECK(outcome.examined() == PageCount{7});
}

TEST_CASE("an empty run asks the kernel nothing") {
  // Descriptor -1: any ioctl would fail.
  const auto outcome = Installer(-1).continue_run(HostAddress{4096}, PageCount{0}, kSmall);
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == RunOutcome{});
}

TEST_CASE("a descriptor that is none is reported with its errno and the name of the step") {
  const auto outcome = Installer(-1).zero_run(HostAddress{4096}, PageCount{1}, kSmall);
  REQUIRE_FALSE(outcome.ok());
  CHECK(outcome.error().errno_value == EBADF);
  CHECK(outcome.error().operation == std::string("UFFDIO_ZEROPAGE"));
}

}  // namespace
}  // namespace towline::uffd
