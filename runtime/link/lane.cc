#include "runtime/link/lane.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include <fmt/format.h>

#include "base/crc32c.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::fail_errno;

constexpr std::size_t kMaxParts = 512;  // Below the kernel's UIO_MAXIOV of 1024.
// Room for the largest frame of small pages and some more behind it.
constexpr std::size_t kBufferBytes = 512U << 10U;

iovec part(std::span<const std::byte> bytes) {
  return iovec{.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
}

bool is_sign_of_life(wire::FrameType type) {
  return type == wire::FrameType::kPing || type == wire::FrameType::kPong ||
         type == wire::FrameType::kBeat;
}

// Drops the first `done` bytes from `parts`, beginning at `at`.
void advance(std::vector<iovec>& parts, std::size_t& at, std::size_t done) {
  while (at < parts.size() && done >= parts[at].iov_len) {
    done -= parts[at].iov_len;
    ++at;
  }
  if (at < parts.size()) {
    parts[at].iov_base = static_cast<std::byte*>(parts[at].iov_base) + done;
    parts[at].iov_len -= done;
  }
}

}  // namespace

base::Outcome Lane::send(wire::FrameHeader header, std::span<const std::byte> payload) {
  const base::Lock lock(send_mutex_);
  return put_frame(header, payload);
}

base::Outcome Lane::send_if_idle(wire::FrameHeader header, std::span<const std::byte> payload) {
  if (!send_mutex_.try_lock()) {
    return base::Done{};
  }
  auto sent = put_frame(header, payload);
  send_mutex_.unlock();
  return sent;
}

base::Outcome Lane::send_parts(std::vector<iovec> parts, std::uint64_t frames) {
  const base::Lock lock(send_mutex_);
  frames_sent_ += frames;
  return put(std::move(parts));
}

void Lane::count_frames() {
  const base::Lock lock(send_mutex_);
  frames_sent_ = 0;
  frames_received_ = 0;
  counts_ = true;
}

base::Outcome Lane::put_frame(wire::FrameHeader& header, std::span<const std::byte> payload) {
  if (counts_ && is_sign_of_life(header.type)) {
    header.first = frames_sent_;
  }
  ++frames_sent_;
  header.length = static_cast<std::uint32_t>(payload.size());
  header.payload_crc = payload.empty() ? 0 : base::crc32c(payload);
  const wire::HeaderBytes head = wire::encode_header(header);
  return put({part(head), part(payload)});
}

base::Outcome Lane::check_count(const wire::FrameHeader& header) {
  const std::uint64_t before = frames_received_++;
  if (!counts_ || !is_sign_of_life(header.type) || header.first == before) {
    return base::Done{};
  }
  lost_a_frame_ = true;
  return fail(
      ErrorKind::kCorrupt, "count frames",
      fmt::format("a frame was lost on a link that lives: {} were sent on the {} lane before "
                  "a {}, and {} arrived",
                  header.first, wire::to_string(role_), wire::to_string(header.type), before));
}

base::Expected<std::size_t> Lane::put_some(std::span<iovec> parts, int flags) {
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  while (true) {
    const ssize_t put = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | flags);
    if (put >= 0) {
      sent_ += static_cast<std::uint64_t>(put);
      return static_cast<std::size_t>(put);
    }
    if ((flags & MSG_DONTWAIT) != 0 && errno == EAGAIN) {
      return std::size_t{0};
    }
    if (errno != EINTR) {
      return fail_errno(ErrorKind::kDisconnected, "send",
                        fmt::format("the {} lane broke", wire::to_string(role_)));
    }
  }
}

base::Outcome Lane::put_rest() {
  while (cut_left_ != 0) {
    iovec rest = part(std::span(cut_).last(cut_left_));
    cut_left_ -= TRY(put_some({&rest, 1}, 0));
  }
  return base::Done{};
}

base::Outcome Lane::put(std::vector<iovec> parts) {
  TRY(put_rest());
  std::size_t at = 0;
  advance(parts, at, 0);
  while (at < parts.size()) {
    const std::size_t some = std::min(parts.size() - at, kMaxParts);
    advance(parts, at, TRY(put_some(std::span(parts).subspan(at, some), 0)));
  }
  return base::Done{};
}

base::Expected<Lane::SentAtOnce> Lane::send_at_once(std::span<const wire::HeaderBytes> frames) {
  if (!send_mutex_.try_lock()) {
    return SentAtOnce{};  // Whoever sends may be waiting for the peer.
  }
  auto sent = put_at_once(frames);
  send_mutex_.unlock();
  return sent;
}

