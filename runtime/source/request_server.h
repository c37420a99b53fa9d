#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"
#include "runtime/core/owed_pages.h"
#include "runtime/core/push_order.h"
#include "runtime/link/lane.h"
#include "runtime/source/counters.h"
#include "runtime/source/memory.h"

namespace towline::runtime {

/// The source's urgent lane: reads requests and answers them, on "tl-serve".
///
/// From the switch on it needs files and a socket: no KVM, no vCPU, no lock that bulk holds. The
/// push order hears of a demand after its answer has left. A page that was pushed already is sent
/// again: a duplicate is harmless, waiting is not.
class RequestServer {
 public:
  /// `open`: as open(), before the first request can be read. `lost` is called once, from tl-serve,
  /// when the lane ends. All references outlive this.
  RequestServer(std::unique_ptr<Lane> lane, const SourceMemory& memory, OwedPages& owed,
                PushOrder& order, SourceCounters& counters, bool open,
                std::function<void(const base::Error&)> lost);
  RequestServer(const RequestServer&) = delete;
  RequestServer& operator=(const RequestServer&) = delete;
  ~RequestServer();

  /// Requests may be answered from now on: the guest is parked and its last delta is owed. A
  /// request before that is a lie.
  void open() { open_ = true; }

  void stop() { lane_->shutdown(); }

  [[nodiscard]] std::uint64_t bytes_sent() const { return lane_->bytes_sent(); }

  [[nodiscard]] std::uint64_t bytes_received() const { return lane_->bytes_received(); }

  /// For what the kernel knows of the connection.
  /// Nothing is asked of it that it has not answered.
  [[nodiscard]] bool waits() const { return lane_->waits(); }

  [[nodiscard]] int fd() const { return lane_->fd(); }

 private:
  void run();
  base::Outcome serve();
  base::Outcome answer(const wire::FrameHeader& request);
  base::Outcome send_part(base::PageRange part, bool ends_sweep, base::Instant since);

  std::unique_ptr<Lane> lane_;
  const SourceMemory& memory_;
  OwedPages& owed_;
  PushOrder& order_;
  SourceCounters& counters_;
  std::function<void(const base::Error&)> lost_;
  std::atomic<bool> open_{false};
  std::vector<std::byte> buffer_;  // tl-serve's own; grows to one frame.
  base::NamedThread thread_;
};

}  // namespace towline::runtime
