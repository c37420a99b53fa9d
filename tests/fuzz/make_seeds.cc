// Writes the seeds of the wire's fuzz corpora: good inputs made by the codec, and each with one
// kind of damage. Existing files stay as they are.
//
//   make_seeds tests/fuzz/corpus
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/standby_record.h"
#include "runtime/wire/codec.h"
#include "tests/support/sample_frames.h"

namespace {

namespace fs = std::filesystem;
namespace wire = towline::runtime::wire;
using Bytes = std::vector<std::byte>;

class Corpus {
 public:
  explicit Corpus(fs::path folder) : folder_(std::move(folder)) { fs::create_directories(folder_); }

  void add(const std::string& name, const Bytes& bytes) const {
    const fs::path path = folder_ / name;
    if (!fs::exists(path)) {
      std::ofstream(path, std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()),
                 static_cast<std::streamsize>(bytes.size()));
    }
  }

  void add_damaged(const std::string& name, Bytes bytes,
                   const std::function<void(Bytes&)>& damage) const {
    damage(bytes);
    add(name, bytes);
  }

 private:
  fs::path folder_;
};

void put_number(Bytes& bytes, std::uint64_t value) {
  for (unsigned shift = 0; shift < 64; shift += 8) {
    bytes.push_back(static_cast<std::byte>((value >> shift) & 0xffU));
  }
}

void fill(Bytes& bytes, std::size_t offset, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    bytes[offset + i] = std::byte{0xff};
  }
}

void make_headers(const fs::path& root) {
  const Corpus corpus(root / "frame_header");
  for (const towline::tests::SampleFrame& frame : towline::tests::sample_frames()) {
    const wire::HeaderBytes head = wire::encode_header(frame.header);
    const Bytes bytes(head.begin(), head.end());
    corpus.add(frame.name, bytes);
    corpus.add_damaged(frame.name + "-length", bytes,
                       [](Bytes& bad) { fill(bad, wire::kOffsetLength, 4); });
    corpus.add_damaged(frame.name + "-count", bytes,
                       [](Bytes& bad) { fill(bad, wire::kOffsetCount, 8); });
    corpus.add_damaged(frame.name + "-flags", bytes,
                       [](Bytes& bad) { fill(bad, wire::kOffsetFlags, 2); });
  }
  const wire::HeaderBytes run = wire::encode_header({.type = wire::FrameType::kRun});
  const Bytes bytes(run.begin(), run.end());
  corpus.add("empty", {});
  corpus.add_damaged("truncated", bytes, [](Bytes& bad) { bad.resize(17); });
  corpus.add_damaged("unknown-type", bytes, [](Bytes& bad) { fill(bad, wire::kOffsetType, 2); });
  corpus.add_damaged("first-page", bytes, [](Bytes& bad) { fill(bad, wire::kOffsetFirst, 8); });
  corpus.add_damaged("checksum", bytes, [](Bytes& bad) { fill(bad, wire::kOffsetHeaderCrc, 4); });
}

void make_greetings(const fs::path& root, const std::string& name, const Bytes& good) {
  const Corpus corpus(root / name);
  corpus.add("good", good);
  corpus.add("empty", {});
  corpus.add_damaged("truncated", good, [](Bytes& bad) { bad.pop_back(); });
  corpus.add_damaged("magic-only", good, [](Bytes& bad) { bad.resize(8); });
  corpus.add_damaged("grown", good, [](Bytes& bad) { bad.resize(wire::kMaxHandshakePayload); });
  corpus.add_damaged("too-long", good,
                     [](Bytes& bad) { bad.resize(wire::kMaxHandshakePayload + 1); });
  corpus.add_damaged("magic", good, [](Bytes& bad) { fill(bad, 0, 1); });
  corpus.add_damaged("versions", good, [](Bytes& bad) { fill(bad, 8, 4); });
  corpus.add_damaged("enums", good, [](Bytes& bad) { fill(bad, 10, 4); });
  corpus.add_damaged("flags", good, [](Bytes& bad) { fill(bad, 14, 2); });
  corpus.add_damaged("attempt", good, [](Bytes& bad) { fill(bad, 72, 4); });
}

Bytes runs_input(std::uint64_t first, std::uint64_t count, std::uint64_t total,
                 std::initializer_list<unsigned> payload) {
  Bytes bytes;
  put_number(bytes, first);
  put_number(bytes, count);
  put_number(bytes, total);
  for (const unsigned value : payload) {
    bytes.push_back(static_cast<std::byte>(value));
  }
  return bytes;
}

