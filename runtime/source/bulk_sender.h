#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/sync.h"
#include "base/thread.h"
#include "base/units.h"
#include "runtime/core/dirty_rounds.h"
#include "runtime/core/owed_pages.h"
#include "runtime/core/push_order.h"
#include "runtime/core/rate_limiter.h"
#include "runtime/link/frame_batch.h"
#include "runtime/link/lane.h"
#include "runtime/source/counters.h"
#include "runtime/source/memory.h"

namespace towline::runtime {

/// The source's bulk lanes: a pass over running memory before the switch, the push of what is owed
/// after it. One thread a lane while there is something to send, "tl-bulk-N".
///
/// Threads: run_pass() and start_push() from the session's thread; stop() from any.
class BulkSender {
 public:
  BulkSender(const SourceMemory& memory, OwedPages& owed, SourceCounters& counters,
             std::uint64_t max_bandwidth);
  BulkSender(const BulkSender&) = delete;
  BulkSender& operator=(const BulkSender&) = delete;
  ~BulkSender();

  /// Before the first pass or push.
  void add_lane(std::unique_ptr<Lane> lane);

  /// Sends memory while the guest runs: everything in pass 1, what is dirty in later ones. Every
  /// lane ends with the pass's marker. Blocks until all have. Errors: the first lane's.
  base::Outcome run_pass(std::uint32_t pass, DirtyRounds& rounds);

  /// The switch was asked for: the pass in progress ends after the frames that are being sent. What
  /// it did not reach is owed. Threads: any.
  void cut_pass();

  [[nodiscard]] bool was_cut() const { return cut_; }

  /// During a pass: the target takes no pages until go_on(). Nothing more is sent; what is under
  /// way is borne with until the pass has ended, however long that takes. Threads: any.
  void hold_back();
  void go_on();

  /// A lane's number, its attempt (0: the first one) and how it broke.
  using Lost = std::function<void(std::uint8_t, std::uint32_t, const base::Error&)>;

  /// Sends everything owed, in the order's order, and then each lane's last marker. The guest is
  /// parked for good. `lost` is called from a lane's thread if it breaks; what that thread had
  /// taken and could not send is owed again, and it waits for replace() or stop().
  void start_push(PushOrder& order, bool holes_first, const Lost& lost);

  /// Ends lane `number` at once: nothing is sent on it when this returns. Threads: any.
  void end_lane(std::uint8_t number);

  /// A new lane in the place of one that was ended: its thread goes on with that. What was under
  /// way on the old one is the caller's to add to what is owed. During the push only.
  void replace(std::uint8_t number, std::unique_ptr<Lane> lane, std::uint32_t attempt);

  struct Glance {
    std::uint32_t attempt = 0;
    std::optional<base::Duration> unacknowledged;  ///< As unacknowledged_for().
    bool waits = false;  ///< All that was owed is sent, and the lane's last marker.
    bool ended = false;  ///< By the peer or the network; its thread may be waiting for its turn.
  };

  /// What the kernel knows of each lane, in the order of their numbers. Threads: any.
  [[nodiscard]] std::vector<Glance> glance() const;

  void set_bandwidth(std::uint64_t bytes_per_second) { limiter_.set_rate(bytes_per_second); }

  /// Ends all lanes at once; blocked senders return.
  void stop();

  [[nodiscard]] std::uint64_t bytes_sent() const;

 private:
  base::Outcome pass_worker(Lane& lane, std::uint32_t pass, DirtyRounds& rounds);
  base::Outcome send_chunk(Lane& lane, std::uint32_t pass, DirtyRounds& rounds,
                           base::PageRange chunk, std::vector<std::byte>& buffer);
  base::Outcome send_run(Lane& lane, std::uint32_t pass, base::PageRange run,
                         std::vector<std::byte>& buffer);
  base::Outcome send_copied(Lane& lane, std::uint32_t pass, base::PageRange run,
                            std::vector<std::byte>& buffer);
  void push_thread(std::uint8_t number, PushOrder& order, bool holes_first, const Lost& lost);
  base::Outcome push_worker(Lane& lane, PushOrder& order, bool holes_first);
  base::Outcome push_owed(Lane& lane, PushOrder& order);
  base::Outcome push_holes(Lane& lane);
  base::Outcome wait_for_end(Lane& lane);
  base::Outcome send_taken(Lane& lane, FrameBatch& batch, std::vector<base::PageRange>& taken);
  void owe_again(const std::vector<base::PageRange>& taken);
  base::Outcome add_owed(FrameBatch& batch, base::PageRange run, std::vector<std::byte>& buffer);
  base::Outcome send(Lane& lane, FrameBatch& batch);
  void wait_while_held() EXCLUDES(lanes_mutex_);
  void begin_sending() EXCLUDES(lanes_mutex_);
  void add_split(FrameBatch& batch, std::uint32_t round, base::PageRange run,
                 std::span<const std::byte> bytes);
  void add_zeros(FrameBatch& batch, std::uint32_t round, base::PageRange run);
  base::Outcome send_marker(Lane& lane, std::uint32_t round);
  std::optional<base::PageRange> next_chunk();

  const SourceMemory& memory_;
  OwedPages& owed_;
  SourceCounters& counters_;
  RateLimiter limiter_;

  struct Slot {
    std::shared_ptr<Lane> lane;  // Shared with the thread that is sending.
    std::uint32_t attempt = 0;
  };

  // The next lane for a thread whose last one was of attempt `after`. nullopt: no more will come.
  std::optional<Slot> next_lane(std::uint8_t number, std::optional<std::uint32_t> after)
      EXCLUDES(lanes_mutex_);

  mutable base::Mutex lanes_mutex_;
  base::Condition lanes_changed_;
  std::vector<Slot> lanes_ GUARDED_BY(lanes_mutex_);
  std::uint64_t bytes_of_past_lanes_ GUARDED_BY(lanes_mutex_) = 0;
  std::atomic<bool> stopped_{false};
  std::atomic<bool> cut_{false};
  std::atomic<bool> held_{false};  // Written under lanes_mutex_.

  base::Mutex holes_mutex_;  // Held while somebody sends them.
  std::atomic<bool> holes_taken_{false};

  base::Mutex mutex_;
  base::PageIndex cursor_ GUARDED_BY(mutex_);
  std::vector<base::NamedThread> push_threads_;
};

}  // namespace towline::runtime
