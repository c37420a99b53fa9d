// A line of the human monitor: it is cut into words, and the second is a value for the parameter
// that the first names.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/ensure.h"
#include "vmm/monitor/human_words.h"
#include "vmm/monitor/migration_settings.h"

namespace monitor = towline::monitor;
using monitor::Json;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  const auto words = monitor::split_words(line);
  if (!words.ok()) {
    return 0;
  }
  std::size_t bytes = 0;
  for (const auto& word : words.value()) {
    bytes += word.size();
  }
  ENSURE(bytes <= size, "words hold no more than the line");
  if (words.value().size() < 2) {
    return 0;
  }
  const auto value = monitor::parameter_word(words.value()[0], words.value()[1]);
  if (!value.ok()) {
    ENSURE(!value.error().detail.empty(), "says what is wrong");
    return 0;
  }
  Json object = Json::object();
  object.set(words.value()[0], value.value());
  const auto changed = monitor::with_parameters({}, &object, {});
  ENSURE(!changed.ok() || changed.value().options.bulk_lanes <= 16, "limits are kept");
  return 0;
}
