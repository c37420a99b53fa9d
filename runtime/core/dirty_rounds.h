#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/sync.h"
#include "base/units.h"
#include "runtime/core/memory_layout.h"
#include "runtime/ports.h"

namespace towline::runtime {

/// What the guest has written, round by round.
///
/// The order that makes it exact: no byte or hole of a range is read before its clear(); whoever
/// reads notes the round first; the round advances only after the log was read. Between clears a
/// bit stays set, so that a round's news are what is set now and was not in the last reading.
///
/// The log counts 4 KiB: a page that is larger is dirty when any part of it is, and is armed whole.
///
/// Threads: dirty() and clear_for_read() any; next_round() one, while nobody reads memory for the
/// round.
class DirtyRounds {
 public:
  DirtyRounds(DirtyLog& log, const MemoryLayout& layout);

  /// Begins logging. Everything counts as dirty until its first clear.
  base::Outcome begin();
  void end();

  /// Arms the log for the pages of `range`, which are about to be read: those that are not clear
  /// already. `range` begins at a multiple of 256 KiB in its region and is one, or ends with it.
  base::Outcome clear_for_read(base::PageRange range);

  struct Round {
    std::vector<base::PageRange> pages;  ///< Ascending, not touching; perhaps across regions.
    std::uint64_t count = 0;
  };

  /// Pages whose bit is set now and was not at the last round (or was cleared since).
  base::Expected<Round> next_round();

  /// Pages of `range`, which lies in one region, that are dirty as of the last round: their copies
  /// elsewhere are of no use. Bit 0 is the first one.
  [[nodiscard]] std::vector<std::uint64_t> dirty(base::PageRange range) const;

 private:
  struct Tracked {
    std::size_t words_per_page = 0;    // Of the log; 0: the log counts the same pages.
    std::vector<std::uint64_t> known;  // One bit a page.
    // Warm: nothing is allocated in the pause.
    std::vector<std::uint64_t> read;
    std::vector<std::uint64_t> log;  // As the log has it, if that counts otherwise.
  };

  [[nodiscard]] std::vector<std::uint64_t> dirty_locked(base::PageRange range) const
      REQUIRES(log_mutex_);
  base::Outcome clear(std::size_t region, std::uint64_t first, std::uint64_t count,
                      std::span<const std::uint64_t> bits) REQUIRES(log_mutex_);

  DirtyLog& log_;
  const MemoryLayout& layout_;
  mutable base::Mutex log_mutex_;  // The log takes one caller at a time.
  std::vector<Tracked> regions_ GUARDED_BY(log_mutex_);
};

}  // namespace towline::runtime
