// The markers of a pass: who waits for them, and which one is overdue.
#include <algorithm>

#include "runtime/target/receivers.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

}  // namespace

Outcome Receivers::wait_for_markers(std::uint32_t pass) {
  const base::Lock lock(mutex_);
  const auto all_seen = [&]() UNDER_LOCK {
    return std::all_of(epoch_->bulk.begin(), epoch_->bulk.end(),
                       [&](const Slot& slot) { return slot.markers >= pass; });
  };
  awaited_pass_ = pass;
  changed_.wait(mutex_,
                [&]() UNDER_LOCK { return epoch_->lost || !given_up_.empty() || all_seen(); });
  awaited_pass_ = 0;
  // A lane that broke after its marker has delivered all of the pass: the order behind it counts.
  if (!all_seen() && !given_up_.empty()) {
    return fail(ErrorKind::kCorrupt, "wait for markers", given_up_);
  }
  if (!all_seen()) {
    return fail(ErrorKind::kDisconnected, "wait for markers", "a lane broke during the pre-pass");
  }
  return base::Done{};
}

std::optional<Receivers::OverdueMarker> Receivers::overdue_marker(base::Instant now,
                                                                  base::Duration interval) {
  const base::Lock lock(mutex_);
  const bool late = now - markers_looked_ > interval * 2;
  markers_looked_ = now;
  std::optional<OverdueMarker> longest;
  for (Slot& slot : epoch_->bulk) {
    if (awaited_pass_ == 0 || slot.lane == nullptr || slot.markers >= awaited_pass_) {
      slot.silent_since = now;
      continue;
    }
    const std::uint64_t bytes = slot.lane->bytes_received();
    if (late || bytes != slot.bytes_seen || !slot.lane->waits()) {
      slot.bytes_seen = bytes;
      slot.silent_since = now;
    }
    const base::Duration silent = now - slot.silent_since;
    if (!longest.has_value() || silent > longest->silent_for) {
      longest = OverdueMarker{slot.name, awaited_pass_, silent};
    }
  }
  return longest;
}

void Receivers::give_up_markers(const std::string& reason) {
  const base::Lock lock(mutex_);
  given_up_ = reason;
  changed_.notify_all();
}

}  // namespace towline::runtime
