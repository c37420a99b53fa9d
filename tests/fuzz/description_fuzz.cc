// What a source says of itself before any memory moves: believed within limits, or refused in
// words.
#include <cstdint>

#include "base/ensure.h"
#include "runtime/core/description.h"

namespace base = towline::base;
namespace runtime = towline::runtime;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto description = runtime::decode_description(std::as_bytes(std::span(data, size)));
  if (!description.ok()) {
    ENSURE(description.error().kind == base::ErrorKind::kCorrupt, "a peer's fault");
    ENSURE(!description.error().detail.empty(), "says what is wrong");
    return 0;
  }
  ENSURE(description.value().bulk_lanes >= 1 && description.value().bulk_lanes <= 16,
         "lanes that can be opened");
  runtime::Region ram;
  ram.name = "ram.low";
  ram.size = base::Bytes{1U << 20U};
  for (const std::string& reason :
       runtime::memory_refusals(description.value(), runtime::MemoryLayout({ram}))) {
    ENSURE(!reason.empty(), "a reason has words");
  }
  const auto again = runtime::encode_description(description.value());
  ENSURE(again.ok() && runtime::decode_description(again.value()).ok(), "and read again");
  return 0;
}
