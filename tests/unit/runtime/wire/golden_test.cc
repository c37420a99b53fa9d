// The frames as they were released. The files are never edited: a change that breaks one of these
// cases is a change of the wire format and needs a new version (docs/wire-format.md).
//
// TOWLINE_WRITE_GOLDEN=1 in the environment writes the files that do not exist yet.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include "base/crc32c.h"
#include "source_root.h"
#include "tests/support/sample_frames.h"

namespace towline::runtime::wire {
namespace {

namespace fs = std::filesystem;

const fs::path kFolder = fs::path(TOWLINE_SOURCE_ROOT) / "tests" / "golden" / "v1";

fs::path file_of(const tests::SampleFrame& frame) {
  return kFolder / (frame.name + ".bin");
}

std::vector<std::byte> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> chars{std::istreambuf_iterator<char>(file), {}};
  const auto bytes = std::as_bytes(std::span(chars));
  return {bytes.begin(), bytes.end()};
}

void write_missing_files() {
  fs::create_directories(kFolder);
  for (const tests::SampleFrame& frame : tests::sample_frames()) {
    if (!fs::exists(file_of(frame))) {
      const std::vector<std::byte> bytes = frame.bytes();
      std::ofstream(file_of(frame), std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()),
                 static_cast<std::streamsize>(bytes.size()));
    }
  }
}

TEST_CASE("every frame is encoded as it was when version 1 was released") {
  if (std::getenv("TOWLINE_WRITE_GOLDEN") != nullptr) {  // NOLINT(concurrency-mt-unsafe)
    write_missing_files();
  }
  for (const tests::SampleFrame& frame : tests::sample_frames()) {
    CAPTURE(frame.name);
    const std::vector<std::byte> released = read_file(file_of(frame));
    REQUIRE_FALSE(released.empty());
    CHECK(frame.bytes() == released);
  }
}

TEST_CASE("every frame released with version 1 is still understood") {
  for (const tests::SampleFrame& frame : tests::sample_frames()) {
    CAPTURE(frame.name);
    const std::vector<std::byte> released = read_file(file_of(frame));
    REQUIRE(released.size() >= kHeaderBytes);
    const auto header =
        decode_header(std::span(released).first<kHeaderBytes>(), frame.lane, frame.direction);
    REQUIRE(header.ok());
    CHECK(header.value() == frame.header);
    const auto payload = std::span(released).subspan(kHeaderBytes);
    CHECK(payload.size() == header.value().length);
    CHECK(base::crc32c(payload) == header.value().payload_crc);
  }
}

TEST_CASE("no golden file is left without a frame that it stands for") {
  std::set<std::string> expected;
  for (const tests::SampleFrame& frame : tests::sample_frames()) {
    expected.insert(frame.name + ".bin");
  }
  std::set<std::string> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(kFolder)) {
    found.insert(entry.path().filename());
  }
  CHECK(found == expected);
}

}  // namespace
}  // namespace towline::runtime::wire
