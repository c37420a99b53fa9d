// What a source leaves to a page server: what is believed keeps every limit, and means one thing.
#include <cstdint>

#include "base/ensure.h"
#include "runtime/standby/record.h"

namespace runtime = towline::runtime;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::uint64_t kFiles = 2;
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto record = runtime::decode_record(bytes, kFiles);
  if (!record.ok()) {
    ENSURE(record.error().kind == towline::base::ErrorKind::kCorrupt, "a peer's fault");
    ENSURE(!record.error().detail.empty(), "says what is wrong");
    return 0;
  }
  std::uint64_t total = 0;
  for (const auto& region : record.value().regions) {
    ENSURE(region.file < kFiles, "in a file that is there");
    ENSURE(region.size > 0 && region.size % region.page_size == 0, "whole pages");
    ENSURE(region.start + region.size > region.start, "ends after it begins");
    ENSURE(region.offset + region.size > region.offset, "ends after it begins");
    total += region.size;
  }
  ENSURE(total > 0 && total <= runtime::kMaxStandbyBytes, "memory that can be mapped");
  ENSURE(record.value().options.bulk_lanes >= 1 && record.value().options.bulk_lanes <= 16,
         "lanes that can be opened");
  const auto again = runtime::encode_record(record.value());
  ENSURE(again.ok(), "what was read can be written");
  ENSURE(runtime::decode_record(again.value(), kFiles).ok(), "and read again");
  return 0;
}
