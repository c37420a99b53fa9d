#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "runtime/wire/codec.h"

namespace towline::tests {

/// One whole frame as it crosses the wire.
struct SampleFrame {
  std::string name;
  runtime::wire::LaneRole lane = runtime::wire::LaneRole::kControl;
  runtime::wire::Direction direction = runtime::wire::Direction::kToTarget;
  runtime::wire::FrameHeader header;  ///< Complete: length and checksum are those of `payload`.
  std::vector<std::byte> payload;

  /// Header and payload.
  [[nodiscard]] std::vector<std::byte> bytes() const;
};

/// One or two frames of every type, always the same. The golden files, the worked bytes of the
/// documentation and the seeds of the fuzz corpus are made of them.
const std::vector<SampleFrame>& sample_frames();

const SampleFrame& sample_frame(const std::string& name);

runtime::wire::Hello sample_hello();
runtime::wire::HelloReply sample_hello_reply();

}  // namespace towline::tests
