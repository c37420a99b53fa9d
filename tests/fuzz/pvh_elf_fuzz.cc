// The headers of a kernel image: whatever they say, nothing outside the file is named.
#include <cstdint>

#include "base/ensure.h"
#include "vmm/boot.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto image = towline::vmm::parse_elf(file);
  if (!image.ok()) {
    ENSURE(!image.error().detail.empty(), "says what is wrong");
    return 0;
  }
  ENSURE(!image.value().segments.empty(), "there is something to load");
  for (const auto& segment : image.value().segments) {
    ENSURE(segment.file_offset <= size && segment.file_size.value <= size - segment.file_offset,
           "segments lie in the file");
    ENSURE(segment.memory_size >= segment.file_size, "memory holds what the file does");
  }
  return 0;
}
