#include "runtime/target/memory.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include <fmt/format.h>

#include "base/ensure.h"
#include "base/log.h"
#include "uffd/mapping.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::fail_errno;
using base::HostAddress;
using base::Outcome;
using base::PageIndex;
using base::PageRange;

// EAGAIN from the kernel means that another thread is changing the mappings this very moment.
constexpr int kLayoutRetries = 1000;

bool means_no_room(int error) {
  return error == ENOSPC || error == ENOMEM || error == EDQUOT;
}

}  // namespace

base::Expected<std::unique_ptr<TargetMemory>> TargetMemory::prepare(
    const std::vector<Region>& regions, const MemoryLayout& layout) {
  std::unique_ptr<TargetMemory> made(new TargetMemory(regions, layout));
  std::vector<uffd::Range> ranges;
  for (const Region& region : regions) {
    if (region.backing == Backing::kAnonymous) {
      return fail(ErrorKind::kUnsupported, "prepare memory",
                  fmt::format("region '{}' is in no file; only such memory can be moved "
                              "(--memory-backing memfd or hugetlb)",
                              region.name));
    }
    const bool huge = region.backing == Backing::kHugetlb;
    TRY(uffd::punch(region.fd, uffd::Extent{region.fd_offset, region.size.value},
                    region.page_size));
    ranges.push_back(
        uffd::Range{.start = region.mapping,
                    .length = region.size,
                    .page_size = region.page_size,
                    .backing = huge ? uffd::Backing::kHugetlb : uffd::Backing::kShmem});
    if (huge) {
      TRY(made->map_alias(region));
    } else {
      made->aliases_.emplace_back();
    }
  }
  made->faults_ = TRY(uffd::ShardedUserfault::open(ranges));
  return made;
}

Outcome TargetMemory::map_alias(const Region& region) {
  auto alias = TRY(uffd::Alias::map(region.fd, uffd::Extent{region.fd_offset, region.size.value},
                                    uffd::Alias::Access::kReadWrite));
  // Asked here, where it can still be an error: a stale page has to leave the guest's sight.
  if (!uffd::zap(region.mapping, region.page_size, region.page_size).ok()) {
    return fail(ErrorKind::kUnsupported, "prepare memory",
                fmt::format("region '{}' is on huge pages, which this kernel does not unmap one by "
                            "one (Linux 5.18 does); use --memory-backing memfd",
                            region.name));
  }
  aliases_.push_back(std::move(alias));
  return base::Done{};
}

TargetMemory::Place TargetMemory::place(PageRange range) const {
  const auto where = layout_.locate(range.first);
  const Region& region = regions_[where.region];
  return Place{.region = where.region,
               .fd = region.fd,
               .offset = region.fd_offset + where.offset,
               .address = HostAddress{region.mapping.value + where.offset},
               .length = base::Bytes{range.count.value * region.page_size.value},
               .page_size = region.page_size};
}

std::optional<PageIndex> TargetMemory::page_at(HostAddress address) const {
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    const Region& region = regions_[i];
    if (address.value >= region.mapping.value &&
        address.value - region.mapping.value < region.size.value) {
      return PageIndex{layout_.entries()[i].first.value +
                       (address.value - region.mapping.value) / region.page_size.value};
    }
  }
  return std::nullopt;
}

Outcome TargetMemory::write(PageRange range, std::span<const std::byte> bytes) {
  const Place at = place(range);
  ENSURE(bytes.size() == at.length.value, "a run's bytes are whole pages");
  if (regions_[at.region].backing == Backing::kHugetlb) {
    return write_by_alias(at, bytes);
  }
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t put = ::pwrite(at.fd, bytes.data() + done, bytes.size() - done,
                                 static_cast<off_t>(at.offset + done));
    if (put > 0) {
      done += static_cast<std::size_t>(put);
    } else if (put == 0 || errno != EINTR) {
      return means_no_room(errno) ? Outcome(base::Err{no_room(at.fd, "pwrite")})
                                  : Outcome(fail_errno(ErrorKind::kFailed, "pwrite"));
    }
  }
  return base::Done{};
}

Outcome TargetMemory::write_by_alias(const Place& at, std::span<const std::byte> bytes) {
  const uffd::Extent extent{at.offset, at.length.value};
  if (TRY(uffd::allocate(at.fd, extent)) == uffd::Allocation::kNoMemory) {
    return base::Err{no_room(at.fd, "fallocate")};
  }
  const uffd::Alias& alias = aliases_[at.region];
  std::copy(bytes.begin(), bytes.end(), alias.bytes(extent).begin());
  return alias.release(extent, at.page_size);
}

