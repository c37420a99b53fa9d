#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "runtime/link/lane.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {

/// Frames that leave in one system call: scattered pages would cost one each otherwise.
class FrameBatch {
 public:
  /// Adds a frame; sets length and checksum. `payload` stays where it is until send().
  void add(wire::FrameHeader header, std::span<const std::byte> payload = {});

  [[nodiscard]] bool empty() const { return heads_.empty(); }

  /// Payload and headers so far.
  [[nodiscard]] base::Bytes size() const { return base::Bytes{bytes_}; }

  [[nodiscard]] base::PageCount pages() const { return base::PageCount{pages_}; }

  /// Sends everything and is empty again. Errors: kDisconnected.
  base::Outcome send(Lane& lane);

 private:
  std::deque<wire::HeaderBytes> heads_;  // Addresses stay while it grows.
  std::vector<iovec> parts_;
  std::uint64_t bytes_ = 0;
  std::uint64_t pages_ = 0;
};

}  // namespace towline::runtime
