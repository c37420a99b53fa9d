#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "runtime/core/owed_pages.h"
#include "runtime/link/lane.h"
#include "runtime/source/counters.h"
#include "runtime/source/memory.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {

/// Frames of the control lane that leave in one send(): a stale set, or all of the switch.
class SwitchFlight {
 public:
  /// The pages that changed, and the end of the round. `pass`: whose markers to wait for.
  void add_stale(std::span<const base::PageRange> runs, std::uint64_t count, std::uint32_t pass,
                 bool final_round);

  /// The pages that KVM and the guest touch at once, as far as they are owed: `first`, then the
  /// last ones written. Bounded. Takes them from `owed`.
  base::Outcome add_first_pages(const SourceMemory& memory, OwedPages& owed,
                                std::span<const base::PageIndex> first,
                                std::span<const base::PageRange> last_written,
                                SourceCounters& counters);

  void add_state(std::vector<std::byte> encoded);
  void add_run();

  base::Outcome send(Lane& control);

 private:
  void add(wire::FrameHeader header, std::vector<std::byte> payload);

  struct Part {
    wire::HeaderBytes head{};
    std::vector<std::byte> payload;
  };

  std::deque<Part> parts_;  // Addresses stay while it grows.
};

}  // namespace towline::runtime
