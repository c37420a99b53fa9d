// The target's control lane: tl-control reads it to its end.
#include <sys/socket.h>

#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/log.h"
#include "runtime/link/handshake.h"
#include "runtime/target/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;
using base::PageCount;
using base::PageIndex;
using base::PageRange;
using wire::FrameHeader;
using wire::FrameType;

base::Error corrupt_control(std::string detail) {
  return base::Error{ErrorKind::kCorrupt, 0, "control frame", std::move(detail)};
}

}  // namespace

void TargetDriver::run_control() {
  const auto described = receive_description();
  if (!described.ok()) {
    const std::string reasons = base::to_string(described.error());
    base::log(LogLevel::kWarning, "migration.refused reason={}", reasons);
    // Free first, told afterwards: who reads the refusal may try again at once.
    [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kMisdescribed});
    const auto bounded = std::string_view(reasons).substr(0, wire::kMaxTextPayload);
    if (described.error().kind != ErrorKind::kDisconnected &&
        !send(FrameType::kRefuse, bytes_of(bounded)).ok()) {
      base::log(LogLevel::kInfo, "migration.refusal_unsent reason={}", "the source is gone");
    }
    control()->shutdown();
    return;
  }
  const auto accepted = send(FrameType::kAccept);
  end_of_control(accepted.ok() ? read_to_the_end() : accepted);
}

Outcome TargetDriver::receive_description() {
  const auto lane = control();
  const auto header = TRY(lane->receive_header());
  if (!header.has_value() || header->type != FrameType::kDescribe) {
    return base::Err{corrupt_control("the first frame is no description")};
  }
  const auto payload = TRY(lane->receive_payload(*header));
  const auto description = TRY(decode_description(payload));
  std::vector<std::string> reasons = memory_refusals(description, layout_);
  for (std::string& reason : machine_.refusals(description.machine)) {
    reasons.push_back(std::move(reason));
  }
  if (!reasons.empty()) {
    return fail(ErrorKind::kRefused, "description", fmt::format("{}", fmt::join(reasons, "\n")));
  }
  return accept(description);
}

Outcome TargetDriver::accept(const Description& description) {
  Receivers::Owner& owner = *this;
  auto transfer = std::make_unique<Transfer>(layout_, description.bulk_lanes, owner);
  transfer->memory = TRY(TargetMemory::prepare(machine_.regions(), layout_));
  transfer->sender = TRY(RequestSender::start(transfer->requests));
  const auto ask = [&sender = *transfer->sender] { sender.ask(); };
  transfer->receiver = std::make_unique<PageReceiver>(layout_, *transfer->memory, transfer->map,
                                                      transfer->requests, clock_, ask);
  transfer->lanes.deliver_to(*transfer->receiver, *transfer->sender);
  transfer->faults = TRY(FaultService::start(
      *transfer->memory, *transfer->receiver, ask, [this](const std::string& reason) {
        base::log(LogLevel::kError, "fault.read_failed reason={}", reason);
        machine_.guest_failed(fmt::format("page faults cannot be served any more: {}", reason));
      }));
  TRY(transfer->memory->guard_for_good());
  transfer_ = std::move(transfer);
  // Ahead of their use: nothing is started within the blackout.
  load_thread_ = base::NamedThread("tl-load", [this] { load_and_run(); });
  watch_thread_ = base::NamedThread("tl-watch", [this] { watch(); });
  {
    const base::Lock lock(mutex_);
    secret_ = description.secret;
    published_ = transfer_.get();
  }
  return feed({.kind = TargetInput::Kind::kDescribed, .number = description.bulk_lanes});
}

Outcome TargetDriver::read_to_the_end() {
  reading_.lane = control();
  while (true) {
    const auto header = TRY(reading_.lane->receive_header());
    if (!header.has_value()) {
      return base::Done{};
    }
    reading_.header = *header;
    std::string words;
    if (header->type == FrameType::kCancel) {
      words = text_of(TRY(reading_.lane->receive_payload(*header)));
    }
    TRY(feed({.kind = TargetInput::Kind::kFrame, .frame = *header, .text = std::move(words)}));
  }
}

void TargetDriver::end_of_control(const Outcome& read) {
  const base::Error reason = read.ok() ? base::Error{ErrorKind::kDisconnected, 0, "receive",
                                                     "the source closed the connection"}
                                       : read.error();
  [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kControlEnded,
                                          .error = reason,
                                          .flag = control()->lost_a_frame()});
}

// ---- what a frame leads to ----------------------------------------------------------------------

Outcome TargetDriver::answer_ping() {
  auto echoed = TRY(reading_.lane->receive_payload(reading_.header));
  const std::uint64_t now = base::to_ns(clock_.now());
  const auto bytes = std::as_bytes(std::span(&now, 1));
  echoed.insert(echoed.end(), bytes.begin(), bytes.end());
  return send(FrameType::kPong, echoed);
}

Outcome TargetDriver::keep_stale() {
  const auto payload = TRY(reading_.lane->receive_payload(reading_.header));
  const auto runs = TRY(wire::decode_runs(reading_.header, payload, layout_.pages()));
  reading_.stale.insert(reading_.stale.end(), runs.begin(), runs.end());
  return base::Done{};
}

Outcome TargetDriver::apply_stale() {
  for (const PageRange& run : reading_.stale) {
    transfer_->receiver->on_stale(run);
  }
  reading_.stale.clear();
  return feed({.kind = TargetInput::Kind::kDone,
               .task = TargetTask{.kind = TargetTask::Kind::kApplyStale},
               .number = transfer_->map.claimed().value});
}

Outcome TargetDriver::store_pages() {
  const FrameHeader& header = reading_.header;
  const PageRange range{PageIndex{header.first}, PageCount{header.count}};
  if (!layout_.valid(range)) {
    return base::Err{corrupt_control("pages on the control lane outside the switch's flight")};
  }
  const auto payload = TRY(reading_.lane->receive_payload(header));
  const auto& region = layout_.entries()[layout_.region_of(range.first)];
  if (payload.size() != region.page_size.value * header.count) {
    return base::Err{corrupt_control("a pages frame has the wrong length")};
  }
  auto stored = transfer_->receiver->on_pages(range, payload);
  if (!stored.ok() && stored.error().kind == ErrorKind::kOverloaded) {
    // They only save time: who touches one that has no room asks for it, as for any other.
    base::log(LogLevel::kWarning, "first_pages.no_room reason={}", base::to_string(stored.error()));
    return base::Done{};
  }
  return stored;
}

// Loading and running may need pages: whoever answers must be there to be asked.
Outcome TargetDriver::await_lanes(const TargetTask& task) {
  if (task.frame == FrameType::kState) {
    reading_.encoded_state = TRY(reading_.lane->receive_payload(reading_.header));
  }
  TRY(transfer_->lanes.wait_attached(options_.handshake_timeout));
  return feed({.kind = TargetInput::Kind::kDone, .task = task});
}

// ---- the end of the lanes -----------------------------------------------------------------------

void TargetDriver::finish_sending(bool control_too) {
  ::shutdown(control()->fd(), control_too ? SHUT_RDWR : SHUT_WR);
  transfer_->lanes.finish_sending();
}

void TargetDriver::close_lanes(bool data_too) {
  transfer_->lanes.finish_sending();
  if (data_too) {
    transfer_->lanes.shutdown();
  }
  control()->shutdown();
}

}  // namespace towline::runtime
