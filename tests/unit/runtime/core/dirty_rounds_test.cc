#include "runtime/core/dirty_rounds.h"

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
  CHECK(it.rounds.dirty(pages(0, 1)) == std::vector<std::uint64_t>{1});
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

/// A log of one region on huge pages, which checks what KVM would.
class FakeHugeLog final : public DirtyLog {
 public:
  static constexpr std::uint64_t kBitsPerPage = 512;
  static constexpr std::uint64_t kPages = 70;

  void write(std::uint64_t bit) { bits_[bit / 64] |= std::uint64_t{1} << bit % 64; }

  base::Outcome enable() override {
    std::ranges::fill(bits_, ~std::uint64_t{0});
    return base::Done{};
  }

  void disable() override {}

  base::Outcome read(std::size_t /*region*/, std::span<std::uint64_t> bitmap) override {
    REQUIRE(bitmap.size() == bits_.size());
    std::ranges::copy(bits_, bitmap.begin());
    return base::Done{};
  }

  base::Outcome clear(std::size_t /*region*/, std::uint64_t first, std::uint64_t count,
                      std::span<const std::uint64_t> bitmap) override {
    REQUIRE(first % 64 == 0);
    REQUIRE(count % 64 == 0);
    REQUIRE(first + count <= kPages * kBitsPerPage);
    REQUIRE(bitmap.size() == count / 64);
    for (std::size_t i = 0; i < bitmap.size(); ++i) {
      bits_[first / 64 + i] &= ~bitmap[i];
    }
    return base::Done{};
  }

 private:
  std::array<std::uint64_t, kPages * kBitsPerPage / 64> bits_{};
};

struct HugeRounds {
  HugeRounds() {
    REQUIRE(rounds.begin().ok());
    for (std::uint64_t page = 0; page < FakeHugeLog::kPages; page += 5) {
      REQUIRE(rounds.clear_for_read(pages(page, 5)).ok());
    }
  }

  DirtyRounds::Round next() {
    auto round = rounds.next_round();
    REQUIRE(round.ok());
    return std::move(round).value();
  }

  static MemoryLayout one_region() {
    Region ram;
    ram.name = "ram.low";
    ram.page_size = base::kHugePage;
    ram.size = base::Bytes{FakeHugeLog::kPages * base::kHugePage.value};
    return MemoryLayout({ram});
  }

  MemoryLayout layout = one_region();
  FakeHugeLog log;
  DirtyRounds rounds{log, layout};
};

TEST_CASE("one dirty 4 KiB makes its huge page news, once, and no other page") {
  HugeRounds it;
  CHECK(it.next().count == 0);
  it.log.write(66 * 512 + 100);
  it.log.write(66 * 512 + 511);
  it.log.write(3 * 512);
  CHECK(it.next().pages == Ranges{pages(3, 1), pages(66, 1)});
  it.log.write(66 * 512 + 7);
  CHECK(it.next().count == 0);  // The copy was of no use before.
  CHECK(it.rounds.dirty(pages(60, 8)) == std::vector<std::uint64_t>{1U << 6U});
}

TEST_CASE("arming a huge page arms all of it, from any page on, and only what was dirty") {
  HugeRounds it;
  it.log.write(9 * 512 + 1);
  CHECK(it.next().count == 1);
  it.log.write(10 * 512);  // News of the next round: not armed before it was seen.
  REQUIRE(it.rounds.clear_for_read(pages(8, 4)).ok());
  CHECK(it.next().pages == Ranges{pages(10, 1)});
  it.log.write(9 * 512 + 1);
  CHECK(it.next().pages == Ranges{pages(9, 1)});
}

TEST_CASE("the end of the rounds ends the logging") {
  Rounds it;
  it.rounds.end();
  CHECK(it.log.disabled);
}

}  // namespace
}  // namespace towline::runtime
