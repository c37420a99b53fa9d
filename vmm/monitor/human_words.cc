#include "vmm/monitor/human_words.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <utility>

#include <fmt/format.h>

#include "runtime/parameters.h"
#include "vmm/monitor/command_arguments.h"
#include "vmm/monitor/qemu_parameters.h"

namespace towline::monitor {
namespace {

using runtime::Parameter;

constexpr std::string_view kBlanks = " \t\r\n";

std::optional<int> shift_of(char suffix) {
  switch (suffix) {
    case 'b':
    case 'B':
      return 0;
    case 'k':
    case 'K':
      return 10;
    case 'm':
    case 'M':
      return 20;
    case 'g':
    case 'G':
      return 30;
    case 't':
    case 'T':
      return 40;
    default:
      return std::nullopt;
  }
}

std::optional<std::uint64_t> size_word(std::string_view word, int usual_shift) {
  int shift = usual_shift;
  if (!word.empty()) {
    if (const auto suffix = shift_of(word.back())) {
      shift = *suffix;
      word.remove_suffix(1);
    }
  }
  double number = 0;
  const auto read =
      std::from_chars(word.data(), word.data() + word.size(), number, std::chars_format::fixed);
  constexpr double kTooMuch = 18446744073709551616.0;  // 2^64
  if (read.ec != std::errc() || read.ptr != word.data() + word.size() || word.empty()) {
    return std::nullopt;
  }
  number = std::ldexp(number, shift);
  if (number < 0 || number >= kTooMuch) {
    return std::nullopt;
  }
  return static_cast<std::uint64_t>(number);
}

std::optional<std::uint64_t> whole_word(std::string_view word) {
  std::uint64_t number = 0;
  const auto read = std::from_chars(word.data(), word.data() + word.size(), number);
  if (read.ec != std::errc() || read.ptr != word.data() + word.size()) {
    return std::nullopt;
  }
  return number;
}

base::Err<base::Error> no_value(std::string_view parameter, std::string_view expects,
                                std::string_view word) {
  return refuse(fmt::format("Parameter '{}' expects {}, not '{}'", parameter, expects, word));
}

base::Expected<Json> boolean_value(std::string_view parameter, std::string_view word) {
  const auto value = boolean_word(word);
  return value ? base::Expected<Json>(Json(*value)) : no_value(parameter, "'on' or 'off'", word);
}

/// What a number may look like.
enum class Numbers : std::uint8_t { kPlain, kBytes, kMebibytes };

base::Expected<Json> number_value(std::string_view parameter, std::string_view word,
                                  Numbers numbers) {
  const bool size = numbers != Numbers::kPlain;
  // Whole numbers of bytes are read exactly: a double holds 53 bits of them.
  auto value = numbers == Numbers::kMebibytes ? std::nullopt : whole_word(word);
  if (!value && size) {
    value = size_word(word, numbers == Numbers::kMebibytes ? 20 : 0);
  }
  return value ? base::Expected<Json>(Json(*value))
               : no_value(parameter,
                          size ? "a size (a number, and B, K, M, G or T behind it)" : "a number",
                          word);
}

Json list_value(std::string_view word) {
  Json list = Json::array();
  while (!word.empty()) {
    const std::size_t comma = word.find(',');
    list.add(std::string(word.substr(0, comma)));
    word = comma == std::string_view::npos ? std::string_view() : word.substr(comma + 1);
  }
  return list;
}

Numbers numbers_of(const Parameter& parameter) {
  const bool size = parameter.unit == Parameter::Unit::kBytes ||
                    parameter.unit == Parameter::Unit::kBytesPerSecond;
  return parameter.in_mebibytes ? Numbers::kMebibytes : size ? Numbers::kBytes : Numbers::kPlain;
}

base::Expected<Json> value_for(const Parameter& parameter, std::string_view name,
                               std::string_view word) {
  switch (parameter.place.type) {
    case Parameter::Type::kBoolean:
      return boolean_value(name, word);
    case Parameter::Type::kNumber:
      return number_value(name, word, numbers_of(parameter));
    case Parameter::Type::kChoice:
    case Parameter::Type::kPageServer:
      return Json(word);
    case Parameter::Type::kAddresses:
      return list_value(word);
  }
  __builtin_unreachable();
}

}  // namespace

base::Expected<std::vector<std::string>> split_words(std::string_view line) {
  std::vector<std::string> words;
  std::size_t at = line.find_first_not_of(kBlanks);
  while (at != std::string_view::npos) {
    if (line[at] != '"') {
      const std::size_t end = std::min(line.find_first_of(kBlanks, at), line.size());
      words.emplace_back(line.substr(at, end - at));
      at = line.find_first_not_of(kBlanks, end);
      continue;
    }
    std::string word;
    for (++at; at < line.size() && line[at] != '"'; ++at) {
      if (line[at] == '\\' && at + 1 < line.size()) {
        ++at;
      }
      word += line[at];
    }
    if (at >= line.size()) {
      return refuse("a double quote is not closed");
    }
    words.push_back(std::move(word));
    at = line.find_first_not_of(kBlanks, at + 1);
  }
  return words;
}

std::optional<bool> boolean_word(std::string_view word) {
  constexpr std::array<std::pair<std::string_view, bool>, 6> kWords{{{"on", true},
                                                                     {"yes", true},
                                                                     {"true", true},
                                                                     {"off", false},
                                                                     {"no", false},
                                                                     {"false", false}}};
  const auto* const found = std::find_if(kWords.begin(), kWords.end(),
                                         [&](const auto& one) { return one.first == word; });
  return found == kWords.end() ? std::nullopt : std::optional(found->second);
}

base::Expected<Json> parameter_word(std::string_view parameter, std::string_view word) {
  if (const Parameter* known = runtime::find_parameter(parameter)) {
    return value_for(*known, parameter, word);
  }
  const QemuParameter* qemus = find_qemu_parameter(parameter);
  if (qemus == nullptr) {
    return refuse(fmt::format("Parameter '{}' is unexpected; 'info migrate_parameters' lists all",
                              parameter));
  }
  switch (qemus->type) {
    case QemuParameter::Type::kBoolean:
      return boolean_value(parameter, word);
    case QemuParameter::Type::kNumber:
      return number_value(parameter, word,
                          qemus->in_mebibytes ? Numbers::kMebibytes : Numbers::kBytes);
    case QemuParameter::Type::kText:
      return Json(word);
    case QemuParameter::Type::kList:
      return list_value(word);
  }
  __builtin_unreachable();
}

std::string usage(std::string_view name, std::string_view options, std::string_view arguments) {
  std::string text(name);
  for (const char option : options) {
    text += fmt::format(" [-{}]", option);
  }
  return arguments.empty() ? text : fmt::format("{} {}", text, arguments);
}

}  // namespace towline::monitor
