// Dirty tracking without a fault per write: WP_ASYNC and PAGEMAP_SCAN, Linux 6.7.
#include "uffd/write_protect.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/contract/support.h"

namespace towline::contract {
namespace {

using uffd::Backing;
using uffd::WriteTracker;
using uffd::WrittenRun;

std::string no_tracking() {
  const auto& can = uffd::capabilities();
  if (!can.ok()) {
    return base::to_string(can.error());
  }
  return can.value().tracks_writes() ? std::string() : std::string("needs Linux 6.7");
}

WriteTracker track(const Mapping& memory, Backing backing) {
  auto tracker = WriteTracker::start(memory.at(), Bytes{memory.size()}, backing);
  if (!tracker.ok()) {
    FAIL(base::to_string(tracker.error()));
  }
  return std::move(tracker).value();
}

std::vector<WrittenRun> written(const WriteTracker& tracker, const Mapping& memory) {
  std::vector<WrittenRun> runs(100);
  const HostAddress end = memory.at(memory.size());
  const auto collected = tracker.collect(memory.at(), end, runs);
  REQUIRE(collected.ok());
  CHECK(collected.value().next == end);
  runs.resize(collected.value().runs);
  return runs;
}

void finds_exactly_what_was_written(const Mapping& memory, Backing backing) {
  for (std::size_t page = 0; page < 8; ++page) {
    poke(memory.data() + page * kPage, 1);  // Pages 8 to 15 stay untouched.
  }
  const auto tracker = track(memory, backing);
  CHECK(written(tracker, memory).empty());
  poke(memory.data() + 2 * kPage, 2);
  poke(memory.data() + 3 * kPage + 9, 2);
  poke(memory.data() + 12 * kPage, 2);
  (void)peek(memory.data() + 5 * kPage);
  (void)peek(memory.data() + 14 * kPage);
  const std::vector<WrittenRun> expected{{memory.at(2 * kPage), Bytes{2 * kPage}},
                                         {memory.at(12 * kPage), Bytes{kPage}}};
  CHECK(written(tracker, memory) == expected);
  CHECK(written(tracker, memory).empty());
  poke(memory.data() + 3 * kPage, 3);
  CHECK(written(tracker, memory) == std::vector<WrittenRun>{{memory.at(3 * kPage), Bytes{kPage}}});
}

TEST_CASE("exactly the written pages of a memfd are collected, each once, and re-armed") {
  SKIP_IF(no_tracking());
  const auto fd = make_memfd(16 * kPage);
  const Mapping memory(fd.get(), 16 * kPage);
  finds_exactly_what_was_written(memory, Backing::kShmem);
}

TEST_CASE("exactly the written pages of anonymous memory are collected, cold ones too") {
  SKIP_IF(no_tracking());
  const Mapping memory(-1, 16 * kPage);
  finds_exactly_what_was_written(memory, Backing::kAnonymous);
}

TEST_CASE("a write made by the kernel for a device is seen: no one has to mark it") {
  SKIP_IF(no_tracking());
  const auto fd = make_memfd(4 * kPage);
  const Mapping memory(fd.get(), 4 * kPage);
  const auto tracker = track(memory, Backing::kShmem);
  const base::OwnedFd zeros(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  REQUIRE(::read(zeros.get(), memory.data() + kPage, 10) == 10);
  CHECK(written(tracker, memory) == std::vector<WrittenRun>{{memory.at(kPage), Bytes{kPage}}});
}

TEST_CASE("a short list of runs is filled and the rest waits behind `next`") {
  SKIP_IF(no_tracking());
  const Mapping memory(-1, 16 * kPage);
  const auto tracker = track(memory, Backing::kAnonymous);
  for (std::size_t page = 0; page < 16; page += 4) {
    poke(memory.data() + page * kPage, 1);
  }
  std::array<WrittenRun, 3> some{};
  const auto first = tracker.collect(memory.at(), memory.at(memory.size()), some);
  REQUIRE(first.ok());
  CHECK(first.value().runs == 3);
  CHECK(some[2].start == memory.at(8 * kPage));
  const auto rest = tracker.collect(first.value().next, memory.at(memory.size()), some);
  REQUIRE(rest.ok());
  CHECK(rest.value().runs == 1);
  CHECK(some[0].start == memory.at(12 * kPage));
}

}  // namespace
}  // namespace towline::contract
