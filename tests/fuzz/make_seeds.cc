// Writes the seeds of the wire's fuzz corpora: good inputs made by the codec, and each with one
// kind of damage. Existing files stay as they are.
//
//   make_seeds tests/fuzz/corpus
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/core/description.h"
#include "runtime/standby/ledger.h"
#include "runtime/standby/record.h"
#include "runtime/wire/codec.h"
#include "runtime/wire/frame_rules.h"
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

Bytes description(const std::function<void(towline::runtime::Description&)>& change) {
  towline::runtime::Description said;
  said.bulk_lanes = 2;
  said.secret.resize(32);
  said.regions.push_back({.name = "ram.low", .size = 1U << 20U, .page_size = 4096});
  change(said);
  const auto encoded = towline::runtime::encode_description(said);
  return encoded.ok() ? encoded.value() : Bytes{};
}

void make_descriptions(const fs::path& root) {
  const Corpus corpus(root / "description");
  const Bytes good = description([](auto&) {});
  corpus.add("good", good);
  corpus.add("other-size", description([](auto& said) { said.regions[0].size = 8192; }));
  corpus.add("no-lane", description([](auto& said) { said.bulk_lanes = 0; }));
  corpus.add("many-lanes", description([](auto& said) { said.bulk_lanes = ~0ULL; }));
  corpus.add("short-secret", description([](auto& said) { said.secret.resize(3); }));
  corpus.add("no-regions", description([](auto& said) { said.regions.clear(); }));
  corpus.add("half-page", description([](auto& said) { said.regions[0].size = 6000; }));
  corpus.add("no-page", description([](auto& said) { said.regions[0].page_size = 0; }));
  corpus.add_damaged("cut", good, [](Bytes& bad) { bad.resize(bad.size() / 2); });
  corpus.add("empty", {});
}

// One byte for the lane (0 control, 1 urgent, 2 bulk) and the direction (4: to the source), then
// the stream.
void make_lanes(const fs::path& root) {
  const Corpus corpus(root / "lane");
  std::vector<Bytes> streams(8);
  for (const towline::tests::SampleFrame& frame : towline::tests::sample_frames()) {
    const wire::FrameRule* rule = wire::find_rule(frame.header.type);
    for (unsigned lane = 0; lane < 3; ++lane) {
      const unsigned way = rule->direction == wire::Direction::kToSource ? 4 : 0;
      if (((rule->lanes >> lane) & 1U) == 0) {
        continue;
      }
      Bytes& stream = streams[lane + way];
      const wire::HeaderBytes head = wire::encode_header(frame.header);
      stream.insert(stream.end(), head.begin(), head.end());
      stream.insert(stream.end(), frame.payload.begin(), frame.payload.end());
    }
  }
  for (unsigned which = 0; which < streams.size(); ++which) {
    Bytes& stream = streams[which];
    if (stream.empty()) {
      continue;
    }
    stream.insert(stream.begin(), static_cast<std::byte>(which));
    const std::string name = "stream-" + std::to_string(which);
    corpus.add(name, stream);
    corpus.add_damaged(name + "-cut", stream, [](Bytes& bad) { bad.pop_back(); });
    corpus.add_damaged(name + "-length", stream,
                       [](Bytes& bad) { fill(bad, 1 + wire::kOffsetLength, 4); });
  }
  corpus.add("nothing", {std::byte{0}});
}

void add_frame(Bytes& stream, wire::FrameHeader header, std::size_t payload) {
  header.length = static_cast<std::uint32_t>(payload);
  const wire::HeaderBytes head = wire::encode_header(header);
  stream.insert(stream.end(), head.begin(), head.end());
  stream.resize(stream.size() + payload, std::byte{7});
}

// One byte for lane and time (1: urgent, 2: after the switch), one for how often there is no room.
void make_target_lanes(const fs::path& root) {
  using wire::FrameType;
  const Corpus corpus(root / "target_lanes");
  for (const unsigned lane : {0U, 1U, 2U, 3U}) {
    const bool after = (lane & 2U) != 0;
    const std::uint32_t round = after ? wire::kPostcopyRound : 1;
    Bytes stream{static_cast<std::byte>(lane), std::byte{0}};
    add_frame(stream, {.type = FrameType::kPages, .first = 2, .count = 2, .round = round}, 8192);
    add_frame(stream, {.type = FrameType::kZeros, .first = 1, .count = 9, .round = round}, 0);
    add_frame(stream, {.type = FrameType::kPages, .first = 3, .count = 1, .round = round}, 4096);
    add_frame(stream,
              {.type = FrameType::kPages,
               .flags = static_cast<std::uint16_t>(after ? wire::kFlagDemanded : 0),
               .first = 70,
               .count = 1,
               .round = round},
              4096);
    if ((lane & 1U) == 0) {
      add_frame(stream, {.type = FrameType::kMarker, .round = round}, 0);
    }
    const std::string name = "lane-" + std::to_string(lane);
    corpus.add(name, stream);
    corpus.add_damaged(name + "-no-room", stream, [](Bytes& bad) { bad[1] = std::byte{2}; });
    corpus.add_damaged(name + "-across", stream, [](Bytes& bad) {
      bad[2 + wire::kOffsetFirst] = std::byte{63};  // Half in one region, half in the next.
    });
    corpus.add_damaged(name + "-cut", stream, [](Bytes& bad) { bad.pop_back(); });
  }
}

