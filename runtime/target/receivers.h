#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/sync.h"
#include "base/thread.h"
#include "base/units.h"
#include "runtime/core/memory_layout.h"
#include "runtime/core/page_map.h"
#include "runtime/core/page_receiver.h"
#include "runtime/link/lane.h"
#include "runtime/target/missing_sweep.h"
#include "runtime/target/request_sender.h"
#include "runtime/wire/lane_name.h"

namespace towline::runtime {

/// The target's urgent and bulk lanes: a thread each, which reads frames and hands the pages on.
///
/// It knows the order between lanes: the passes' markers, and which frames may come when.
/// Threads: any.
class Receivers {
 public:
  /// Who is told of what happens, from the lanes' threads, and asked for room. Outlives this.
  class Owner {
   public:
    Owner() = default;
    Owner(const Owner&) = delete;
    Owner& operator=(const Owner&) = delete;
    virtual ~Owner() = default;

    /// A page arrived; something may be complete now.
    virtual void on_progress() = 0;

    /// A lane ended, or sent what cannot be right. Once for each receiver that was started, unless
    /// another one is to take its place already.
    virtual void on_lane_ended(LaneName lane, std::uint32_t attempt, const base::Error& reason) = 0;

    /// A lane took the place of one whose receiver has ended: every claim of that is settled, and
    /// no frame of it can be installed any more. From the new lane's thread, before it reads.
    virtual void on_lane_replaced(LaneName lane, std::uint32_t attempt) = 0;

    /// Asked now and then, before pages are taken: an error ends the lane.
    [[nodiscard]] virtual base::Outcome room() const = 0;

    /// Before the switch: there is no room for pages, for this reason. Returns when it is worth
    /// another try; an error ends the lane.
    virtual base::Outcome wait_for_room(const base::Error& reason) = 0;

    /// Who had waited has stored its pages.
    virtual void found_room() = 0;
  };

  Receivers(const MemoryLayout& layout, const PageMap& map, std::size_t bulk_lanes, Owner& owner);
  Receivers(const Receivers&) = delete;
  Receivers& operator=(const Receivers&) = delete;
  ~Receivers();

  /// Pages go there from now on, and requests leave by `sender`. Before the first lane is attached.
  void deliver_to(PageReceiver& receiver, RequestSender& sender) {
    receiver_ = &receiver;
    sender_ = &sender;
    sweep_.ask_by(sender);
  }

  /// Takes the lane over and starts its thread. After shutdown() or lose() it ends instead.
  /// `name`: one of those there are, and not there yet.
  void attach(LaneName name, std::unique_ptr<Lane> lane);

  /// As attach(), in the place of a lane that is there: ends that one and waits, on the new lane's
  /// thread, until its receiver has ended. `attempt`: later than every other one at this lane.
  void replace(LaneName name, std::unique_ptr<Lane> lane, std::uint32_t attempt);

  /// The lanes of the next epoch may come. Call after shutdown(), when no more lanes are attached:
  /// joins the old lanes' threads, so that every claim of theirs has ended, and forgets the lanes.
  void renew();

  /// Waits until the urgent and every bulk lane is there. Errors: kDisconnected: they are not
  /// within `patience`, or the link was lost.
  base::Outcome wait_attached(std::chrono::milliseconds patience);

  /// Ends the urgent lane alone: its receiver says that it ended for `reason`.
  void end_urgent(const base::Error& reason);

  /// Ends the lane, whose receiver has ended, in both directions.
  void shutdown(LaneName name);

  /// Who waits for a lane or for a marker waits in vain.
  void lose();

  /// The source takes requests on the urgent lane that is there now: all that were sent on another
  /// one, and those that are due, leave by it. Returns how many pages wait.
  std::size_t ask_again();

  /// Asks for what a lost urgent lane may have been asked for: what was being swept.
  void sweep_again();

  /// Waits until every bulk lane has ended pass `pass`, or the link is lost.
  /// Errors: kDisconnected.
  base::Outcome wait_for_markers(std::uint32_t pass);

  /// A marker that wait_for_markers() waits for, and the lane that is to bring it: its receiver
  /// waits, and nothing has come for so long. A lane that waits for room, or is busy with what
  /// came, is not silent. Call it every `interval`, from one thread: a late call proves nothing.
  struct OverdueMarker {
    LaneName lane;
    std::uint32_t pass = 0;
    base::Duration silent_for{};
  };

  [[nodiscard]] std::optional<OverdueMarker> overdue_marker(base::Instant now,
                                                            base::Duration interval);

  /// wait_for_markers() fails, for this reason.
  void give_up_markers(const std::string& reason);

  /// Every lane is there, and its receiver waits for more.
  [[nodiscard]] bool all_wait() const;

