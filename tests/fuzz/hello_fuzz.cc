// The first bytes of a stranger.
#include <cstdint>

#include "base/ensure.h"
#include "runtime/wire/codec.h"

namespace wire = towline::runtime::wire;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto hello = wire::decode_hello(std::as_bytes(std::span(data, size)));
  if (!hello.ok()) {
    return 0;
  }
  ENSURE(hello.value().lane < wire::kMaxBulkLanes, "a lane number is in range");
  const auto version = wire::common_version(hello.value());
  ENSURE(!version || (*version >= wire::kVersionLow && *version <= wire::kVersionHigh),
         "a version that we speak");
  const auto again = wire::decode_hello(wire::encode_hello(hello.value()));
  ENSURE(again.ok() && again.value() == hello.value(), "a hello survives its encoding");
  return 0;
}
