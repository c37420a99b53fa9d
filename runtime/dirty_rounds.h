#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/sync.h"
#include "base/units.h"
#include "runtime/memory_layout.h"
#include "runtime/ports.h"

namespace towline::runtime {

/// What the guest has written, round by round.
///
/// The order that makes it exact: no byte or hole of a range is read before its clear(); whoever
/// reads notes the round first; the round advances only after the log was read. Between clears a
/// bit stays set, so that a round's news are what is set now and was not in the last reading.
///
/// Threads: clear_for_read() any; next_round() one, while nobody reads memory for the round.
class DirtyRounds {
 public:
  DirtyRounds(DirtyLog& log, const MemoryLayout& layout);

  /// Begins logging. Everything counts as dirty until its first clear.
  base::Outcome begin();
  void end();

  /// Arms the log for the pages of `range`, which are about to be read: those that are not clear
  /// already. `range` begins at a multiple of 64 in its region and is one of 64, or ends with it.
  base::Outcome clear_for_read(base::PageRange range);

  struct Round {
    std::vector<base::PageRange> pages;  ///< Ascending, not touching; perhaps across regions.
    std::uint64_t count = 0;
  };

  /// Pages whose bit is set now and was not at the last round (or was cleared since).
  base::Expected<Round> next_round();

  /// Pages that are dirty as of the last round: their copies elsewhere are of no use.
  [[nodiscard]] std::span<const std::uint64_t> dirty(std::size_t region) const {
    return known_[region];
  }

 private:
  DirtyLog& log_;
  const MemoryLayout& layout_;
  base::Mutex log_mutex_;  // The log takes one caller at a time.
  // One bit a page. Words of known_ belong to the reader of their chunk between rounds.
  std::vector<std::vector<std::uint64_t>> known_;
  std::vector<std::vector<std::uint64_t>> read_;  // Warm: nothing is allocated in the pause.
};

}  // namespace towline::runtime
