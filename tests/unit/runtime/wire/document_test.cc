// docs/wire-format.md is normative: what it shows must be what the codec does.
#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "runtime/wire/frame_rules.h"
#include "source_root.h"
#include "tests/support/sample_frames.h"

namespace towline::runtime::wire {
namespace {

std::vector<std::string> lines_of_document() {
  std::ifstream file(TOWLINE_SOURCE_ROOT "/docs/wire-format.md");
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    lines.push_back(line);
  }
  return lines;
}

std::vector<std::byte> bytes_of(const std::string& line) {
  std::istringstream words(line.substr(0, line.find(';')));
  std::vector<std::byte> bytes;
  for (std::string word; words >> word;) {
    bytes.push_back(static_cast<std::byte>(std::stoul(word, nullptr, 16)));
  }
  return bytes;
}

/// The blocks that begin with ```hex NAME.
std::map<std::string, std::vector<std::byte>> worked_bytes() {
  static const std::string kFence = "```hex ";
  std::map<std::string, std::vector<std::byte>> blocks;
  std::vector<std::byte>* open = nullptr;
  for (const std::string& line : lines_of_document()) {
    if (line.rfind(kFence, 0) == 0) {
      open = &blocks[line.substr(kFence.size())];
    } else if (line == "```") {
      open = nullptr;
    } else if (open != nullptr) {
      const auto bytes = bytes_of(line);
      open->insert(open->end(), bytes.begin(), bytes.end());
    }
  }
  return blocks;
}

std::string lanes_of(const FrameRule& rule) {
  if (rule.lanes == kOnAny) {
    return "any";
  }
  return rule.lanes == kOnControl ? "control" : rule.lanes == kOnUrgent ? "urgent" : "bulk";
}

std::string number(std::uint64_t value) {
  return value == kAnyCount ? "any" : std::to_string(value);
}

std::string range(std::uint64_t low, std::uint64_t high) {
  return low == high ? number(low) : number(low) + ".." + number(high);
}

std::string flags_of(const FrameRule& rule) {
  std::string names;
  const auto add = [&](FrameFlags flag, const char* name) {
    if ((rule.flags & flag) != 0) {
      names += (names.empty() ? "" : ", ") + std::string(name);
    }
  };
  add(kFlagDemanded, "demanded");
  add(kFlagFinal, "final");
  add(kFlagSweep, "sweep");
  add(kFlagBitmap, "bitmap");
  return names.empty() ? "-" : names;
}

std::string row_of(const FrameRule& rule) {
  return fmt::format("| {} | {} | {} | {} | {} | {} | {} |", static_cast<unsigned>(rule.type),
                     to_string(rule.type), lanes_of(rule), to_string(rule.direction),
                     range(rule.min_length, rule.max_length), range(rule.min_count, rule.max_count),
                     flags_of(rule));
}

TEST_CASE("the document's table of frames is the codec's, in both directions") {
  std::set<std::string> expected;
  for (const FrameRule& rule : kFrameRules) {
    expected.insert(row_of(rule));
  }
  std::set<std::string> found;
  for (const std::string& line : lines_of_document()) {
    const bool seven_columns = std::count(line.begin(), line.end(), '|') == 8;
    if (seven_columns && line.size() > 2 && std::isdigit(line[2]) != 0) {
      found.insert(line);
    }
  }
  CHECK(found == expected);
}

TEST_CASE("the document's worked bytes are what the codec makes of the samples") {
  const auto blocks = worked_bytes();
  CHECK(blocks.size() >= 9);
  for (const auto& [name, shown] : blocks) {
    CAPTURE(name);
    std::vector<std::byte> made = tests::sample_frame(name).bytes();
    REQUIRE(shown.size() >= kHeaderBytes);
    if (shown.size() == kHeaderBytes) {
      made.resize(kHeaderBytes);  // Pages: the head alone.
    }
    CHECK(shown == made);
  }
}

}  // namespace
}  // namespace towline::runtime::wire
