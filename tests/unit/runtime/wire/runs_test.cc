#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "base/crc32c.h"
#include "runtime/wire/codec.h"

namespace towline::runtime::wire {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using Ranges = std::vector<PageRange>;

constexpr PageCount kTotal{1'000'000};

PageRange pages(std::uint64_t first, std::uint64_t count) {
  return {PageIndex{first}, PageCount{count}};
}

std::vector<std::byte> bytes(std::initializer_list<unsigned> values) {
  std::vector<std::byte> all;
  for (const unsigned value : values) {
    all.push_back(static_cast<std::byte>(value));
  }
  return all;
}

base::Expected<Ranges> decode(std::uint64_t first, std::uint64_t count,
                              const std::vector<std::byte>& payload, PageCount total = kTotal) {
  FrameHeader header;
  header.type = FrameType::kStale;
  header.first = first;
  header.count = count;
  header.length = static_cast<std::uint32_t>(payload.size());
  return decode_runs(header, payload, total);
}

void check_corrupt(const base::Expected<Ranges>& got, const std::string& expected) {
  REQUIRE_FALSE(got.ok());
  CHECK(got.error().kind == base::ErrorKind::kCorrupt);
  CHECK(got.error().detail == expected);
}

TEST_CASE("runs are gaps and lengths in LEB128, the first gap from the header's page") {
  RunsWriter writer;
  REQUIRE(writer.add(pages(1000, 1)));
  REQUIRE(writer.add(pages(1003, 200)));
  const RunsWriter::Frame frame = writer.take();
  CHECK(frame.payload == bytes({0, 1, 2, 0xc8, 0x01}));
  CHECK(frame.header.type == FrameType::kStale);
  CHECK(frame.header.first == 1000);
  CHECK(frame.header.count == 201);
  CHECK(frame.header.length == 5);
  CHECK(frame.header.payload_crc == base::crc32c(frame.payload));
  CHECK(writer.empty());
}

TEST_CASE("a first gap that is not zero counts from the header's page") {
  const auto got = decode(10, 2, bytes({5, 2}));
  REQUIRE(got.ok());
  CHECK(got.value() == Ranges{pages(15, 2)});
}

TEST_CASE("any set comes back, in as many frames as it needs") {
  std::mt19937_64 random(3);
  Ranges set;
  for (std::uint64_t page = random() % 9; page + 300 < kTotal.value;) {
    const std::uint64_t count = random() % 50 == 0 ? 1 + random() % 299 : 1;
    set.push_back(pages(page, count));
    page += count + 1 + (random() % 200 == 0 ? random() % 5000 : random() % 4);
  }
  REQUIRE(set.size() > 35'000);
  Ranges back;
  RunsWriter writer;
  int frames = 0;
  const auto flush = [&] {
    const RunsWriter::Frame frame = writer.take();
    REQUIRE(frame.payload.size() <= kMaxRunsPayload);
    const auto part = decode_runs(frame.header, frame.payload, kTotal);
    REQUIRE(part.ok());
    back.insert(back.end(), part.value().begin(), part.value().end());
    ++frames;
  };
  for (const PageRange& run : set) {
    if (!writer.add(run)) {
      flush();
      REQUIRE(writer.add(run));
    }
  }
  flush();
  CHECK(back == set);
  CHECK(frames > 1);
}

TEST_CASE("a full payload refuses a run and keeps what it has") {
  RunsWriter writer;
  std::uint64_t page = 0;
  for (; writer.add(pages(page, 1)); page += 2) {
  }
  const RunsWriter::Frame frame = writer.take();
  CHECK(frame.payload.size() == kMaxRunsPayload);
  CHECK(frame.header.count == page / 2);
  CHECK(decode_runs(frame.header, frame.payload, kTotal).ok());
}

TEST_CASE("a run may cover all of memory, however much that is") {
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  RunsWriter writer;
  REQUIRE(writer.add(pages(0, kMost)));
  const RunsWriter::Frame frame = writer.take();
  const auto got = decode_runs(frame.header, frame.payload, PageCount{kMost});
  REQUIRE(got.ok());
  CHECK(got.value() == Ranges{pages(0, kMost)});
}

TEST_CASE("an empty payload is refused") {
  check_corrupt(decode(0, 0, {}), "a payload of 0 bytes, where 2 to 65536 are allowed");
}

TEST_CASE("runs that touch or are empty do not ascend, and are refused") {
  check_corrupt(decode(0, 2, bytes({0, 1, 0, 1})),
                "runs do not ascend: gap 0 and length 1 after page 1");
  check_corrupt(decode(0, 0, bytes({3, 0})), "runs do not ascend: gap 3 and length 0 after page 0");
}

TEST_CASE("a number that is cut off is refused") {
  check_corrupt(decode(0, 1, bytes({0})), "the last number is cut off");
  check_corrupt(decode(0, 1, bytes({0, 0x81})), "the last number is cut off");
}

TEST_CASE("a number of more than 64 bits is refused") {
  const auto ten = [](unsigned last) {
    return bytes({0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, last, 1});
  };
  check_corrupt(decode(0, 1, ten(2)), "a number does not fit into 64 bits");
  check_corrupt(decode(0, 1, ten(0x81)), "a number does not fit into 64 bits");
  check_corrupt(decode(0, 1, ten(1)),
                "gap 9223372036854775808 and length 1 after page 0 lead beyond the 1000000 pages "
                "there are");
}

TEST_CASE("a number that is longer than it need be is refused: each set has one encoding") {
  check_corrupt(decode(0, 1, bytes({0x80, 0x00, 1})), "a number is longer than it need be");
}

TEST_CASE("runs that leave the machine's pages are refused without overflowing") {
  CHECK(decode(999'999, 1, bytes({0, 1})).ok());
  CHECK_FALSE(decode(999'999, 2, bytes({0, 2})).ok());
  CHECK_FALSE(decode(1'000'000, 1, bytes({0, 1})).ok());
  CHECK_FALSE(decode(1'000'001, 1, bytes({0, 1})).ok());
  CHECK_FALSE(decode(std::numeric_limits<std::uint64_t>::max(), 1, bytes({1, 1})).ok());
  CHECK_FALSE(
      decode(0, 1, bytes({0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})).ok());
}

TEST_CASE("runs that do not add up to the header's count are refused") {
  check_corrupt(decode(0, 3, bytes({0, 1, 1, 1})), "the runs name 2 pages, the header says 3");
}

}  // namespace
}  // namespace towline::runtime::wire
