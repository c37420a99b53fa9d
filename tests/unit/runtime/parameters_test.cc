#include "runtime/parameters.h"

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "source_root.h"

namespace towline::runtime {
namespace {

/// Values that each parameter takes, other than its default.
std::vector<ParameterValue> good_values(const Parameter& parameter) {
  switch (parameter.place.type) {
    case Parameter::Type::kBoolean:
      return {!std::get<bool>(default_of(parameter))};
    case Parameter::Type::kNumber:
      return {parameter.least, parameter.most};
    case Parameter::Type::kChoice: {
      std::vector<ParameterValue> all;
      for (const std::string_view choice : parameter.place.choices) {
        all.emplace_back(std::string(choice));
      }
      return all;
    }
    case Parameter::Type::kPageServer:
      return {std::string("own"), std::string("scope"), std::string("unix:/run/pages")};
    case Parameter::Type::kAddresses:
      return {std::vector<std::string>{"tcp:[::1]:4", "unix:/a"}, std::vector<std::string>{}};
  }
  __builtin_unreachable();
}

/// Values that each parameter refuses: on both sides of its range, if it has one, and one of
/// another type.
std::vector<ParameterValue> bad_values(const Parameter& parameter) {
  std::vector<ParameterValue> bad;
  switch (parameter.place.type) {
    case Parameter::Type::kBoolean:
      return {std::string("true"), std::uint64_t{1}};
    case Parameter::Type::kNumber:
      bad.emplace_back(std::string("1"));
      if (parameter.least > 0) {
        bad.emplace_back(parameter.least - 1);
      }
      if (parameter.most + 1 != 0) {
        bad.emplace_back(parameter.most + 1);
      }
      return bad;
    case Parameter::Type::kChoice:
    case Parameter::Type::kPageServer:
      return {std::string("other"), std::string(), std::uint64_t{0}};
    case Parameter::Type::kAddresses:
      return {std::vector<std::string>{"tcp:host:1", "here"}, std::string("tcp:host:1")};
  }
  __builtin_unreachable();
}

TEST_CASE("every parameter can be set to what its row permits, and read back") {
  for (const Parameter& one : parameters()) {
    for (const ParameterValue& value : good_values(one)) {
      MigrationOptions options;
      CHECK_MESSAGE(set_parameter(options, one, value).ok(), one.name);
      CHECK_MESSAGE(one.place.get(options) == value, one.name);
      for (const Parameter& other : parameters()) {
        const bool untouched = other.place.get(options) == default_of(other);
        CHECK_MESSAGE((untouched || other.name == one.name), one.name << " set " << other.name);
      }
    }
  }
}

TEST_CASE("what a row does not permit is refused on both sides of its range, and nothing is set") {
  for (const Parameter& one : parameters()) {
    for (const ParameterValue& value : bad_values(one)) {
      MigrationOptions options;
      const auto set = set_parameter(options, one, value);
      REQUIRE_MESSAGE(!set.ok(), one.name);
      CHECK(set.error().kind == base::ErrorKind::kRefused);
      CHECK_MESSAGE(set.error().detail.find("use ") != std::string::npos, set.error().detail);
      CHECK_MESSAGE(one.place.get(options) == default_of(one), one.name);
    }
  }
}

TEST_CASE("a row's default is one of the values that it permits") {
  for (const Parameter& one : parameters()) {
    MigrationOptions options;
    CHECK_MESSAGE(set_parameter(options, one, default_of(one)).ok(), one.name);
    CHECK_FALSE(to_string(one, default_of(one)).empty());
    CHECK_FALSE(permitted(one).empty());
    CHECK(find_parameter(one.name) == &one);
    CHECK_MESSAGE(one.help.ends_with('.'), one.help);
    CHECK_MESSAGE((one.on == Parameter::On::kNothing) == one.option.empty(), one.name);
  }
  CHECK(find_parameter("nosuch") == nullptr);
}

TEST_CASE("how a page server is started is kept when a user chooses which") {
  MigrationOptions options;
  options.page_server.command = {"/bin/pages"};
  const Parameter* which = find_parameter("x-towline-page-server");
  REQUIRE(which != nullptr);
  REQUIRE(set_parameter(options, *which, std::string("own")).ok());
  CHECK(options.page_server.kind == PageServerChoice::Kind::kOwn);
  CHECK(options.page_server.command == std::vector<std::string>{"/bin/pages"});
}

TEST_CASE("values are told as people read them") {
  const auto told = [](const char* name, ParameterValue value) {
    return to_string(*find_parameter(name), value);
  };
  CHECK(told("max-bandwidth", 128UL << 20U) == "128 MiB/s");
  CHECK(told("max-bandwidth", 1000UL) == "1000 bytes/s");
  CHECK(told("max-bandwidth", 0UL) == "0");
  CHECK(told("x-towline-memory-reserve", 64UL << 20U) == "64 MiB");
  CHECK(told("x-towline-patience-ms", 250UL) == "250 ms");
  CHECK(told("x-towline-auto-recover", true) == "true");
  CHECK(told("x-towline-alternates", std::vector<std::string>{}) == "[]");
}

TEST_CASE("the log is told what differs from the defaults, and nothing else") {
  MigrationOptions options;
  CHECK(dump(options).empty());
  options.passes = 2;
  options.alternates.push_back(Uri::parse("unix:/a").value());
  options.secret = "s3cret";
  CHECK(dump(options) == "x-towline-passes=2 x-towline-alternates=[unix:/a]");
}

/// The files under `folder` that hold `text`.
std::set<std::string> files_with(const std::string& folder, const std::string& text) {
  std::set<std::string> found;
  const auto root = std::filesystem::path(TOWLINE_SOURCE_ROOT) / folder;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    std::ifstream file(entry.path());
    std::stringstream all;
    all << file.rdbuf();
    if (all.str().find(text) != std::string::npos) {
      found.insert(std::filesystem::relative(entry.path(), TOWLINE_SOURCE_ROOT).string());
    }
  }
  return found;
}

// What QMP and the command line know of a parameter they have from its row. Whoever adds one
// touches parameters.cc (its row), options.h (its member) and the document's table, which is
// rendered.
TEST_CASE("a parameter's name and its option are written in one file of the sources") {
  const std::set<std::string> one_file{"runtime/parameters.cc"};
  for (const Parameter& one : parameters()) {
    for (const std::string_view word : {one.name, one.also, one.option}) {
      if (word.empty()) {
        continue;
      }
      std::set<std::string> found;
      for (const char* const folder : {"base", "runtime", "vmm", "tools"}) {
        found.merge(files_with(folder, "\"" + std::string(word) + "\""));
      }
      CHECK_MESSAGE(found == one_file, word);
    }
  }
}

}  // namespace
}  // namespace towline::runtime
