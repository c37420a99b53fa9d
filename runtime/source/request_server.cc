#include "runtime/source/request_server.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/crc32c.h"

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

std::uint32_t saturated_ns(base::Duration duration) {
  return static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(duration.count(), 0, std::numeric_limits<std::uint32_t>::max()));
}

}  // namespace

RequestServer::RequestServer(std::unique_ptr<Lane> lane, const SourceMemory& memory,
                             OwedPages& owed, PushOrder& order, SourceCounters& counters, bool open,
                             std::function<void(const base::Error&)> lost)
    : lane_(std::move(lane)),
      memory_(memory),
      owed_(owed),
      order_(order),
      counters_(counters),
      lost_(std::move(lost)),
      open_(open) {
  thread_ = base::NamedThread("tl-serve", [this] { run(); });
}

RequestServer::~RequestServer() {
  stop();
  thread_.join();
}

void RequestServer::run() {
  const auto ended = serve();
  lost_(ended.ok() ? base::Error{ErrorKind::kDisconnected, 0, "receive",
                                 "the target closed the urgent lane"}
                   : ended.error());
}

Outcome RequestServer::serve() {
  while (true) {
    const auto header = TRY(lane_->receive_header());
    if (!header.has_value()) {
      return base::Done{};
    }
    if (header->type != FrameType::kRequest || !open_) {
      return fail(ErrorKind::kCorrupt, "serve",
                  fmt::format("{} is not due now", wire::to_string(header->type)));
    }
    TRY(answer(*header));
  }
}

Outcome RequestServer::answer(const FrameHeader& request) {
  const base::Instant since = base::system_clock().now();
  const PageRange range{PageIndex{request.first}, PageCount{request.count}};
  if (!memory_.layout().valid(range)) {
    return fail(ErrorKind::kCorrupt, "serve",
                fmt::format("pages [{}, +{}) were asked for; there are {} in regions",
                            request.first, request.count, memory_.layout().pages().value));
  }
  for (std::uint64_t page = range.first.value; page < range.end().value; ++page) {
    [[maybe_unused]] const bool was_owed = owed_.take(PageIndex{page});
  }
  const bool sweep = (request.flags & wire::kFlagSweep) != 0;
  const std::uint64_t size = memory_.layout().page_size(range.first).value;
  const std::uint64_t most = wire::pages_in_frame(size, wire::kMaxPagesPerRequest);
  for (PageRange left = range; !left.empty();) {
    const PageRange part{left.first, PageCount{std::min(left.count.value, most)}};
    left = PageRange{part.end(), PageCount{left.count.value - part.count.value}};
    // What a sweep waits for is the end of the answer.
    TRY(send_part(part, sweep && left.empty(), since));
  }
  // Behind the answer: what follows from the demand is nothing that its guest waits for.
  for (std::uint64_t page = range.first.value; !sweep && page < range.end().value; ++page) {
    order_.on_demand(PageIndex{page});
  }
  return base::Done{};
}

Outcome RequestServer::send_part(PageRange part, bool ends_sweep, base::Instant since) {
  const auto bytes = TRY(memory_.copy(part, buffer_));
  FrameHeader header;
  header.flags =
      static_cast<std::uint16_t>(wire::kFlagDemanded | (ends_sweep ? wire::kFlagSweep : 0));
  header.first = part.first.value;
  header.count = part.count.value;
  header.round = wire::kPostcopyRound;
  const bool zero = base::all_zero(bytes);
  header.type = zero ? FrameType::kZeros : FrameType::kPages;
  const auto spent = base::system_clock().now() - since;
  header.service_ns = saturated_ns(spent);
  counters_.requests += part.count.value;
  counters_.service_ns_sum += static_cast<std::uint64_t>(spent.count());
  if (zero) {
    counters_.zeros += part.count.value;
    return lane_->send(header);
  }
  counters_.normal += part.count.value;
  counters_.after_switch += part.count.value;
  return lane_->send(header, bytes);
}

}  // namespace towline::runtime
