#include "vmm/monitor/qemu_parameters.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "vmm/monitor/command_arguments.h"

namespace towline::monitor {
namespace {

using Kind = QemuParameter::Kind;
using Type = QemuParameter::Type;

constexpr std::uint64_t kAnySize = std::numeric_limits<std::uint64_t>::max();
// As QEMU does, so that what it accepts is accepted here.
constexpr std::uint64_t kMostAnnounced = 100'000;
constexpr std::uint64_t kMostMilliseconds = 4'294'967'295;

constexpr std::string_view kNoNetworkCard = "the machine has no network card to announce";
constexpr std::string_view kNoThrottle = "the guest is never throttled: no switch waits for that";
constexpr std::string_view kNoEncryption =
    "the migration is not encrypted; send it through a tunnel, and leave this empty";
constexpr std::string_view kNoCompression = "pages are sent as they are";
constexpr std::string_view kOneMode = "the only mode is a move to another process";

constexpr std::array<std::string_view, 3> kZeroPages{"none", "legacy", "multifd"};
constexpr std::array<std::string_view, 1> kNormal{"normal"};
constexpr std::array<std::string_view, 1> kNone{"none"};
constexpr std::array<std::string_view, 1> kEmpty{""};

constexpr QemuParameter inert(std::string_view name, std::string_view usual, std::uint64_t least,
                              std::uint64_t most, std::string_view why, bool newest = true) {
  return {.name = name,
          .kind = Kind::kInert,
          .type = Type::kNumber,
          .usual = usual,
          .least = least,
          .most = most,
          .why = why,
          .newest = newest};
}

constexpr QemuParameter inert_switch(std::string_view name, std::string_view usual,
                                     std::string_view why, bool newest = true) {
  return {.name = name,
          .kind = Kind::kInert,
          .type = Type::kBoolean,
          .usual = usual,
          .why = why,
          .newest = newest};
}

constexpr QemuParameter no_credentials(std::string_view name) {
  return {.name = name,
          .kind = Kind::kOnlyDefault,
          .type = Type::kText,
          .usual = R"("")",
          .any = kEmpty,
          .why = kNoEncryption};
}

constexpr std::array kAll{
    inert("announce-initial", "50", 0, kMostAnnounced, kNoNetworkCard),
    inert("announce-max", "550", 0, kMostAnnounced, kNoNetworkCard),
    inert("announce-rounds", "5", 0, 1000, kNoNetworkCard),
    inert("announce-step", "100", 0, 10'000, kNoNetworkCard),
    inert("throttle-trigger-threshold", "50", 1, 100, kNoThrottle),
    inert("cpu-throttle-initial", "20", 1, 99, kNoThrottle),
    inert("cpu-throttle-increment", "10", 1, 99, kNoThrottle),
    inert_switch("cpu-throttle-tailslow", "false", kNoThrottle),
    inert("max-cpu-throttle", "99", 1, 99, kNoThrottle),
    no_credentials("tls-creds"),
    no_credentials("tls-hostname"),
    no_credentials("tls-authz"),
    QemuParameter{.name = "avail-switchover-bandwidth",
                  .kind = Kind::kInert,
                  .type = Type::kNumber,
                  .usual = "0",
                  .most = kAnySize,
                  .why = "the switch needs no estimate",
                  .in_mebibytes = true},
    inert("x-checkpoint-delay", "20000", 0, kMostMilliseconds, "there are no checkpoints"),
    QemuParameter{.name = "multifd-compression",
                  .kind = Kind::kOnlyDefault,
                  .type = Type::kText,
                  .usual = R"("none")",
                  .any = kNone,
                  .why = kNoCompression},
    inert("multifd-zlib-level", "1", 0, 9, kNoCompression),
    inert("multifd-zstd-level", "1", 0, 20, kNoCompression),
    inert("multifd-qatzip-level", "1", 1, 9, kNoCompression),
    inert("xbzrle-cache-size", "67108864", 0, kAnySize, "pages are sent whole and once"),
    QemuParameter{.name = "block-bitmap-mapping",
                  .kind = Kind::kOnlyDefault,
                  .type = Type::kList,
                  .usual = "[]",
                  .why = "the machine has no disks"},
    inert("x-vcpu-dirty-limit-period", "1000", 1, 1000, kNoThrottle),
    inert("vcpu-dirty-limit", "1", 1, kAnySize, kNoThrottle),
    QemuParameter{.name = "mode",
                  .kind = Kind::kOnlyDefault,
                  .type = Type::kText,
                  .usual = R"("normal")",
                  .any = kNormal,
                  .why = kOneMode},
    QemuParameter{.name = "zero-page-detection",
                  .kind = Kind::kInert,
                  .type = Type::kText,
                  .usual = R"("multifd")",
                  .any = kZeroPages,
                  .why = "the sender always finds pages of zeros"},
    QemuParameter{.name = "direct-io",
                  .kind = Kind::kOnlyDefault,
                  .type = Type::kBoolean,
                  .usual = "false",
                  .why = "a migration goes to a socket, not to a file"},
    QemuParameter{.name = "cpr-exec-command",
                  .kind = Kind::kOnlyDefault,
                  .type = Type::kList,
                  .usual = "[]",
                  .why = kOneMode},
    inert("compress-level", "1", 0, 9, kNoCompression, false),
    inert("compress-threads", "8", 1, 255, kNoCompression, false),
    inert("decompress-threads", "2", 1, 255, kNoCompression, false),
    inert_switch("compress-wait-thread", "true", kNoCompression, false),
    inert_switch("block-incremental", "false", "the machine has no disks", false),
};

std::string_view type_name(Type type) {
  switch (type) {
    case Type::kBoolean:
      return "boolean";
    case Type::kNumber:
      return "integer";
    case Type::kText:
      return "string";
    case Type::kList:
      return "array";
  }
  __builtin_unreachable();
}

bool is_of(const Json& given, Type type) {
  switch (type) {
    case Type::kBoolean:
      return given.boolean().has_value();
    case Type::kNumber:
      return given.number().has_value();
    case Type::kText:
      return given.text() != nullptr;
    case Type::kList:
      return given.items() != nullptr;
  }
  __builtin_unreachable();
}

bool permits(const QemuParameter& parameter, const Json& given) {
  switch (parameter.type) {
    case Type::kNumber: {
      const auto number = given.whole();
      return number && *number >= parameter.least && *number <= parameter.most;
    }
    case Type::kText:
      return std::find(parameter.any.begin(), parameter.any.end(), *given.text()) !=
             parameter.any.end();
    case Type::kBoolean:
    case Type::kList:
      return parameter.kind == Kind::kInert || given.dump() == parameter.usual;
  }
  __builtin_unreachable();
}

}  // namespace

std::span<const QemuParameter> qemu_parameters() {
  return kAll;
}

const QemuParameter* find_qemu_parameter(std::string_view name) {
  const auto* const found = std::find_if(
      kAll.begin(), kAll.end(), [&](const QemuParameter& one) { return one.name == name; });
  return found == kAll.end() ? nullptr : found;
}

Json usual_value(const QemuParameter& parameter) {
  return Json::parse(parameter.usual).value();
}

base::Expected<Json> accepted_value(const QemuParameter& parameter, const Json& given) {
  // Newer managers say null where older ones said "".
  const bool nothing = parameter.type == Type::kText && given.is_null();
  const Json value = nothing ? Json("") : given;
  if (!is_of(value, parameter.type)) {
    return wrong_type(parameter.name, type_name(parameter.type));
  }
  if (permits(parameter, value)) {
    return value;
  }
  if (parameter.kind == Kind::kOnlyDefault) {
    return refuse(fmt::format("Parameter '{}' is not built in Towline, and {} is not {}: {}",
                              parameter.name, value.dump(), parameter.usual, parameter.why));
  }
  if (parameter.type == Type::kText) {
    return refuse(fmt::format("Parameter '{}' does not accept value '{}'; use one of {}",
                              parameter.name, *value.text(), fmt::join(parameter.any, ", ")));
  }
  return refuse(fmt::format("Parameter '{}' expects an integer from {} to {}, not {}",
                            parameter.name, parameter.least, parameter.most, value.dump()));
}

}  // namespace towline::monitor
