#include "runtime/target/fault_service.h"

#include <poll.h>

#include <utility>

#include "uffd/userfault.h"

namespace towline::runtime {

base::Expected<std::unique_ptr<FaultService>> FaultService::start(
    TargetMemory& memory, PageReceiver& receiver, std::function<void()> ask,
    std::function<void(const std::string&)> failed) {
  auto stop = TRY(base::make_eventfd());
  return std::unique_ptr<FaultService>(
      new FaultService(memory, receiver, std::move(ask), std::move(failed), std::move(stop)));
}

FaultService::FaultService(TargetMemory& memory, PageReceiver& receiver, std::function<void()> ask,
                           std::function<void(const std::string&)> failed, base::OwnedFd stop)
    : memory_(memory),
      receiver_(receiver),
      ask_(std::move(ask)),
      failed_(std::move(failed)),
      stop_(std::move(stop)) {
  thread_ = base::NamedThread("tl-fault", [this] { run(); });
}

FaultService::~FaultService() {
  base::signal_eventfd(stop_.get());
  thread_.join();
}

void FaultService::run() {
  std::vector<pollfd> waiting;
  for (std::size_t shard = 0; shard < memory_.shards(); ++shard) {
    waiting.push_back(pollfd{.fd = memory_.shard_fd(shard), .events = POLLIN, .revents = 0});
  }
  waiting.push_back(pollfd{.fd = stop_.get(), .events = POLLIN, .revents = 0});
  std::vector<base::PageIndex> faults;
  faults.reserve(uffd::kEventBatch);

  while (true) {
    if (::poll(waiting.data(), waiting.size(), -1) < 0) {
      continue;  // EINTR; nothing else can come of valid arguments.
    }
    if (waiting.back().revents != 0) {
      return;
    }
    bool due = false;
    for (std::size_t shard = 0; shard < memory_.shards(); ++shard) {
      if (waiting[shard].revents == 0) {
        continue;
      }
      faults.clear();
      const auto read = memory_.read_faults(shard, faults);
      if (!read.ok()) {
        waiting[shard].fd = -1;  // poll() skips it from now on.
        failed_(base::to_string(read.error()));
      }
      for (const base::PageIndex page : faults) {
        due = receiver_.on_fault(page) || due;
      }
    }
    if (due) {
      ask_();
    }
  }
}

}  // namespace towline::runtime
