#include "runtime/target/memory.h"

#include <vector>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

using uffd::Allocation;
using uffd::Extent;

TEST_CASE("holes get their pages in small steps, one after the other, all of them") {
  const Extent all{3 * base::kHugePage.value, (1U << 30U) + base::kHugePage.value};
  std::vector<Extent> asked;
  const auto done = allocate_in_steps(all, [&](Extent part) {
    asked.push_back(part);
    return base::Expected<Allocation>(Allocation::kDone);
  });
  REQUIRE(done.ok());
  CHECK(done.value() == Allocation::kDone);
  CHECK(asked.size() == 257);
  std::uint64_t at = all.offset;
  for (const Extent& part : asked) {
    CHECK(part.offset == at);
    CHECK(part.length > 0);
    CHECK(part.length <= kAllocateStep.value);
    // Of any kind of memory: a step never ends inside a page.
    CHECK(part.length % base::kHugePage.value == 0);
    at += part.length;
  }
  CHECK(at == all.offset + all.length);
}

TEST_CASE("no room ends the steps, and an error too") {
  int asked = 0;
  const auto full = allocate_in_steps(Extent{0, 64U << 20U}, [&](Extent /*part*/) {
    return base::Expected<Allocation>(++asked == 3 ? Allocation::kNoMemory : Allocation::kDone);
  });
  REQUIRE(full.ok());
  CHECK(full.value() == Allocation::kNoMemory);
  CHECK(asked == 3);
  const auto broken =
      allocate_in_steps(Extent{0, 64U << 20U}, [&](Extent /*part*/) -> base::Expected<Allocation> {
        return base::fail(base::ErrorKind::kFailed, "fallocate", "bad descriptor");
      });
  CHECK_FALSE(broken.ok());
}

}  // namespace
}  // namespace towline::runtime