void make_handovers(const fs::path& root) {
  const Corpus corpus(root / "handover");
  Bytes offer{std::byte{2}};  // Descriptors.
  put_number(offer, 0x3156484c57544c54);
  put_number(offer, 1U | (1ULL << 32U));  // Version, files.
  corpus.add("good", offer);
  corpus.add_damaged("one-too-few", offer, [](Bytes& bad) { bad[0] = std::byte{1}; });
  corpus.add_damaged("one-too-many", offer, [](Bytes& bad) { bad[0] = std::byte{3}; });
  corpus.add_damaged("version", offer, [](Bytes& bad) { fill(bad, 9, 4); });
  corpus.add_damaged("files", offer, [](Bytes& bad) { fill(bad, 13, 4); });
  corpus.add_damaged("cut", offer, [](Bytes& bad) { bad.pop_back(); });
  corpus.add_damaged("longer", offer, [](Bytes& bad) { bad.resize(2000); });
  Bytes answer{std::byte{0}};
  put_number(answer, 0x3156484c57544c54);
  put_number(answer, 0);
  put_number(answer, 4711);
  for (const char letter : std::string("no room")) {
    answer.push_back(static_cast<std::byte>(letter));
  }
  corpus.add("refusal", answer);
  corpus.add("empty", {});
}

void make_ledgers(const fs::path& root) {
  const Corpus corpus(root / "ledger");
  const Bytes record = towline::runtime::encode_record(small_record()).value();
  const auto made = towline::runtime::StandbyLedger::create(record, 1);
  if (!made.ok() || !made.value().set_address("tcp:192.0.2.7:4444").ok()) {
    return;
  }
  Bytes head(4096 + record.size());
  if (::pread(made.value().fd(), head.data(), head.size(), 0) !=
      static_cast<ssize_t>(head.size())) {
    return;
  }
  corpus.add("good", head);
  corpus.add_damaged("no-magic", head, [](Bytes& bad) { fill(bad, 0, 8); });
  corpus.add_damaged("phase", head, [](Bytes& bad) { fill(bad, 8, 8); });
  corpus.add_damaged("record-bytes", head, [](Bytes& bad) { fill(bad, 32, 8); });
  corpus.add_damaged("state-bytes", head, [](Bytes& bad) { fill(bad, 40, 8); });
  corpus.add_damaged("address-slot", head, [](Bytes& bad) { fill(bad, 88, 8); });
  corpus.add_damaged("second-record", head, [](Bytes& bad) { bad[96] = std::byte{1}; });
  corpus.add_damaged("address-bytes", head, [](Bytes& bad) { fill(bad, 1024, 8); });
  corpus.add("empty", {});
}

// Twelve registers, then memory: page tables of four levels that lead to themselves.
void make_page_tables(const fs::path& root) {
  const Corpus corpus(root / "page_tables");
  for (const std::uint64_t five_levels : {0ULL, 1ULL << 12U}) {
    Bytes bytes;
    const std::array<std::uint64_t, 12> registers{0x1234,      0x5678,    1U << 31U, 0x1000,
                                                  five_levels, 1U << 10U, 0,         0,
                                                  ~0ULL,       0x8000,    0x9000,    0x2000};
    for (const std::uint64_t one : registers) {
      put_number(bytes, one);
    }
    bytes.resize(bytes.size() + 0x1000);
    for (int entry = 0; entry < 512; ++entry) {
      put_number(bytes, 0x1000U | 1U);
    }
    corpus.add(five_levels == 0 ? "four-levels" : "five-levels", bytes);
    corpus.add_damaged(five_levels == 0 ? "four-levels-far" : "five-levels-far", bytes,
                       [](Bytes& bad) { fill(bad, 12 * 8 + 0x1000 + 1, 6); });
  }
  Bytes real_mode;
  put_number(real_mode, 0xfff0);
  corpus.add("real-mode", real_mode);
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
  make_descriptions(root);
  make_lanes(root);
  make_target_lanes(root);
  make_handovers(root);
  make_ledgers(root);
  make_page_tables(root);
  return 0;
}
