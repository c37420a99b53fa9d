#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/error.h"
#include "base/fd.h"
#include "base/sync.h"
#include "base/thread.h"
#include "base/units.h"
#include "runtime/core/request_table.h"
#include "runtime/link/lane.h"

namespace towline::runtime {

/// Sends the target's requests on its urgent lane, and never makes a caller wait for the source.
///
/// A call sends what the socket takes at once. The rest stays due in the request table, and the
/// thread "tl-ask" sends it as soon as the socket takes more: the fault thread must answer the
/// guest, and who reads answers must read on, or neither end would ever read again.
///
/// Nobody else sends on the lane. Threads: any.
class RequestSender {
 public:
  /// Sweeps that may wait here for the socket.
  static constexpr std::size_t kMostSweeps = 32;

  /// `requests` outlives this. Errors: kFailed: no descriptors left.
  static base::Expected<std::unique_ptr<RequestSender>> start(RequestTable& requests);

  RequestSender(const RequestSender&) = delete;
  RequestSender& operator=(const RequestSender&) = delete;
  ~RequestSender();

  /// The lane to send on from now on; nullptr: none, and what is due waits. What was sent before
  /// may be lost with its lane: every page that is outstanding is due again. Returns how many those
  /// are.
  std::size_t use(std::shared_ptr<Lane> lane) EXCLUDES(mutex_);

  /// Sends what is due in the request table. Allocates nothing.
  void ask() EXCLUDES(mutex_);

  /// Requests a range that nobody waits for, behind all that is due. At most kMostSweeps may be
  /// unanswered.
  void sweep(base::PageRange range) EXCLUDES(mutex_);

  /// Those that wait for the socket are not sent any more.
  void forget_sweeps() EXCLUDES(mutex_);

  /// Pages that were asked for because somebody waits.
  [[nodiscard]] std::uint64_t sent() const { return sent_; }

 private:
  RequestSender(RequestTable& requests, base::OwnedFd wake);
  void run();
  // True: the lane takes no more now, and there is more to send.
  bool send() REQUIRES(mutex_);
  // True: all of these are on their way.
  bool send_due() REQUIRES(mutex_);
  bool send_sweeps() REQUIRES(mutex_);
  Lane::SentAtOnce put_frames(std::span<const wire::HeaderBytes> frames) REQUIRES(mutex_);

  RequestTable& requests_;
  base::OwnedFd wake_;  // For tl-ask: there is more to send, or another lane to send it on.
  std::atomic<std::uint64_t> sent_{0};
  base::Mutex mutex_;  // Nobody waits for anything while holding it.
  bool ending_ GUARDED_BY(mutex_) = false;
  std::shared_ptr<Lane> lane_ GUARDED_BY(mutex_);  // Absent, too, when it broke.
  std::array<base::PageRange, kMostSweeps> sweeps_ GUARDED_BY(mutex_){};  // A ring.
  std::size_t first_sweep_ GUARDED_BY(mutex_) = 0;
  std::size_t sweeps_waiting_ GUARDED_BY(mutex_) = 0;
  base::NamedThread thread_;
};

}  // namespace towline::runtime
