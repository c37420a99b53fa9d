#include <algorithm>
#include <atomic>
#include <optional>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "base/thread.h"
#include "runtime/core/page_map.h"
#include "runtime/wire/codec.h"

namespace towline::runtime::wire {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using Runs = std::vector<PageRange>;

NextMissing over(const Runs& runs) {
  return [&runs](PageIndex at, PageCount limit) -> std::optional<PageRange> {
    for (const PageRange& run : runs) {
      if (run.end() > at) {
        const PageIndex first = std::max(run.first, at);
        return PageRange{first, PageCount{std::min(limit.value, run.end().value - first.value)}};
      }
    }
    return std::nullopt;
  };
}

struct Sent {
  std::vector<MissingFrame> frames;
  std::uint64_t bytes = 0;
};

Sent encode_all(const NextMissing& next, PageCount total) {
  Sent sent;
  PageIndex at{0};
  while (auto frame = encode_missing(next, at, total)) {
    at = frame->next;
    sent.bytes += kHeaderBytes + frame->payload.size();
    sent.frames.push_back(*std::move(frame));
  }
  return sent;
}

/// What the frames name, neighbours joined.
Runs decode_all(const Sent& sent, PageCount total) {
  Runs runs;
  for (const MissingFrame& frame : sent.frames) {
    const auto decoded = decode_missing(frame.header, frame.payload, total);
    REQUIRE(decoded.ok());
    for (const PageRange& run : decoded.value()) {
      if (!runs.empty() && runs.back().end() == run.first) {
        runs.back().count.value += run.count.value;
      } else {
        runs.push_back(run);
      }
    }
  }
  return runs;
}

TEST_CASE("what is missing arrives as it was, however it is encoded") {
  std::mt19937_64 random(7);
  for (const std::uint64_t longest : {1U, 3U, 50U, 100'000U}) {
    const PageCount total{3 * kMaxPagesPerBitmap + 77};
    Runs runs;
    std::uint64_t at = random() % 5;
    while (at < total.value && runs.size() < 40'000) {
      const std::uint64_t count = std::min(1 + random() % longest, total.value - at);
      runs.push_back(PageRange{PageIndex{at}, PageCount{count}});
      at += count + 1 + random() % longest;
    }
    std::size_t cursor = 0;
    const NextMissing next = [&](PageIndex from, PageCount limit) -> std::optional<PageRange> {
      while (cursor < runs.size() && runs[cursor].end() <= from) {
        ++cursor;
      }
      if (cursor == runs.size()) {
        return std::nullopt;
      }
      const PageIndex first = std::max(runs[cursor].first, from);
      return PageRange{first,
                       PageCount{std::min(limit.value, runs[cursor].end().value - first.value)}};
    };
    CHECK(decode_all(encode_all(next, total), total) == runs);
  }
}

TEST_CASE("nothing missing is no frame, and everything missing is a small one") {
  const PageCount total{1U << 20U};
  CHECK(encode_all(over({}), total).frames.empty());
  const Runs all{PageRange{PageIndex{0}, total}};
  CHECK(decode_all(encode_all(over(all), total), total) == all);
  CHECK(encode_all(over(all), total).bytes < 100);
}

TEST_CASE("the worst set of a tebibyte takes no more than a bit for each page, and one per cent") {
  // Every second page. A sixteenth of it, because the bound holds for each frame by itself.
  const PageCount total{(1ULL << 28U) / 16};
  const NextMissing every_second = [total](PageIndex at, PageCount) -> std::optional<PageRange> {
    const std::uint64_t page = at.value + at.value % 2;
    return page >= total.value ? std::nullopt
                               : std::optional(PageRange{PageIndex{page}, PageCount{1}});
  };
  const Sent sent = encode_all(every_second, total);
  CHECK(sent.bytes <= (32ULL << 20U) / 16 * 101 / 100);
  for (const MissingFrame& frame : sent.frames) {
    CHECK(frame.payload.size() <= kMaxRunsPayload);
  }
}

TEST_CASE("a claim that is given up beside a run already told is told with it") {
  constexpr std::uint64_t kPages = 64;
  PageMap map(PageCount{kPages});
  const PageRange brought{PageIndex{8}, PageCount{4}};
  REQUIRE(map.claim_run(brought) == brought.count);
  int asked = 0;
  const NextMissing next = [&](PageIndex at, PageCount limit) {
    const auto run = map.next_missing(at, limit);
    if (++asked == 1) {
      map.abandon(brought);  // Between two looks at the map: there was no room for it.
    }
    return run;
  };
  const Sent sent = encode_all(next, PageCount{kPages});
  REQUIRE(sent.frames.size() == 1);
  const auto& frame = sent.frames.front();
  // As one run: an older end refuses runs that touch.
  const auto decoded = decode_missing(frame.header, frame.payload, PageCount{kPages});
  REQUIRE(decoded.ok());
  CHECK(decoded.value() == Runs{PageRange{PageIndex{0}, PageCount{kPages}}});
}

TEST_CASE("what is told while pages come and are given up names each page at most once") {
  // Word for word beside each other, so that claims begin and end at every place of a run. What
  // nobody ever claims must be told; what is told must be sound, however the map moved meanwhile.
  constexpr std::uint64_t kPages = 4096;
  constexpr std::uint64_t kUnit = 8;
  PageMap map(PageCount{kPages});
  std::atomic<bool> over{false};
  std::vector<base::NamedThread> bearers;
  bearers.reserve(2);
  for (std::uint64_t number = 0; number < 2; ++number) {
    bearers.emplace_back("bearer", [&, number] {
      // Many claims at a time, so that the one who tells always meets some, and some of these end
      // between two of its looks.
      std::mt19937_64 random(number);
      std::vector<PageRange> held;
      while (!over) {
        for (std::uint64_t unit = number; unit < kPages / kUnit; unit += 2) {
          // The first page of each unit is nobody's.
          const PageRange range{PageIndex{unit * kUnit + 1}, PageCount{1 + random() % (kUnit - 1)}};
          if (const PageCount claimed = map.claim_run(range); claimed.value != 0) {
            held.push_back(PageRange{range.first, claimed});
          }
        }
        for (; !held.empty(); held.pop_back()) {
          map.abandon(held.back());
        }
      }
    });
  }
  for (int round = 0; round < 500; ++round) {
    const Sent sent =
        encode_all([&map](PageIndex at, PageCount limit) { return map.next_missing(at, limit); },
                   PageCount{kPages});
    std::vector<int> told(kPages, 0);
    for (const MissingFrame& frame : sent.frames) {
      const auto decoded = decode_missing(frame.header, frame.payload, PageCount{kPages});
      REQUIRE(decoded.ok());
      for (const PageRange& run : decoded.value()) {
        for (std::uint64_t page = run.first.value; page < run.end().value; ++page) {
          ++told[page];
        }
      }
    }
    CHECK(*std::max_element(told.begin(), told.end()) == 1);
    for (std::uint64_t page = 0; page < kPages; page += kUnit) {
      CHECK(told[page] == 1);
    }
  }
  over = true;
  for (base::NamedThread& bearer : bearers) {
    bearer.join();
  }
}

TEST_CASE("a bitmap that lies is corrupt") {
  const std::vector<std::byte> bits{std::byte{0b101}};
  FrameHeader header;
  header.type = FrameType::kMissing;
  header.flags = kFlagBitmap;
  header.first = 8;
  header.count = 2;
  REQUIRE(decode_missing(header, bits, PageCount{16}).ok());
  CHECK_FALSE(decode_missing(header, bits, PageCount{10}).ok());  // Beyond the machine.
  CHECK_FALSE(decode_missing(header, {}, PageCount{16}).ok());
  header.count = 3;
  CHECK_FALSE(decode_missing(header, bits, PageCount{16}).ok());
  header.count = 2;
  header.first = 16;
  CHECK_FALSE(decode_missing(header, bits, PageCount{16}).ok());
  header.first = ~std::uint64_t{0};
  CHECK_FALSE(decode_missing(header, bits, PageCount{16}).ok());
  // Page numbers that would wrap round to small ones.
  header.first = ~std::uint64_t{0} - 1;
  CHECK_FALSE(decode_missing(header, bits, PageCount{~std::uint64_t{0}}).ok());
}

}  // namespace
}  // namespace towline::runtime::wire
