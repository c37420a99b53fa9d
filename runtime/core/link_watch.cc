#include "runtime/core/link_watch.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

namespace towline::runtime {
namespace {

std::int64_t to_ms(base::Duration duration) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
}

}  // namespace

LinkVerdict LinkWatch::look(base::Instant now, const LinkSigns& signs) {
  const base::Duration late = now - last_ - limits_.interval;
  last_ = now;
  if (late > limits_.interval) {
    heard_ += late;
    if (unacknowledged_since_.has_value()) {
      *unacknowledged_since_ += late;
    }
  }
  if (signs.bytes_received != bytes_) {
    bytes_ = signs.bytes_received;
    heard_ = now;
  }
  if (!signs.unacknowledged.has_value()) {
    unacknowledged_since_.reset();
    unacknowledged_ = {};
  } else {
    if (!unacknowledged_since_.has_value()) {
      unacknowledged_since_ = now;
    }
    // The kernel's word and our own: its clock runs on while this process is held up.
    unacknowledged_ = std::min(*signs.unacknowledged, now - *unacknowledged_since_);
  }
  silent_ = now - heard_;
  if (unacknowledged_ >= limits_.patience) {
    return LinkVerdict::kDead;
  }
  return silent_ >= limits_.frozen ? LinkVerdict::kFrozen : LinkVerdict::kAlive;
}

std::string LinkWatch::explain(LinkVerdict verdict, const std::string& device) const {
  switch (verdict) {
    case LinkVerdict::kAlive:
      return "the link is alive";
    case LinkVerdict::kDead:
      return fmt::format("the link is dead: nothing is acknowledged since {} ms{}{}",
                         to_ms(unacknowledged_), device.empty() ? "" : "; ", device);
    case LinkVerdict::kFrozen:
      return fmt::format(
          "the peer is frozen: its kernel acknowledges, its process is silent since {} ms",
          to_ms(silent_));
  }
  __builtin_unreachable();
}

bool LaneWatch::look(base::Instant now, std::optional<base::Duration> unacknowledged) {
  const base::Duration late = now - last_ - interval_;
  last_ = now;
  if (!unacknowledged.has_value()) {
    since_.reset();
    unacknowledged_ = {};
    return false;
  }
  if (!since_.has_value()) {
    since_ = now;
  } else if (late > interval_) {
    *since_ += late;
  }
  unacknowledged_ = std::min(*unacknowledged, now - *since_);
  return unacknowledged_ >= patience_;
}

std::string LaneWatch::explain() const {
  return fmt::format("nothing is acknowledged on it since {} ms, while the link is alive",
                     to_ms(unacknowledged_));
}

std::optional<base::Duration> unacknowledged_for(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 || info.tcpi_unacked == 0) {
    return std::nullopt;
  }
  return std::chrono::milliseconds(info.tcpi_last_ack_recv);
}

bool has_ended(int fd) {
  pollfd look{.fd = fd, .events = POLLRDHUP, .revents = 0};
  return ::poll(&look, 1, 0) > 0 && (look.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace towline::runtime
