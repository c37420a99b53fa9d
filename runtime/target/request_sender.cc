#include "runtime/target/request_sender.h"

#include <poll.h>
#include <unistd.h>

#include <span>
#include <utility>

#include "base/ensure.h"
#include "base/log.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;

// Requests of one system call: a batch of faults. On the stack of the fault thread.
constexpr std::size_t kSentTogether = 64;

wire::HeaderBytes request_frame(PageRange range, std::uint16_t flags) {
  wire::FrameHeader header;
  header.type = wire::FrameType::kRequest;
  header.flags = flags;
  header.first = range.first.value;
  header.count = range.count.value;
  return wire::encode_header(header);
}

}  // namespace

base::Expected<std::unique_ptr<RequestSender>> RequestSender::start(RequestTable& requests) {
  auto wake = TRY(base::make_eventfd());
  return std::unique_ptr<RequestSender>(new RequestSender(requests, std::move(wake)));
}

RequestSender::RequestSender(RequestTable& requests, base::OwnedFd wake)
    : requests_(requests), wake_(std::move(wake)) {
  thread_ = base::NamedThread("tl-ask", [this] { run(); });
}

RequestSender::~RequestSender() {
  {
    const base::Lock lock(mutex_);
    ending_ = true;
  }
  base::signal_eventfd(wake_.get());
  thread_.join();
}

std::size_t RequestSender::use(std::shared_ptr<Lane> lane) {
  std::size_t pages = 0;
  {
    const base::Lock lock(mutex_);
    lane_.swap(lane);
    pages = requests_.want_all();
  }
  base::signal_eventfd(wake_.get());  // It sends them. It may be waiting for the lane before.
  return pages;
}

void RequestSender::ask() {
  bool left = true;
  if (mutex_.try_lock()) {
    left = send();
    mutex_.unlock();
  }
  if (left) {
    base::signal_eventfd(wake_.get());
  }
}

void RequestSender::sweep(PageRange range) {
  {
    const base::Lock lock(mutex_);
    ENSURE(sweeps_waiting_ < kMostSweeps, "no more sweeps wait than are under way");
    sweeps_[(first_sweep_ + sweeps_waiting_) % kMostSweeps] = range;
    ++sweeps_waiting_;
  }
  ask();
}

void RequestSender::forget_sweeps() {
  const base::Lock lock(mutex_);
  sweeps_waiting_ = 0;
}

bool RequestSender::send() {
  // Who waits goes first.
  const bool all = lane_ != nullptr && send_due() && send_sweeps();
  return !all && lane_ != nullptr;
}

bool RequestSender::send_due() {
  std::array<PageIndex, kSentTogether> pages;
  std::array<wire::HeaderBytes, kSentTogether> frames;  // NOLINT(*-init-variables): see the loop.
  while (true) {
    const std::size_t count = requests_.next_due(pages);
    for (std::size_t i = 0; i < count; ++i) {
      frames[i] = request_frame({pages[i], PageCount{1}}, 0);
    }
    const auto put = put_frames(std::span(frames).first(count));
    requests_.sent(std::span(pages).first(put.frames));
    sent_ += put.frames;
    if (!put.complete || count < pages.size()) {
      return put.complete;
    }
  }
}

bool RequestSender::send_sweeps() {
  while (sweeps_waiting_ != 0) {
    const auto frame = request_frame(sweeps_[first_sweep_], wire::kFlagSweep);
    const auto put = put_frames({&frame, 1});
    first_sweep_ = (first_sweep_ + put.frames) % kMostSweeps;
    sweeps_waiting_ -= put.frames;
    if (!put.complete) {
      return false;
    }
  }
  return true;
}

Lane::SentAtOnce RequestSender::put_frames(std::span<const wire::HeaderBytes> frames) {
  const auto put = lane_->send_at_once(frames);
  if (!put.ok()) {
    // The lane's own thread reports its end. What is due is due on the next lane.
    base::log(base::LogLevel::kDebug, "request.unsent reason={}", base::to_string(put.error()));
    lane_.reset();
    return {};
  }
  return put.value();
}

void RequestSender::run() {
  while (true) {
    std::shared_ptr<Lane> full;  // Stays open while it is waited for.
    {
      const base::Lock lock(mutex_);
      if (ending_) {
        return;
      }
      full = send() ? lane_ : nullptr;
    }
    std::array<pollfd, 2> waits = {
        pollfd{.fd = wake_.get(), .events = POLLIN, .revents = 0},
        pollfd{.fd = full != nullptr ? full->fd() : -1, .events = POLLOUT, .revents = 0}};
    [[maybe_unused]] const int ready = ::poll(waits.data(), waits.size(), -1);
    std::uint64_t times = 0;
    [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &times, sizeof times);
  }
}

}  // namespace towline::runtime
