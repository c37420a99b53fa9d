#include "vmm/monitor/framing.h"

#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace towline::monitor {
namespace {

/// What came out: the texts, and "!" for each problem.
std::vector<std::string> split(const std::vector<std::string>& reads) {
  std::vector<std::string> out;
  JsonSplitter splitter([&](const std::string& text, const std::string& problem) {
    CHECK(text.empty() != problem.empty());
    out.push_back(problem.empty() ? text : "!");
  });
  for (const auto& read : reads) {
    splitter.feed(read);
  }
  return out;
}

using Texts = std::vector<std::string>;

TEST_CASE("messages are cut apart whether or not anything stands between them") {
  CHECK(split({R"({"a": 1}{"b": 2}  {"c": [{}]})"
               "\r\n\n[1]"}) == Texts{R"({"a": 1})", R"({"b": 2})", R"({"c": [{}]})", "[1]"});
}

TEST_CASE("a message may come in any number of reads") {
  const std::string whole = R"({"execute": "a\"}b", 'x': "é"})";
  for (std::size_t cut = 0; cut <= whole.size(); ++cut) {
    CHECK(split({whole.substr(0, cut), whole.substr(cut)}) ==
          Texts{R"({"execute": "a\"}b", "x": "é"})"});
  }
  Texts bytes;
  for (const char byte : whole) {
    bytes.emplace_back(1, byte);
  }
  CHECK(split(bytes).size() == 1);
}

TEST_CASE("brackets and quotes inside strings end nothing") {
  CHECK(split({R"({"a": "}]{[", "b": "\"}", "c": "\\"}{})"}) ==
        Texts{R"({"a": "}]{[", "b": "\"}", "c": "\\"})", "{}"});
}

TEST_CASE("strings in single quotes come out in double quotes") {
  CHECK(split({R"({'execute': 'say "hi"', 'x': 'it\'s'})"}) ==
        Texts{R"({"execute": "say \"hi\"", "x": "it's"})"});
  CHECK(split({R"({"a": "it's"})"}) == Texts{R"({"a": "it's"})"});
}

TEST_CASE("garbage is reported once and skipped to the next message or line") {
  CHECK(split({"hello world\n{}"}) == Texts{"!", "{}"});
  CHECK(split({"hello {\"a\": 1}\n"}) == Texts{"!", R"({"a": 1})"});
  CHECK(split({"}}}\n]]\n{}"}) == Texts{"!", "!", "{}"});
  CHECK(split({"\"text\"\n{}"}) == Texts{"!", "{}"});
  CHECK(split({std::string("\0\1\2\n{}", 6)}) == Texts{"!", "{}"});
}

TEST_CASE("a string that runs over its line drops the message there") {
  CHECK(split({"{\"execute\": \"stop\n{\"b\": 1}\n"}) == Texts{"!", R"({"b": 1})"});
  CHECK(split({"{\"a\": \"\\\n{}"}) == Texts{"!", "{}"});
  CHECK(split({"{\"a\": \"\t\"}\n{}"}) == Texts{"!", "{}"});
}

TEST_CASE("a bracket of the wrong kind drops the message there") {
  CHECK(split({"{\"a\": [1}]}\n{}"}) == Texts{"!", "{}"});
}

TEST_CASE("a byte that no text contains starts afresh") {
  CHECK(split({"{\"a\": {{{ \xff{}"}) == Texts{"!", "{}"});
  CHECK(split({"{\"a\": \"x\xfe{}"}) == Texts{"!", "{}"});
  CHECK(split({"garbage\xff{}"}) == Texts{"!", "{}"});
}

TEST_CASE("the longest message is read and one byte more is refused, without losing the next") {
  const auto message = [](std::size_t size) {
    return "{\"a\": \"" + std::string(size - 9, 'x') + "\"}";
  };
  REQUIRE(message(100).size() == 100);
  const auto longest = split({message(kMaxMessageBytes) + "{}"});
  REQUIRE(longest.size() == 2);
  CHECK(longest[0].size() == kMaxMessageBytes);
  CHECK(longest[1] == "{}");
  for (const std::size_t more : {1U, 2U, 3U, 1000U}) {
    CHECK(split({message(kMaxMessageBytes + more) + "{}"}) == Texts{"!", "{}"});
  }
}

TEST_CASE("a message without an end is reported once, and a line end ends it") {
  CHECK(split({"{\"a\": [" + std::string(3 * kMaxMessageBytes, '1'), "\n{}"}) == Texts{"!", "{}"});
  CHECK(split({"{\"a\": \"" + std::string(3 * kMaxMessageBytes, 'x'), "\n{}"}) == Texts{"!", "{}"});
}

TEST_CASE("nesting beyond the limit is reported once, without losing the next message") {
  const std::string deepest = std::string(kMaxJsonDepth, '[') + std::string(kMaxJsonDepth, ']');
  CHECK(split({deepest}) == Texts{deepest});
  CHECK(split({"[" + deepest + "]{}"}) == Texts{"!", "{}"});
  CHECK(split({std::string(900'000, '[') + "\n{}"}) == Texts{"!", "{}"});
  CHECK(split({std::string(70, '[') + "\"]]]\"" + std::string(70, ']') + "{}"}) ==
        Texts{"!", "{}"});
}

TEST_CASE("whatever bytes come, a message after a reset byte and a line end is read") {
  // A small deterministic generator: every byte value, brackets and quotes often.
  std::uint32_t state = 1;
  const auto next = [&state] { return (state = state * 1664525U + 1013904223U) >> 16U; };
  const std::string likely = "{}[]\"'\\\n:, ab";
  for (int round = 0; round < 2000; ++round) {
    std::string noise;
    for (std::uint32_t left = next() % 40; left > 0; --left) {
      noise += next() % 4 != 0 ? likely[next() % likely.size()] : static_cast<char>(next() % 256);
    }
    const auto out = split({noise, "\xff\n", "{\"a\": 1}"});
    REQUIRE_FALSE(out.empty());
    CHECK_MESSAGE(out.back() == R"({"a": 1})", noise);
  }
}

}  // namespace
}  // namespace towline::monitor