Outcome TargetMemory::punch(PageRange range) {
  const Place at = place(range);
  return uffd::punch(at.fd, uffd::Extent{at.offset, at.length.value}, at.page_size);
}

Outcome TargetMemory::back_with_zeros(PageRange range) {
  const Place at = place(range);
  const auto allocation = TRY(uffd::allocate(at.fd, uffd::Extent{at.offset, at.length.value}));
  if (allocation == uffd::Allocation::kNoMemory) {
    return base::Err{no_room(at.fd, "fallocate")};
  }
  return base::Done{};
}

Outcome TargetMemory::map(PageRange range) {
  PageRange left = range;
  for (int tries = 0; tries < kLayoutRetries; ++tries) {
    const Place at = place(left);
    const auto outcome = TRY(faults_->continue_run(at.address, left.count));
    switch (outcome.end) {
      case uffd::RunEnd::kComplete:
      case uffd::RunEnd::kGone:  // Released: the kernel maps by itself.
        return base::Done{};
      case uffd::RunEnd::kNoPage:
        return fail(ErrorKind::kFailed, "UFFDIO_CONTINUE",
                    fmt::format("page {:#x} was written but is not in its file",
                                left.first.value + outcome.examined().value));
      case uffd::RunEnd::kNoMemory:
        return fail(ErrorKind::kOverloaded, "UFFDIO_CONTINUE", "no memory for page tables");
      case uffd::RunEnd::kLayoutChanging:
        break;
    }
    const std::uint64_t done = outcome.examined().value;
    left = PageRange{PageIndex{left.first.value + done}, base::PageCount{left.count.value - done}};
    if (left.empty()) {
      return base::Done{};
    }
  }
  return fail(ErrorKind::kFailed, "UFFDIO_CONTINUE", "the mappings never settled");
}

void TargetMemory::zap(PageRange range) {
  const Place at = place(range);
  const auto zapped = uffd::zap(at.address, at.length, at.page_size);
  ENSURE(zapped.ok(), "guest memory can be zapped while it is mapped");
}

Outcome TargetMemory::poison(PageRange range) {
  PageRange left = range;
  for (int tries = 0; tries < kLayoutRetries && !left.empty(); ++tries) {
    const Place at = place(left);
    const auto outcome = TRY(faults_->poison_run(at.address, left.count));
    switch (outcome.end) {
      case uffd::RunEnd::kComplete:
        return base::Done{};
      case uffd::RunEnd::kGone:
      case uffd::RunEnd::kNoPage:
        return fail(ErrorKind::kFailed, "UFFDIO_POISON", "guest memory is not registered any more");
      case uffd::RunEnd::kNoMemory:
        return fail(ErrorKind::kOverloaded, "UFFDIO_POISON", "no memory for page tables");
      case uffd::RunEnd::kLayoutChanging:
        break;
    }
    const std::uint64_t done = outcome.examined().value;
    left = PageRange{PageIndex{left.first.value + done}, base::PageCount{left.count.value - done}};
  }
  return left.empty()
             ? Outcome(base::Done{})
             : Outcome(fail(ErrorKind::kFailed, "UFFDIO_POISON", "the mappings never settled"));
}

void TargetMemory::wake(PageRange range) {
  const Place at = place(range);
  faults_->wake(at.address, at.length);
}

Outcome TargetMemory::read_faults(std::size_t shard, std::vector<PageIndex>& into) {
  std::array<uffd::Event, uffd::kEventBatch> events;
  const std::size_t count = TRY(faults_->userfault(shard).read_events(events));
  for (const uffd::Event& event : std::span(events).first(count)) {
    const auto page = page_at(event.address);
    if (event.kind == uffd::Event::Kind::kFault && page.has_value()) {
      into.push_back(*page);
    }
  }
  return base::Done{};
}

void TargetMemory::discard() {
  for (const Region& region : regions_) {
    const auto punched =
        uffd::punch(region.fd, uffd::Extent{region.fd_offset, region.size.value}, region.page_size);
    if (!punched.ok()) {
      base::log(base::LogLevel::kWarning, "memory.discard_failed region={} reason={}", region.name,
                base::to_string(punched.error()));
    }
  }
}

}  // namespace towline::runtime
