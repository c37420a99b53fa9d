#include "vmm/monitor/human_info.h"

#include <array>
#include <cstdint>
#include <string_view>

#include <fmt/format.h>

#include "runtime/parameters.h"

namespace towline::monitor {
namespace {

constexpr std::uint64_t kKbyte = 1024;

/// A number of query-migrate's answer, with the words before and behind it.
struct Figure {
  std::string_view label;
  std::string_view member;
  std::string_view unit;
  std::uint64_t divisor = 1;
};

constexpr std::array kTimes{
    Figure{"total time", "total-time", " ms"},
    Figure{"expected downtime", "expected-downtime", " ms"},
    Figure{"downtime", "downtime", " ms"},
    Figure{"setup", "setup-time", " ms"},
};

constexpr std::array kMemory{
    Figure{"transferred ram", "transferred", " kbytes", kKbyte},
    Figure{"throughput", "mbps", " mbps"},
    Figure{"remaining ram", "remaining", " kbytes", kKbyte},
    Figure{"total ram", "total", " kbytes", kKbyte},
    Figure{"duplicate", "duplicate", " pages"},
    Figure{"skipped", "skipped", " pages"},
    Figure{"normal", "normal", " pages"},
    Figure{"normal bytes", "normal-bytes", " kbytes", kKbyte},
    Figure{"dirty sync count", "dirty-sync-count", ""},
    Figure{"page size", "page-size", " kbytes", kKbyte},
    Figure{"multifd bytes", "multifd-bytes", " kbytes", kKbyte},
    Figure{"pages-per-second", "pages-per-second", ""},
    Figure{"dirty pages rate", "dirty-pages-rate", " pages"},
    Figure{"postcopy request count", "postcopy-requests", ""},
    Figure{"precopy ram", "precopy-bytes", " kbytes", kKbyte},
    Figure{"downtime ram", "downtime-bytes", " kbytes", kKbyte},
    Figure{"postcopy ram", "postcopy-bytes", " kbytes", kKbyte},
};

void add(std::string& text, const Json& from, const Figure& figure) {
  const Json* value = from.find(figure.member);
  if (value == nullptr) {
    return;
  }
  const std::string number = value->whole() ? fmt::format("{}", *value->whole() / figure.divisor)
                                            : fmt::format("{:.2f}", value->number().value_or(0));
  text += fmt::format("{}: {}{}\r\n", figure.label, number, figure.unit);
}

std::string_view on_or_off(const Json* value) {
  return value != nullptr && value->boolean().value_or(false) ? "on" : "off";
}

std::string address_text(const Json& at) {
  const std::string path = text_of(at, "path");
  return path.empty() ? fmt::format("tcp:{}:{}", text_of(at, "host"), text_of(at, "port"))
                      : "unix:" + path;
}

std::string bare(const Json& value) {
  return value.text() != nullptr ? *value.text() : value.dump();
}

}  // namespace

std::string info_migrate(const Json& answer, bool all) {
  const std::string status = text_of(answer, "status");
  if (status.empty()) {
    return {};
  }
  std::string text = fmt::format("Migration status: {}", status);
  if (const std::string why = text_of(answer, "error-desc"); !why.empty()) {
    text += fmt::format(" ({})", why);
  }
  text += "\r\n";
  for (const Figure& figure : kTimes) {
    add(text, answer, figure);
  }
  if (const Json* ram = answer.find("ram")) {
    for (const Figure& figure : kMemory) {
      add(text, *ram, figure);
    }
  }
  const Json* listening = answer.find("socket-address");
  if (listening != nullptr && listening->items() != nullptr && !listening->items()->empty()) {
    text += "socket address: [\r\n";
    for (const Json& at : *listening->items()) {
      text += fmt::format("\t{}\r\n", address_text(at));
    }
    text += "]\r\n";
  }
  const Json* own = answer.find("x-towline");
  if (!all || own == nullptr || own->members() == nullptr) {
    return text;
  }
  for (const Json::Member& member : *own->members()) {
    if (member.name != "log") {
      text += fmt::format("x-towline {}: {}\r\n", member.name, bare(member.value));
    }
  }
  return text;
}

std::string info_capabilities(const Json& answer) {
  std::string text;
  for (const Json& one : *answer.items()) {
    text += fmt::format("{}: {}\r\n", text_of(one, "capability"), on_or_off(one.find("state")));
  }
  return text;
}

std::string info_parameters(const Json& answer) {
  std::string text;
  for (const Json::Member& member : *answer.members()) {
    std::string value = bare(member.value);
    if (member.value.boolean()) {
      value = on_or_off(&member.value);
    } else if (const runtime::Parameter* known = runtime::find_parameter(member.name)) {
      value += runtime::unit_of(*known);
    }
    text += fmt::format("{}: {}\r\n", member.name, value);
  }
  return text;
}

std::string info_status(const Json& answer) {
  const bool runs = answer.find("running")->boolean().value_or(false);
  const std::string status = text_of(answer, "status");
  return fmt::format("VM status: {}{}\r\n", runs ? "running" : "paused",
                     status == "running" || status == "paused" ? "" : " (" + status + ")");
}

}  // namespace towline::monitor
