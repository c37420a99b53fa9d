#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/sync.h"
#include "runtime/wire/codec.h"
#include "runtime/wire/format.h"

namespace towline::runtime {

/// One connection of a migration: frames over a blocking socket.
///
/// Threads: any may send (one frame at a time, in the order of the calls); one receives; any may
/// shut it down, which makes a blocked send or receive return at once.
class Lane {
 public:
  /// `incoming` is the direction of what is received here.
  Lane(base::OwnedFd fd, wire::LaneRole role, wire::Direction incoming)
      : fd_(std::move(fd)), role_(role), incoming_(incoming) {}

  /// Sends a frame; sets length and checksum from `payload`. Errors: kDisconnected.
  base::Outcome send(wire::FrameHeader header, std::span<const std::byte> payload = {});

  /// As send(), unless another thread is sending: then nothing is done, and it counts as sent. For
  /// signs of life, which what is being sent is as well.
  base::Outcome send_if_idle(wire::FrameHeader header, std::span<const std::byte> payload = {});

  /// Sends `parts` as they are: `frames` frames that were encoded by the caller, in one flight.
  base::Outcome send_parts(std::vector<iovec> parts, std::uint64_t frames);

  struct SentAtOnce {
    std::size_t frames = 0;  ///< So many of the first ones are on their way.
    bool complete = false;   ///< All of them are, to their last byte.
  };

  /// Sends as many of `frames`, which have no payload, as the socket takes at once. Never waits,
  /// for the peer or for another sender, and never allocates. A frame that the socket took a part
  /// of counts as sent: the lane keeps the rest, which goes ahead of whatever is sent next; without
  /// frames this call sends that rest alone. Errors: kDisconnected.
  base::Expected<SentAtOnce> send_at_once(std::span<const wire::HeaderBytes> frames);

  /// From here on every sign of life (ping, pong, beat) says how many frames were sent before it,
  /// and one that arrives is refused, as corrupt, if another number came: the link lives, and a
  /// frame was lost on it. Both ends begin with it behind the handshake, before any other thread
  /// has the lane.
  void count_frames();

  [[nodiscard]] bool counts_frames() const { return counts_; }

  /// The receive failed because a frame was lost, as count_frames() says.
  [[nodiscard]] bool lost_a_frame() const { return lost_a_frame_; }

  /// Its receiver is here, and nothing comes.
  [[nodiscard]] bool waits() const { return waits_; }

  /// The next frame's header; nullopt when the peer closed between frames.
  ///
  /// Errors: kDisconnected (reset, closed inside a frame), kCorrupt (see decode_header()).
  base::Expected<std::optional<wire::FrameHeader>> receive_header();

  /// The whole payload of `header`, checksum verified, where it was received: valid until the next
  /// call. Errors: kDisconnected, kCorrupt.
  base::Expected<std::span<const std::byte>> view_payload(const wire::FrameHeader& header);

  /// As view_payload(), as a copy.
  base::Expected<std::vector<std::byte>> receive_payload(const wire::FrameHeader& header);

  /// Ends both directions; later calls fail. The descriptor stays open until the lane goes.
  void shutdown();

  [[nodiscard]] wire::LaneRole role() const { return role_; }

  [[nodiscard]] int fd() const { return fd_.get(); }

  [[nodiscard]] std::uint64_t bytes_sent() const { return sent_; }

  [[nodiscard]] std::uint64_t bytes_received() const { return received_; }

 private:
  base::Outcome put(std::vector<iovec> parts) REQUIRES(send_mutex_);
  base::Outcome put_rest() REQUIRES(send_mutex_);
  // As many bytes as were taken. Errors: kDisconnected. With MSG_DONTWAIT: 0 if none can be.
  base::Expected<std::size_t> put_some(std::span<iovec> parts, int flags) REQUIRES(send_mutex_);
  base::Expected<SentAtOnce> put_at_once(std::span<const wire::HeaderBytes> frames)
      REQUIRES(send_mutex_);
  base::Outcome put_frame(wire::FrameHeader& header, std::span<const std::byte> payload)
      REQUIRES(send_mutex_);
  base::Outcome check_count(const wire::FrameHeader& header);

  // Receives until `wanted` bytes are in the buffer; false: the peer closed before the first.
  base::Expected<bool> fill(std::size_t wanted);

  base::OwnedFd fd_;
  wire::LaneRole role_;
  wire::Direction incoming_;
  base::Mutex send_mutex_;
  // The receiving thread's own: bytes [begin, end) of the buffer were received and not yet taken.
  // Small frames come many to a system call, and a page is used where it lies.
  std::vector<std::byte> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::atomic<bool> counts_{false};
  std::uint64_t frames_sent_ GUARDED_BY(send_mutex_) = 0;
  // Of a frame that is on its way in part: its last bytes, which go first.
  wire::HeaderBytes cut_ GUARDED_BY(send_mutex_){};
  std::size_t cut_left_ GUARDED_BY(send_mutex_) = 0;
  std::uint64_t frames_received_ = 0;  // The receiving thread's own.
  std::atomic<bool> lost_a_frame_{false};
  std::atomic<bool> waits_{false};
  std::atomic<std::uint64_t> sent_{0};
  std::atomic<std::uint64_t> received_{0};
};

/// Whether `payload` is what its header's checksum says.
base::Outcome verify_payload(const wire::FrameHeader& header, std::span<const std::byte> payload);

}  // namespace towline::runtime