  /// From here on pages of the time after the switch are accepted, and no others; and requests
  /// leave: the source takes none before.
  void open_postcopy();

  /// Ends our direction of every lane; what the peer sent can still be read.
  void finish_sending();

  /// Ends every lane at once.
  void shutdown();

  /// After shutdown(): waits until every receiver has ended. What they stored is there, and nothing
  /// comes behind it. Not from a lane's thread, nor beside renew().
  void join();

  [[nodiscard]] std::uint64_t bytes_received() const;

  /// What the source's kernel owes of acknowledgements on the urgent lane, as unacknowledged_for().
  [[nodiscard]] std::optional<base::Duration> unacknowledged() const;

  /// Pages that came after the switch on these lanes.
  [[nodiscard]] std::uint64_t postcopy_pages() const { return postcopy_pages_; }

 private:
  struct Slot {
    // Changed under mutex_; the lane's own thread needs no lock. Shared with who is just asking.
    std::shared_ptr<Lane> lane;
    LaneName name;                         // Constant.
    std::uint32_t markers = 0;             // Passes ended. Under mutex_.
    bool pushed_all = false;               // Under mutex_.
    std::uint32_t attempt = 0;             // The latest that came. Under mutex_.
    std::optional<base::Error> ended_for;  // Ended by us alone. Under mutex_.
    std::uint64_t bytes_seen = 0;          // By overdue_marker(). Under mutex_.
    base::Instant silent_since{};          // As far as that knows. Under mutex_.
    base::NamedThread thread;              // Last: it uses the rest until it has ended.
  };

  /// The lanes of one epoch. Its end is the fence: every receiver has ended behind it, with every
  /// claim of theirs, and nothing that was true of its lanes is left for the next one.
  struct Epoch {
    explicit Epoch(std::size_t bulk_lanes);

    bool lost = false;  // Nobody waits for one of its lanes any more.
    bool asks = false;  // The source takes requests.
    Slot urgent;
    std::vector<Slot> bulk;
  };

  [[nodiscard]] bool all_lanes(const std::function<bool(const Slot&)>& is) const REQUIRES(mutex_);
  void each_lane(const std::function<void(Lane&)>& with) const REQUIRES(mutex_);
  [[nodiscard]] std::uint64_t bytes_of_lanes() const REQUIRES(mutex_);
  base::Error read_until_end(Slot& slot);
  base::Outcome on_bulk_frame(Slot& slot, const wire::FrameHeader& header);
  base::Outcome on_urgent_frame(Slot& slot, const wire::FrameHeader& header);
  base::Outcome on_marker(Slot& slot, const wire::FrameHeader& header);
  base::Outcome check_round(const Slot& slot, const wire::FrameHeader& header);
  base::Outcome check_pages(const wire::FrameHeader& header) const;
  base::Expected<std::span<const std::byte>> read_pages(Lane& lane,
                                                        const wire::FrameHeader& header) const;
  base::Outcome check_room(std::uint64_t bytes);
  base::Outcome take_in_pass(Slot& slot, const std::function<base::Outcome()>& take);
  base::Outcome wait_for_room(Slot& slot, const base::Error& reason);
  void report_end(const Slot& slot, std::uint32_t attempt, base::Error reason);
  Slot& slot_of(LaneName name) REQUIRES(mutex_);
  void run(Slot& slot, std::uint32_t attempt);
  void run_in_place(Slot& slot, std::unique_ptr<Lane> lane, std::uint32_t attempt);
  base::NamedThread lane_thread(const Slot& slot, std::function<void()> body);

  const MemoryLayout& layout_;
  Owner& owner_;
  PageReceiver* receiver_ = nullptr;
  RequestSender* sender_ = nullptr;
  std::atomic<bool> postcopy_{false};
  std::atomic<std::uint64_t> postcopy_pages_{0};
  std::atomic<std::uint64_t> page_bytes_{0};  // Of pages received, on all lanes.
  std::atomic<std::size_t> waiting_{0};       // Lanes that wait for room.

  mutable base::Mutex mutex_;
  base::Condition changed_;
  std::unique_ptr<Epoch> epoch_ GUARDED_BY(mutex_);    // Never null.
  std::uint32_t awaited_pass_ GUARDED_BY(mutex_) = 0;  // 0: no marker is waited for.
  std::string given_up_ GUARDED_BY(mutex_);            // Why no marker is waited for any more.
  base::Instant markers_looked_ GUARDED_BY(mutex_){};
  std::uint64_t bytes_of_past_lanes_ GUARDED_BY(mutex_) = 0;
  MissingSweep sweep_;
};

}  // namespace towline::runtime
