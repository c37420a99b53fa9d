#include <unistd.h>

#include <array>
#include <cerrno>

#include <doctest/doctest.h>

#include "base/error.h"
#include "base/fd.h"
#include "base/units.h"

namespace towline::base {
namespace {

TEST_CASE("an error tells the detail first and the kernel's reason in brackets") {
  const Error error{ErrorKind::kFailed, ECONNREFUSED, "connect", "tcp:127.0.0.1:1"};
  CHECK(to_string(error) == "tcp:127.0.0.1:1 (connect: Connection refused)");
}

TEST_CASE("a peer that closes half-way is reported with what had arrived") {
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  OwnedFd reader(ends[0]);
  OwnedFd writer(ends[1]);
  const std::array<std::byte, 3> some{};
  REQUIRE(write_all(writer.get(), some).ok());
  writer.reset();
  std::array<std::byte, 8> into{};
  const auto got = read_exactly(reader.get(), into);
  REQUIRE_FALSE(got.ok());
  CHECK(got.error().kind == ErrorKind::kDisconnected);
  CHECK(got.error().detail == "the peer closed after 3 of 8 bytes");
}

TEST_CASE("a page range contains its first page and not its end") {
  const PageRange range{PageIndex{10}, PageCount{2}};
  CHECK(range.contains(PageIndex{10}));
  CHECK(range.contains(PageIndex{11}));
  CHECK_FALSE(range.contains(range.end()));
  CHECK_FALSE(range.contains(PageIndex{9}));
}

}  // namespace
}  // namespace towline::base
