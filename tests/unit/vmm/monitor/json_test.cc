#include "vmm/monitor/json.h"

#include <cstdint>
#include <limits>
#include <string>

#include <doctest/doctest.h>

namespace towline::monitor {
namespace {

std::string again(const std::string& text) {
  const auto json = Json::parse(text);
  REQUIRE_MESSAGE(json.ok(), text);
  return json.value().dump();
}

std::string refusal(const std::string& text) {
  const auto json = Json::parse(text);
  REQUIRE_FALSE_MESSAGE(json.ok(), text);
  CHECK(json.error().kind == base::ErrorKind::kCorrupt);
  return json.error().detail;
}

TEST_CASE("JSON is written as QEMU writes it, in the order it was put") {
  const Json json = Json::object({{"return", Json::object({{"status", "completed"},
                                                           {"running", true},
                                                           {"list", Json::array().add(1).add(2U)},
                                                           {"mbps", 0.9864},
                                                           {"none", Json()}})}});
  CHECK(json.dump() ==
        R"({"return": {"status": "completed", "running": true, "list": [1, 2], "mbps": 0.9864, )"
        R"("none": null}})");
}

TEST_CASE("JSON for people has a member a line") {
  const Json json = Json::object({{"a", Json::array().add(1)}, {"b", Json::object()}});
  CHECK(json.pretty() == "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}");
}

TEST_CASE("what was read is written back the same") {
  for (const std::string text :
       {R"({"a": [1, -2, 1.5, true, false, null, "x"], "b": {}})", R"([])", R"("\n\"\\")", "7",
        "18446744073709551615", "-9223372036854775808"}) {
    CHECK(again(text) == text);
  }
}

TEST_CASE("text that is not UTF-8 can be written, though not read") {
  CHECK(Json(std::string("a\xff")).dump() == "\"a\xef\xbf\xbd\"");
  refusal("\"a\xff\"");
}

TEST_CASE("broken JSON is refused with the place") {
  for (const std::string text : {"", "{", "{]", "nul", "{\"a\" 1}", "{\"a\": }", "[1,]", "1 2",
                                 "\"a\nb\"", "{1: 2}", "01", "1e999"}) {
    CHECK_FALSE(refusal(text).empty());
  }
  CHECK(refusal("{\"a\": ?}").find("byte 7") != std::string::npos);
}

TEST_CASE("a member that appears twice is refused, because readers differ on which one counts") {
  CHECK(refusal(R"({"a": 1, "b": 2, "a": 3})").find("'a' appears twice") != std::string::npos);
  CHECK(again(R"({"a": {"a": 1}})") == R"({"a": {"a": 1}})");
}

TEST_CASE("nesting is read up to the limit and not beyond it") {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  CHECK(again(nested(kMaxJsonDepth)) == nested(kMaxJsonDepth));
  CHECK(refusal(nested(kMaxJsonDepth + 1)).find("64") != std::string::npos);
  refusal(std::string(1'000'000, '['));
}

TEST_CASE("numbers keep their kind: only what is whole and not negative is a size") {
  CHECK(Json(5).whole() == 5U);
  CHECK(Json(std::numeric_limits<std::uint64_t>::max()).whole() ==
        std::numeric_limits<std::uint64_t>::max());
  CHECK_FALSE(Json(-1).whole());
  CHECK_FALSE(Json(1.0).whole());
  CHECK_FALSE(Json("1").whole());
  CHECK_FALSE(Json(true).whole());
  CHECK(Json(-1).integer() == -1);
  CHECK(Json(7U).integer() == 7);
  CHECK_FALSE(Json(std::numeric_limits<std::uint64_t>::max()).integer());
  CHECK_FALSE(Json(1.0).integer());
  CHECK(Json(-1).number() == -1.0);
  CHECK_FALSE(Json(true).number());
  CHECK(Json(false).boolean() == false);
  CHECK_FALSE(Json(0).boolean());
}

TEST_CASE("a member that is not there reads as what the caller prefers") {
  const Json json = Json::object({{"a", 1}, {"t", "x"}});
  CHECK(whole_of(json, "a") == 1);
  CHECK(whole_of(json, "b", 9) == 9);
  CHECK(text_of(json, "t") == "x");
  CHECK(text_of(json, "a", "other") == "other");
  CHECK(number_of(Json(), "a", 2.5) == 2.5);
  CHECK(json.find("z") == nullptr);
}

TEST_CASE("setting a member again replaces it in its place") {
  Json json = Json::object({{"a", 1}, {"b", 2}});
  json.set("a", 3);
  CHECK(json.dump() == R"({"a": 3, "b": 2})");
}

}  // namespace
}  // namespace towline::monitor
