// The target's data lanes: which frames may come when, and what becomes of them.
#include <algorithm>
#include <functional>
#include <utility>

#include <fmt/format.h>

#include "runtime/core/link_watch.h"
#include "runtime/target/receivers.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;
using base::PageCount;
using base::PageIndex;
using base::PageRange;
using wire::FrameHeader;
using wire::FrameType;

PageRange range_of(const FrameHeader& header) {
  return PageRange{PageIndex{header.first}, PageCount{header.count}};
}

base::Error corrupt_frame(std::string detail) {
  return base::Error{ErrorKind::kCorrupt, 0, "frame", std::move(detail)};
}

}  // namespace

Outcome Receivers::check_round(const Slot& slot, const FrameHeader& header) {
  const base::Lock lock(mutex_);
  const bool after = header.round == wire::kPostcopyRound;
  if (after != postcopy_ || (!after && header.round != slot.markers + 1)) {
    return base::Err{corrupt_frame(fmt::format(
        "a {} frame of round {} came in {} {}", wire::to_string(header.type), header.round,
        postcopy_ ? "post-copy, after pass" : "pass", slot.markers + (postcopy_ ? 0 : 1)))};
  }
  return base::Done{};
}

Outcome Receivers::check_pages(const FrameHeader& header) const {
  if (!layout_.valid(range_of(header))) {
    return base::Err{
        corrupt_frame(fmt::format("pages [{}, +{}) are not in one region of the {} there are",
                                  header.first, header.count, layout_.pages().value))};
  }
  return base::Done{};
}

base::Expected<std::span<const std::byte>> Receivers::read_pages(Lane& lane,
                                                                 const FrameHeader& header) const {
  TRY(check_pages(header));
  const auto region = layout_.region_of(PageIndex{header.first});
  const std::uint64_t size = layout_.entries()[region].page_size.value * header.count;
  if (size != header.length) {
    return base::Err{corrupt_frame(fmt::format("{} pages have {} bytes, the frame has {}",
                                               header.count, size, header.length))};
  }
  return lane.view_payload(header);
}

// A frame of a pass is in no hurry: without room the lane waits, with the frame in its own buffer
// and no claim, and then tries again. Its marker comes later on this lane, so that nobody can take
// the pass for done meanwhile.
Outcome Receivers::take_in_pass(Slot& slot, const std::function<Outcome()>& take) {
  auto taken = take();
  bool waited = false;
  while (!taken.ok() && taken.error().kind == ErrorKind::kOverloaded) {
    TRY(wait_for_room(slot, taken.error()));
    waited = true;
    taken = owner_.room();
    if (taken.ok()) {
      taken = take();
    }
  }
  if (waited && taken.ok()) {
    owner_.found_room();
  }
  return taken;
}

Outcome Receivers::wait_for_room(Slot& slot, const base::Error& reason) {
  ++waiting_;
  auto waited = owner_.wait_for_room(reason);
  --waiting_;
  // Nobody reads the lane meanwhile: its end is asked for.
  if (waited.ok() && has_ended(slot.lane->fd())) {
    return fail(ErrorKind::kDisconnected, "receive",
                "a bulk lane broke while it waited for room for its pages");
  }
  return waited;
}

Outcome Receivers::on_bulk_frame(Slot& slot, const FrameHeader& header) {
  TRY(check_round(slot, header));
  const bool after = header.round == wire::kPostcopyRound;
  if (header.type == FrameType::kMarker) {
    return on_marker(slot, header);
  }
  if (header.type == FrameType::kZeros) {
    TRY(check_pages(header));
    return receiver_->on_zeros(range_of(header));
  }
  if (header.type != FrameType::kPages) {
    return base::Err{corrupt_frame(fmt::format("{} on a bulk lane", wire::to_string(header.type)))};
  }
  const auto bytes = TRY(read_pages(*slot.lane, header));
  const auto take = [&]() -> Outcome {
    TRY(check_room(bytes.size()));
    return receiver_->on_pages(range_of(header), bytes);
  };
  if (!after) {
    return take_in_pass(slot, take);
  }
  postcopy_pages_ += header.count;
  return take();
}

Outcome Receivers::on_marker(Slot& slot, const FrameHeader& header) {
  bool all_pushed = false;
  {
    const base::Lock lock(mutex_);
    if (header.round == wire::kPostcopyRound) {
      slot.pushed_all = true;
      all_pushed = std::all_of(epoch_->bulk.begin(), epoch_->bulk.end(),
                               [](const Slot& one) { return one.pushed_all; });
    } else {
      slot.markers = header.round;
      changed_.notify_all();
    }
  }
  if (all_pushed) {
    sweep_.begin();
  }
  return base::Done{};
}

Outcome Receivers::on_urgent_frame(Slot& slot, const FrameHeader& header) {
  if (!postcopy_) {
    return base::Err{corrupt_frame("an answer came before anything was asked")};
  }
  if (header.type == FrameType::kPages) {
    const auto bytes = TRY(read_pages(*slot.lane, header));
    TRY(check_room(bytes.size()));
    postcopy_pages_ += header.count;
    TRY(receiver_->on_demanded(range_of(header), bytes));
  } else if (header.type == FrameType::kZeros) {
    TRY(check_pages(header));
    TRY(receiver_->on_zeros(range_of(header)));
  } else {
    return base::Err{
        corrupt_frame(fmt::format("{} on the urgent lane", wire::to_string(header.type)))};
  }
  if ((header.flags & wire::kFlagSweep) != 0) {
    sweep_.on_answer();
  }
  return base::Done{};
}

}  // namespace towline::runtime
