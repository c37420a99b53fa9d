// docs/operating.md shows the table of parameters. With TOWLINE_WRITE_DOCS=1 in the environment it
// is rendered anew.
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "runtime/parameters.h"
#include "source_root.h"

namespace towline::runtime {
namespace {

constexpr const char* kDocument = TOWLINE_SOURCE_ROOT "/docs/operating.md";
constexpr const char* kBegin = "<!-- parameters -->\n";
constexpr const char* kEnd = "<!-- end of parameters -->\n";

std::string values(const Parameter& parameter) {
  if (parameter.place.type != Parameter::Type::kNumber) {
    return permitted(parameter);
  }
  if (parameter.most == std::numeric_limits<std::uint64_t>::max()) {
    return "any number of bytes/s";
  }
  return fmt::format("{} to {}", parameter.least, to_string(parameter, parameter.most));
}

std::string option(const Parameter& parameter) {
  switch (parameter.on) {
    case Parameter::On::kNothing:
      return "";
    case Parameter::On::kRun:
      return fmt::format("`run {}`", parameter.option);
    case Parameter::On::kMigrate:
      return fmt::format("`migrate {}`", parameter.option);
    case Parameter::On::kRunAndMigrate:
      return fmt::format("`run {0}`, `migrate {0}`", parameter.option);
  }
  __builtin_unreachable();
}

std::string rendered() {
  std::string table =
      "| parameter | default | values | end | may change | option of `towline` | meaning |\n"
      "| --- | --- | --- | --- | --- | --- | --- |\n";
  for (const Parameter& one : parameters()) {
    std::string usual = to_string(one, default_of(one));
    if (!one.for_migrate.empty()) {
      usual += fmt::format("; `towline migrate`: {}", one.for_migrate);
    }
    const std::string also = one.also.empty() ? "" : fmt::format(" or `{}`", one.also);
    table +=
        fmt::format("| `{}`{} | {} | {} | {} | {} | {} | {} |\n", one.name, also, usual,
                    values(one), to_string(one.end), to_string(one.change), option(one), one.help);
  }
  return table;
}

std::string whole_document() {
  std::ifstream file(kDocument);
  std::stringstream all;
  all << file.rdbuf();
  return all.str();
}

TEST_CASE("docs/operating.md shows the table of parameters as it is") {
  std::string document = whole_document();
  std::size_t begin = document.find(kBegin);
  const std::size_t end = document.find(kEnd);
  REQUIRE(begin != std::string::npos);
  REQUIRE(end != std::string::npos);
  begin += std::string(kBegin).size();
  const std::string table = rendered();
  if (std::getenv("TOWLINE_WRITE_DOCS") != nullptr) {  // NOLINT(concurrency-mt-unsafe): one thread.
    std::ofstream(kDocument) << document.replace(begin, end - begin, table);
    return;
  }
  CHECK_MESSAGE(document.substr(begin, end - begin) == table,
                "render it anew: TOWLINE_WRITE_DOCS=1 build/plain/tests/unit/unit_tests "
                "--source-file='*parameters_document*'");
}

}  // namespace
}  // namespace towline::runtime
