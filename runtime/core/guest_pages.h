#pragma once

#include <cstddef>
#include <span>

#include "base/error.h"
#include "base/units.h"

namespace towline::runtime {

/// What the target does to guest memory, and nobody else. The real one is target_memory.h; tests
/// and the simulator have one that keeps its history.
///
/// Ranges are valid in the layout, and lie in one region. Threads: any; only the claim's holder
/// calls write(), punch() and back_with_zeros() on a page.
class GuestPages {
 public:
  GuestPages() = default;
  GuestPages(const GuestPages&) = delete;
  GuestPages& operator=(const GuestPages&) = delete;
  virtual ~GuestPages() = default;

  /// Puts whole pages into the file. The guest does not see them before map().
  /// Errors: kOverloaded when there is no memory (nothing of the range counts as written).
  virtual base::Outcome write(base::PageRange range, std::span<const std::byte> bytes) = 0;

  /// Frees the pages in the file: they hold zeros, whatever was there.
  virtual base::Outcome punch(base::PageRange range) = 0;

  /// Puts a page of zeros where a hole is. Errors: as write().
  virtual base::Outcome back_with_zeros(base::PageRange range) = 0;

  /// Makes the file's pages visible to the guest and wakes who waits. A page that was visible
  /// already stays. Errors: kOverloaded (no memory for page tables), kFailed (a bug of ours).
  virtual base::Outcome map(base::PageRange range) = 0;

  /// Takes the pages out of the guest's sight: the next touch is a fault again.
  virtual void zap(base::PageRange range) = 0;

  /// Makes every access to the pages an error, from now on. They are not mapped. Wakes who waits.
  /// Errors: kOverloaded (no memory for page tables), kUnsupported (Linux before 6.6), kFailed.
  virtual base::Outcome poison(base::PageRange range) = 0;

  /// Lets who waits look again.
  virtual void wake(base::PageRange range) = 0;
};

}  // namespace towline::runtime
