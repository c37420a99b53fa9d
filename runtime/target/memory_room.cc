// Room for guest memory: what the file system or the huge pages have left, and what becomes of the
// holes when nothing is missing any more.
#include <sys/stat.h>

#include <algorithm>

#include <fmt/format.h>

#include "base/huge_pages.h"
#include "runtime/target/memory.h"
#include "runtime/target/memory_headroom.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

// One frame of post-copy: with less the move would go on and pause again at once.
constexpr std::uint64_t kWorthTrying = 64U << 10U;

// Bytes of the file that have no page yet.
std::uint64_t unbacked(int fd) {
  struct stat file {};

  if (::fstat(fd, &file) != 0) {
    return kWorthTrying;
  }
  const auto size = static_cast<std::uint64_t>(file.st_size);
  return size - std::min(size, static_cast<std::uint64_t>(file.st_blocks) * 512);
}

/// There is a huge page for all of the file that has none yet.
bool fits_in_huge_pages(int fd) {
  const auto pages = base::huge_pages();
  return pages.has_value() && pages->free >= unbacked(fd) / base::kHugePage.value;
}

std::string explain_huge_pages(int fd) {
  return fmt::format("memory: {}, and the move goes on",
                     base::explain(base::huge_pages(), unbacked(fd) / base::kHugePage.value));
}

}  // namespace

Outcome TargetMemory::release() {
  TRY(fill_holes());
  return faults_->unregister_all();
}

base::Expected<uffd::Allocation> allocate_in_steps(
    uffd::Extent extent,
    const std::function<base::Expected<uffd::Allocation>(uffd::Extent)>& allocate) {
  for (std::uint64_t done = 0; done < extent.length;) {
    const std::uint64_t step = std::min(kAllocateStep.value, extent.length - done);
    if (TRY(allocate(uffd::Extent{extent.offset + done, step})) == uffd::Allocation::kNoMemory) {
      return uffd::Allocation::kNoMemory;
    }
    done += step;
  }
  return uffd::Allocation::kDone;
}

Outcome TargetMemory::fill_holes() {
  for (const Region& region : regions_) {
    if (!has_limit(region)) {
      continue;
    }
    // Asked before: the file keeps what it gets, and would take what the guest may touch first.
    if (!fits(region.fd)) {
      return base::Err{no_room(region.fd, "fallocate")};
    }
    const auto filled =
        allocate_in_steps(uffd::Extent{region.fd_offset, region.size.value},
                          [&region](uffd::Extent part) { return uffd::allocate(region.fd, part); });
    if (TRY(base::Expected<uffd::Allocation>(filled)) == uffd::Allocation::kNoMemory) {
      return base::Err{no_room(region.fd, "fallocate")};
    }
  }
  return base::Done{};
}

bool TargetMemory::is_huge(int fd) const {
  return std::any_of(regions_.begin(), regions_.end(), [fd](const Region& region) {
    return region.fd == fd && region.backing == Backing::kHugetlb;
  });
}

bool TargetMemory::fits(int fd) const {
  const auto around = room_around(fd);
  return is_huge(fd) ? fits_in_huge_pages(fd)
                     : !around.has_value() || around->free.value >= unbacked(fd);
}

bool TargetMemory::has_limit(const Region& region) const {
  return is_huge(region.fd) || room_around(region.fd).has_value();
}

base::Error TargetMemory::no_room(int fd, const char* operation) {
  full_ = fd;
  if (is_huge(fd)) {
    return base::Error{ErrorKind::kOverloaded, 0, operation, explain_huge_pages(fd)};
  }
  const auto around = room_around(fd);
  return base::Error{ErrorKind::kOverloaded, 0, operation,
                     around.has_value()
                         ? explain(*around)
                         : "no room for guest memory; free some memory on the target's host"};
}

Outcome TargetMemory::room() {
  const int fd = full_;
  if (fd >= 0 && is_huge(fd)) {
    const auto pages = base::huge_pages();
    if (unbacked(fd) != 0 && (!pages.has_value() || pages->free == 0)) {
      return fail(ErrorKind::kOverloaded, "receive", explain_huge_pages(fd));
    }
    full_ = -1;
    return base::Done{};
  }
  const auto around = fd < 0 ? std::nullopt : room_around(fd);
  if (!around.has_value() || around->free.value >= std::min(kWorthTrying, unbacked(fd))) {
    full_ = -1;
    return base::Done{};
  }
  return fail(ErrorKind::kOverloaded, "receive", explain(*around));
}

}  // namespace towline::runtime
