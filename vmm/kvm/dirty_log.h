#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/sync.h"
#include "runtime/ports.h"
#include "vmm/kvm/kvm.h"

namespace towline::vmm {

/// KVM's dirty log with manual protection, every page dirty at first
/// (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 3). Slot n is region n.
///
/// KVM does not see what this process itself writes to guest memory; mark() adds it.
///
/// Threads: mark() any; everything else one at a time.
class KvmDirtyLog final : public runtime::DirtyLog {
 public:
  KvmDirtyLog(const KvmVm& vm, const std::vector<runtime::Region>& regions)
      : vm_(vm), regions_(regions) {}

  base::Outcome enable() override;
  void disable() override;
  base::Outcome read(std::size_t region, std::span<std::uint64_t> bitmap) override;
  base::Outcome clear(std::size_t region, std::uint64_t first, std::uint64_t count,
                      std::span<const std::uint64_t> bitmap) override;

  /// This process has written [start, start + size) of guest memory. Called when it has: a reader
  /// that clears a page before it reads it then misses nothing.
  void mark(base::GuestAddress start, base::Bytes size);

 private:
  using Words = std::vector<std::uint64_t>;

  base::Outcome set_flags(std::uint32_t flags);

  const KvmVm& vm_;
  const std::vector<runtime::Region>& regions_;
  base::Mutex mutex_;
  bool enabled_ GUARDED_BY(mutex_) = false;
  std::vector<Words> marked_ GUARDED_BY(mutex_);  ///< Per region; empty until something is marked.
};

}  // namespace towline::vmm
