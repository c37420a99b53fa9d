// A machine's state, as a peer sends it: what decodes encodes to the same bytes.
#include <algorithm>
#include <cstdint>

#include "base/ensure.h"
#include "runtime/machine_state.h"

namespace runtime = towline::runtime;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto state = runtime::decode(bytes);
  if (!state.ok()) {
    ENSURE(state.error().kind == towline::base::ErrorKind::kCorrupt, "a peer's fault");
    ENSURE(!state.error().detail.empty(), "says what is wrong");
    return 0;
  }
  const auto again = runtime::encode(state.value());
  ENSURE(again.ok(), "what was read can be written");
  ENSURE(std::equal(bytes.begin(), bytes.end(), again.value().begin(), again.value().end()),
         "each state has one encoding");
  return 0;
}
