#pragma once

#include <functional>

#include "base/error.h"
#include "base/fd.h"
#include "base/thread.h"
#include "runtime/core/page_receiver.h"
#include "runtime/target/memory.h"

namespace towline::runtime {

/// The thread that answers the guest's faults, "tl-fault".
///
/// One round: wait for any shard, read a batch of events, let the page map decide on each, and
/// have all requests that are due sent together. It never touches guest memory (it would fault on
/// itself), never waits for the network, and once it has begun never asks for memory, which could
/// make it wait for the kernel to find some: zeros and local faults of the whole guest wait for it.
class FaultService {
 public:
  /// `ask` sends the requests that are due, and never waits. `failed` is told, once,
  /// when faults cannot be read any more: whoever waits for a page would wait for ever. Both
  /// references outlive this.
  static base::Expected<std::unique_ptr<FaultService>> start(
      TargetMemory& memory, PageReceiver& receiver, std::function<void()> ask,
      std::function<void(const std::string&)> failed);

  FaultService(const FaultService&) = delete;
  FaultService& operator=(const FaultService&) = delete;
  ~FaultService();

 private:
  FaultService(TargetMemory& memory, PageReceiver& receiver, std::function<void()> ask,
               std::function<void(const std::string&)> failed, base::OwnedFd stop);
  void run();

  TargetMemory& memory_;
  PageReceiver& receiver_;
  std::function<void()> ask_;
  std::function<void(const std::string&)> failed_;
  base::OwnedFd stop_;
  base::NamedThread thread_;
};

}  // namespace towline::runtime
