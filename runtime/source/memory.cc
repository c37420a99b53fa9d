#include "runtime/source/memory.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

#include "uffd/mapping.h"

namespace towline::runtime {

using base::ErrorKind;
using base::PageCount;
using base::PageIndex;
using base::PageRange;

base::Outcome SourceMemory::read(PageRange range, std::span<std::byte> into) const {
  const auto at = layout_.locate(range.first);
  const Region& region = regions_[at.region];
  const std::uint64_t offset = region.fd_offset + at.offset;
  std::size_t done = 0;
  while (done < into.size()) {
    const ssize_t got = ::pread(region.fd, into.data() + done, into.size() - done,
                                static_cast<off_t>(offset + done));
    if (got > 0) {
      done += static_cast<std::size_t>(got);
    } else if (got == 0) {
      return base::fail(ErrorKind::kFailed, "pread",
                        fmt::format("memory '{}' ends at {} bytes; somebody truncated its file",
                                    region.name, offset + done));
    } else if (errno != EINTR) {
      return base::fail_errno(ErrorKind::kFailed, "pread",
                              fmt::format("memory '{}' cannot be read", region.name));
    }
  }
  return base::Done{};
}

base::Expected<std::span<const std::byte>> SourceMemory::copy(
    PageRange range, std::vector<std::byte>& buffer) const {
  const std::uint64_t size = range.count.value * layout_.page_size(range.first).value;
  buffer.resize(std::max<std::size_t>(buffer.size(), size));
  const std::span<std::byte> into = std::span(buffer).first(size);
  TRY(read(range, into));
  return std::span<const std::byte>(into);
}

base::Expected<std::span<const std::byte>> SourceMemory::parked(
    PageRange range, std::vector<std::byte>& buffer) const {
  const auto at = layout_.locate(range.first);
  const Region& region = regions_[at.region];
  if (region.backing == Backing::kHugetlb) {
    return copy(range, buffer);
  }
  // NOLINTNEXTLINE(performance-no-int-to-ptr): the guest mapping is known by its address.
  const auto* start = reinterpret_cast<const std::byte*>(region.mapping.value + at.offset);
  return std::span<const std::byte>(start, range.count.value * region.page_size.value);
}

base::Expected<std::optional<PageRange>> SourceMemory::next_data(PageRange range) const {
  const auto at = layout_.locate(range.first);
  const Region& region = regions_[at.region];
  const std::uint64_t size = region.page_size.value;
  const std::uint64_t from = region.fd_offset + at.offset;
  const auto extent = TRY(uffd::next_data(region.fd, from, from + range.count.value * size));
  if (!extent.has_value()) {
    return std::optional<PageRange>();
  }
  return std::optional(PageRange{PageIndex{range.first.value + (extent->offset - from) / size},
                                 PageCount{(extent->length + size - 1) / size}});
}

}  // namespace towline::runtime
