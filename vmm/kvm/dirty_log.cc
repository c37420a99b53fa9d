#include "vmm/kvm/dirty_log.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "base/log.h"

namespace towline::vmm {
namespace {

using base::ErrorKind;
using base::fail;

std::uint64_t pages_of(const runtime::Region& region) {
  return region.size.value / base::kSmallPage.value;
}

}  // namespace

base::Outcome KvmDirtyLog::set_flags(std::uint32_t flags) {
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    const runtime::Region& region = regions_[i];
    TRY(vm_.set_memory(static_cast<std::uint32_t>(i), flags, region.start, region.size,
                       region.mapping));
  }
  return base::Done{};
}

base::Outcome KvmDirtyLog::enable() {
  {
    // Before KVM's: what is written from now on is in one of both.
    const base::Lock lock(mutex_);
    enabled_ = true;
    marked_.clear();
  }
  return set_flags(KVM_MEM_LOG_DIRTY_PAGES);
}

void KvmDirtyLog::disable() {
  if (const auto done = set_flags(0); !done.ok()) {
    // The guest runs on, only slower; there is nobody who could do better.
    base::log(base::LogLevel::kWarning, "dirty-log.still-on reason={}", to_string(done.error()));
  }
  const base::Lock lock(mutex_);
  enabled_ = false;
  marked_.clear();
}

void KvmDirtyLog::mark(base::GuestAddress start, base::Bytes size) {
  const base::Lock lock(mutex_);
  if (!enabled_) {
    return;
  }
  for (const runtime::Region& region : regions_) {
    // Only now: that nothing was marked must cost the guest's pause nothing.
    if (marked_.size() < regions_.size()) {
      marked_.emplace_back((pages_of(region) + 63) / 64);
    }
  }
  for (std::size_t i = 0; i < marked_.size(); ++i) {
    const runtime::Region& region = regions_[i];
    const std::uint64_t begin = std::max(start.value, region.start.value);
    const std::uint64_t end =
        std::min(start.value + size.value, region.start.value + region.size.value);
    const std::uint64_t first = (begin - region.start.value) / base::kSmallPage.value;
    const std::uint64_t last =
        (end - region.start.value + base::kSmallPage.value - 1) / base::kSmallPage.value;
    for (std::uint64_t page = first; begin < end && page < last; ++page) {
      marked_[i][page / 64] |= 1UL << page % 64;
    }
  }
}

base::Outcome KvmDirtyLog::read(std::size_t region, std::span<std::uint64_t> bitmap) {
  if (region >= regions_.size() || bitmap.size() != (pages_of(regions_[region]) + 63) / 64) {
    return fail(ErrorKind::kFailed, "read dirty log",
                fmt::format("a bitmap of {} words for region {}", bitmap.size(), region));
  }
  TRY(vm_.get_dirty_log(static_cast<std::uint32_t>(region), bitmap));
  const base::Lock lock(mutex_);
  for (std::size_t i = 0; i < bitmap.size() && region < marked_.size(); ++i) {
    bitmap[i] |= marked_[region][i];
  }
  return base::Done{};
}

base::Outcome KvmDirtyLog::clear(std::size_t region, std::uint64_t first, std::uint64_t count,
                                 std::span<const std::uint64_t> bitmap) {
  const std::uint64_t pages = region < regions_.size() ? pages_of(regions_[region]) : 0;
  const bool aligned = first % 64 == 0 && (count % 64 == 0 || first + count == pages);
  if (first > pages || count > pages - first || !aligned || bitmap.size() < (count + 63) / 64) {
    return fail(ErrorKind::kFailed, "clear dirty log",
                fmt::format("pages [{}, +{}) of region {} with {} words", first, count, region,
                            bitmap.size()));
  }
  {
    const base::Lock lock(mutex_);
    for (std::size_t i = 0; i < (count + 63) / 64 && region < marked_.size(); ++i) {
      marked_[region][first / 64 + i] &= ~bitmap[i];
    }
  }
  // The kernel counts in 32 bits.
  constexpr std::uint64_t kMostAtOnce = std::numeric_limits<std::uint32_t>::max() & ~63U;
  while (count > 0) {
    const std::uint64_t now = std::min(count, kMostAtOnce);
    TRY(vm_.clear_dirty_log(static_cast<std::uint32_t>(region), first,
                            static_cast<std::uint32_t>(now), bitmap));
    first += now;
    count -= now;
    bitmap = bitmap.subspan((now + 63) / 64);
  }
  return base::Done{};
}

}  // namespace towline::vmm