void make_runs(const fs::path& root) {
  constexpr std::uint64_t kMost = ~std::uint64_t{0};
  const Corpus corpus(root / "runs");
  corpus.add("one", runs_input(5, 1, 100, {0, 1}));
  corpus.add("three", runs_input(5, 303, 2000, {0, 1, 1, 2, 0xdf, 0x07, 0xac, 0x02}));
  corpus.add("first-gap", runs_input(5, 2, 100, {7, 2}));
  corpus.add("all", runs_input(0, kMost, kMost,
                               {0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}));
  corpus.add("empty", runs_input(0, 0, 100, {}));
  corpus.add("no-head", {});
  corpus.add("touching", runs_input(0, 2, 100, {0, 1, 0, 1}));
  corpus.add("no-length", runs_input(0, 0, 100, {1, 0}));
  corpus.add("cut-off", runs_input(0, 1, 100, {0, 0x80}));
  corpus.add("overlong", runs_input(0, 1, 100, {0x80, 0, 1}));
  corpus.add("65-bits",
             runs_input(0, 1, kMost, {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2, 1}));
  corpus.add("beyond", runs_input(99, 2, 100, {0, 2}));
  corpus.add("overflow", runs_input(kMost, 1, kMost,
                                    {0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}));
  corpus.add("count", runs_input(0, 7, 100, {0, 1, 1, 1}));
  const towline::tests::SampleFrame& stale = towline::tests::sample_frame("stale");
  Bytes sample = runs_input(stale.header.first, stale.header.count, 1U << 20U, {});
  sample.insert(sample.end(), stale.payload.begin(), stale.payload.end());
  corpus.add("sample", sample);
}

towline::runtime::StandbyRecord small_record() {
  towline::runtime::StandbyRecord record;
  record.session_secret.resize(32);
  record.target = towline::runtime::Uri::parse("tcp:192.0.2.7:4444").value();
  record.options.alternates = {towline::runtime::Uri::parse("unix:/a").value()};
  record.options.secret = std::string(9, 's');
  record.regions.push_back({.name = "ram.low", .size = 8192, .page_size = 4096});
  record.regions.push_back(
      {.name = "ram.high", .start = 1UL << 32U, .size = 4096, .page_size = 4096, .file = 1});
  return record;
}

void make_standby_records(const fs::path& root) {
  const Corpus corpus(root / "standby_record");
  using Change = std::function<void(towline::runtime::StandbyRecord&)>;
  const auto add = [&corpus](const std::string& name, const Change& change) {
    auto record = small_record();
    change(record);
    corpus.add(name, towline::runtime::encode_record(record).value());
  };
  add("small", [](auto&) {});
  add("no-regions", [](auto& record) { record.regions.clear(); });
  add("third-file", [](auto& record) { record.regions[1].file = 2; });
  add("half-page", [](auto& record) { record.regions[0].size = 6000; });
  add("overflow", [](auto& record) { record.regions[0].start = ~0ULL; });
  add("huge", [](auto& record) { record.regions[0].size = ~0ULL << 12U; });
  add("no-lane", [](auto& record) { record.options.bulk_lanes = 0; });
  add("short-secret", [](auto& record) { record.session_secret.resize(3); });
  Bytes good = towline::runtime::encode_record(small_record()).value();
  corpus.add_damaged("cut", good, [](Bytes& bad) { bad.resize(bad.size() / 2); });
  corpus.add("empty", {});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    (void)std::fprintf(stderr, "usage: make_seeds FOLDER\n");
    return 2;
  }
  const fs::path root(argv[1]);
  make_headers(root);
  make_greetings(root, "hello", towline::tests::sample_frame("hello").payload);
  const Corpus greetings(root / "hello");
  const Bytes proven = towline::tests::sample_frame("hello-proven").payload;
  greetings.add("proven", proven);
  greetings.add_damaged("proof-cut", proven, [](Bytes& bad) { bad.pop_back(); });
  greetings.add_damaged("proof-of-ones", proven, [](Bytes& bad) { fill(bad, 80, 32); });
  make_greetings(root, "hello_reply", towline::tests::sample_frame("hello-reply").payload);
  make_runs(root);
  make_standby_records(root);
  return 0;
}
