// What a client sends to the monitor: messages are cut out of any bytes, each is JSON or refused,
// and whatever came before, a message after a fresh start is read.
#include <cstdint>
#include <string>
#include <string_view>

#include "base/ensure.h"
#include "vmm/monitor/framing.h"
#include "vmm/monitor/json.h"
#include "vmm/monitor/migration_json.h"
#include "vmm/monitor/migration_settings.h"

namespace monitor = towline::monitor;
using monitor::Json;

namespace {

std::size_t depth(const Json& json) {
  std::size_t deepest = 0;
  if (const auto* items = json.items()) {
    for (const auto& item : *items) {
      deepest = std::max(deepest, depth(item));
    }
    return deepest + 1;
  }
  if (const auto* members = json.members()) {
    for (const auto& member : *members) {
      deepest = std::max(deepest, depth(member.value));
    }
    return deepest + 1;
  }
  return 0;
}

/// The arguments that commands look into.
void judge_arguments(const Json& message) {
  if (message.items() != nullptr) {
    (void)monitor::with_capabilities({}, message);
    (void)monitor::address_from_channels(message);
  }
  if (message.members() != nullptr) {
    const auto changed = monitor::with_parameters({}, &message, {});
    ENSURE(!changed.ok() || changed.value().options.bulk_lanes <= 16, "limits are kept");
    (void)monitor::address_from_json(message);
  }
}

void judge(const std::string& text) {
  ENSURE(text.size() <= monitor::kMaxMessageBytes, "no message is longer than the limit");
  const auto message = Json::parse(text);
  if (!message.ok()) {
    ENSURE(!message.error().detail.empty(), "says what is wrong");
    return;
  }
  ENSURE(depth(message.value()) <= monitor::kMaxJsonDepth, "no deeper than the limit");
  const std::string written = message.value().dump();
  ENSURE(written.find('\n') == std::string::npos, "one line");
  const auto again = Json::parse(written);
  ENSURE(again.ok() && again.value().dump() == written, "what is written is read the same");
  judge_arguments(message.value());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string last;
  monitor::JsonSplitter splitter([&last](const std::string& text, const std::string& problem) {
    ENSURE(text.empty() != problem.empty(), "a message or a problem");
    last = text;
    if (problem.empty()) {
      judge(text);
    }
  });
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  splitter.feed(bytes.substr(0, size / 2));
  splitter.feed(bytes.substr(size / 2));
  splitter.feed("\xff\n");
  splitter.feed("{\"execute\": \"query-status\"}");
  ENSURE(last == "{\"execute\": \"query-status\"}", "a fresh start is possible after anything");
  return 0;
}
