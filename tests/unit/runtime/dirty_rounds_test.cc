#include "runtime/dirty_rounds.h"

#include <algorithm>
#include <array>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using Ranges = std::vector<PageRange>;

PageRange pages(std::uint64_t first, std::uint64_t count) {
  return {PageIndex{first}, PageCount{count}};
}

MemoryLayout two_regions() {
  Region low;
  low.name = "ram.low";
  low.size = base::Bytes{100 * 4096};
  Region high = low;
  high.name = "ram.high";
  high.start = base::GuestAddress{1U << 20U};
  high.size = base::Bytes{70 * 4096};
  return MemoryLayout({low, high});
}

/// As KVM's with manual protect, initially set. Pages are those of the flat space of two_regions().
class FakeLog final : public DirtyLog {
 public:
  void write(std::uint64_t page) {
    bits_[page < 100 ? 0 : 1][(page % 100) / 64] |= std::uint64_t{1} << (page % 100 % 64);
  }

  base::Outcome enable() override {
    for (auto& words : bits_) {
      words.fill(~std::uint64_t{0});
    }
    return base::Done{};
  }

  void disable() override { disabled = true; }

  base::Outcome read(std::size_t region, std::span<std::uint64_t> bitmap) override {
    std::copy_n(bits_[region].begin(), bitmap.size(), bitmap.begin());
    return base::Done{};
  }

  base::Outcome clear(std::size_t region, std::uint64_t first, std::uint64_t count,
                      std::span<const std::uint64_t> bitmap) override {
    for (std::size_t i = 0; i < (count + 63) / 64; ++i) {
      bits_[region][first / 64 + i] &= ~bitmap[i];
    }
    return base::Done{};
  }

  bool disabled = false;

 private:
  std::array<std::array<std::uint64_t, 2>, 2> bits_{};
};

struct Rounds {
  Rounds() { REQUIRE(rounds.begin().ok()); }

  /// A pass over all of memory.
  void pass() {
    for (const PageRange chunk : {pages(0, 64), pages(64, 36), pages(100, 64), pages(164, 6)}) {
      REQUIRE(rounds.clear_for_read(chunk).ok());
    }
  }

  DirtyRounds::Round next() {
    auto round = rounds.next_round();
    REQUIRE(round.ok());
    return std::move(round).value();
  }

  MemoryLayout layout = two_regions();
  FakeLog log;
  DirtyRounds rounds{log, layout};
};

TEST_CASE("before its first clear every page counts as dirty, and is no news") {
  Rounds it;
  CHECK((it.rounds.dirty(0)[0] & 1U) == 1);
  it.log.write(5);
  CHECK(it.next().count == 0);
}

TEST_CASE("a page written after it was armed is news once") {
  Rounds it;
  it.pass();
  it.log.write(5);
  const auto round = it.next();
  CHECK(round.count == 1);
  CHECK(round.pages == Ranges{pages(5, 1)});
  it.log.write(5);
  CHECK(it.next().count == 0);
}

TEST_CASE("a page that is armed again can be news again") {
  Rounds it;
  it.pass();
  it.log.write(5);
  CHECK(it.next().count == 1);
  it.pass();
  CHECK(it.next().count == 0);
  it.log.write(5);
  CHECK(it.next().pages == Ranges{pages(5, 1)});
}

TEST_CASE("arming touches only the pages that were dirty in the last round") {
  Rounds it;
  it.pass();
  it.log.write(5);
  CHECK(it.next().count == 1);
  it.log.write(6);  // News of the next round: the second pass does not send it.
  it.pass();
  CHECK(it.next().pages == Ranges{pages(6, 1)});
}

TEST_CASE("runs that meet at a region's border are one run, as a stale set needs it") {
  Rounds it;
  it.pass();
  it.log.write(99);
  it.log.write(100);
  it.log.write(102);
  const auto round = it.next();
  CHECK(round.count == 3);
  CHECK(round.pages == Ranges{pages(99, 2), pages(102, 1)});
  wire::RunsWriter writer;
  for (const PageRange& run : round.pages) {
    CHECK(writer.add(run));
  }
}

TEST_CASE("bits beyond a region's last page are nobody's") {
  Rounds it;
  it.pass();
  it.log.write(99);
  it.log.write(169);
  CHECK(it.next().pages == Ranges{pages(99, 1), pages(169, 1)});
}

TEST_CASE("the end of the rounds ends the logging") {
  Rounds it;
  it.rounds.end();
  CHECK(it.log.disabled);
}

}  // namespace
}  // namespace towline::runtime
