// The answer of whoever listens at the address that the source was given.
#include <cstdint>

#include "base/ensure.h"
#include "runtime/wire/codec.h"

namespace wire = towline::runtime::wire;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto reply = wire::decode_hello_reply(std::as_bytes(std::span(data, size)));
  if (!reply.ok()) {
    return 0;
  }
  const auto again = wire::decode_hello_reply(wire::encode_hello_reply(reply.value()));
  ENSURE(again.ok() && again.value() == reply.value(), "a reply survives its encoding");
  return 0;
}