base::Expected<Lane::SentAtOnce> Lane::put_at_once(std::span<const wire::HeaderBytes> frames) {
  // What was cut, and behind it the frames, which lie together.
  std::array<iovec, 2> parts = {part(std::span(cut_).last(cut_left_)), part(std::as_bytes(frames))};
  const std::size_t all = parts[0].iov_len + parts[1].iov_len;
  const std::size_t put = all == 0 ? 0 : TRY(put_some(parts, MSG_DONTWAIT));
  if (put < cut_left_) {
    cut_left_ -= put;
    return SentAtOnce{};
  }
  const std::size_t of_frames = put - cut_left_;
  const std::size_t begun = (of_frames + wire::kHeaderBytes - 1) / wire::kHeaderBytes;
  cut_left_ = begun * wire::kHeaderBytes - of_frames;
  if (cut_left_ != 0) {
    cut_ = frames[begun - 1];
  }
  frames_sent_ += begun;
  return SentAtOnce{begun, put == all};
}

base::Expected<bool> Lane::fill(std::size_t wanted) {
  if (buffer_.size() - begin_ < wanted) {
    std::copy(buffer_.begin() + static_cast<std::ptrdiff_t>(begin_),
              buffer_.begin() + static_cast<std::ptrdiff_t>(end_), buffer_.begin());
    end_ -= begin_;
    begin_ = 0;
    // Bounded: `wanted` is a header or a payload within its type's limit. A payload's header fits
    // in front of it, so that the next of its size need not be moved.
    buffer_.resize(std::max({buffer_.size(), wanted + wire::kHeaderBytes, kBufferBytes}));
  }
  while (end_ - begin_ < wanted) {
    waits_ = true;
    const ssize_t got = ::recv(fd_.get(), buffer_.data() + end_, buffer_.size() - end_, 0);
    waits_ = false;
    if (got > 0) {
      end_ += static_cast<std::size_t>(got);
      received_ += static_cast<std::uint64_t>(got);
    } else if (got == 0 && end_ == begin_) {
      return false;
    } else if (got == 0) {
      return fail(ErrorKind::kDisconnected, "receive",
                  fmt::format("the {} lane was closed inside a frame, after {} of {} bytes",
                              wire::to_string(role_), end_ - begin_, wanted));
    } else if (errno != EINTR) {
      return fail_errno(ErrorKind::kDisconnected, "receive",
                        fmt::format("the {} lane broke", wire::to_string(role_)));
    }
  }
  return true;
}

base::Expected<std::optional<wire::FrameHeader>> Lane::receive_header() {
  if (begin_ == end_) {
    begin_ = end_ = 0;
  }
  if (!TRY(fill(wire::kHeaderBytes))) {
    return std::optional<wire::FrameHeader>();
  }
  const std::span<const std::byte, wire::kHeaderBytes> bytes(&buffer_[begin_], wire::kHeaderBytes);
  begin_ += wire::kHeaderBytes;
  const auto header = TRY(wire::decode_header(bytes, role_, incoming_));
  TRY(check_count(header));
  return std::optional(header);
}

base::Expected<std::span<const std::byte>> Lane::view_payload(const wire::FrameHeader& header) {
  if (header.length != 0 && !TRY(fill(header.length))) {
    return fail(ErrorKind::kDisconnected, "receive",
                fmt::format("the {} lane was closed before the payload of a {} frame",
                            wire::to_string(role_), wire::to_string(header.type)));
  }
  const std::span<const std::byte> payload(buffer_.data() + begin_, header.length);
  begin_ += header.length;
  TRY(verify_payload(header, payload));
  return payload;
}

base::Expected<std::vector<std::byte>> Lane::receive_payload(const wire::FrameHeader& header) {
  const auto payload = TRY(view_payload(header));
  return std::vector<std::byte>(payload.begin(), payload.end());
}

void Lane::shutdown() {
  // ENOTCONN: the peer was faster. Nothing else can happen to a socket of ours.
  [[maybe_unused]] const int result = ::shutdown(fd_.get(), SHUT_RDWR);
}

base::Outcome verify_payload(const wire::FrameHeader& header, std::span<const std::byte> payload) {
  const std::uint32_t found = payload.empty() ? 0 : base::crc32c(payload);
  if (found != header.payload_crc) {
    return fail(
        ErrorKind::kCorrupt, "verify frame",
        fmt::format("a {} frame of {} bytes has checksum {:08x}, its header says {:08x}",
                    wire::to_string(header.type), payload.size(), found, header.payload_crc));
  }
  return base::Done{};
}

}  // namespace towline::runtime
