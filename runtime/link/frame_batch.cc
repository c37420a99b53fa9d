#include "runtime/link/frame_batch.h"

#include <utility>

#include "base/crc32c.h"

namespace towline::runtime {

void FrameBatch::add(wire::FrameHeader header, std::span<const std::byte> payload) {
  header.length = static_cast<std::uint32_t>(payload.size());
  header.payload_crc = payload.empty() ? 0 : base::crc32c(payload);
  heads_.push_back(wire::encode_header(header));
  parts_.push_back(iovec{.iov_base = heads_.back().data(), .iov_len = heads_.back().size()});
  if (!payload.empty()) {
    parts_.push_back(
        iovec{.iov_base = const_cast<std::byte*>(payload.data()), .iov_len = payload.size()});
    pages_ += header.count;
  }
  bytes_ += heads_.back().size() + payload.size();
}

base::Outcome FrameBatch::send(Lane& lane) {
  auto sent = lane.send_parts(std::exchange(parts_, {}), heads_.size());
  heads_.clear();
  bytes_ = 0;
  pages_ = 0;
  return sent;
}

}  // namespace towline::runtime
