// The machine is loaded and started: runtime/target/load.cc as a task.
#include <vector>

#include "tests/simulation/target_end.h"

namespace towline::simulation {

using base::PageIndex;
using runtime::TargetEvent;
using runtime::wire::FrameType;

namespace {

constexpr std::uint64_t kLoaderPages = 4;

}  // namespace

/// Loading touches guest memory, and waits for it like any guest; the lanes may change meanwhile.
Task TargetEnd::load() {
  const std::size_t loader = world_.setup.vcpus;
  for (std::uint64_t i = 0; i < kLoaderPages; ++i) {
    const PageIndex page{world_.random.below(world_.layout.pages().value)};
    while (!guest_.access(loader, page, false)) {
      co_await until([this, loader] { return !guest_.blocked(loader); });
    }
    co_await simulation::step();
  }
  if (world_.setup.load_fails) {
    never_ = true;  // The tombstone is written before anybody is told.
    world_.link_harmed = true;
    step(TargetEvent::kLoadFailed);
    tell(FrameType::kNever);
    co_return;
  }
  step(TargetEvent::kStateLoaded);
  if (order_read_ || world_.planted(Plant::kRunWithoutOrder)) {
    step(TargetEvent::kRunOrdered);
  }
  settle_link();
  co_await until([this] { return order_read_ || world_.planted(Plant::kRunWithoutOrder); });
  co_await start_guest();
}

/// What happened to the lanes while the state was being loaded.
void TargetEnd::settle_link() {
  if (link_ == LinkState::kTied) {
    return;
  }
  step(TargetEvent::kLinkLost);
  if (link_ == LinkState::kComparing) {
    step(TargetEvent::kReconnected);
  }
}

/// It runs from here on, and takes a while until a vCPU has entered and the source is told.
Task TargetEnd::start_guest() {
  const runtime::Ownership from = gate_.ownership();
  if (!gate_.step(runtime::OwnershipEvent::kTake).ok()) {
    world_.fail("the target's gate does not open");
  }
  world_.coverage.gates.emplace(from, runtime::OwnershipEvent::kTake);
  world_.runs_there = true;
  for (std::uint64_t pause = world_.random.below(4); pause > 0; --pause) {
    co_await simulation::step();
  }
  entered_ = true;
  tell(FrameType::kRunning, std::vector<std::byte>(8));
  world_.preempt();
  progress();
}

}  // namespace towline::simulation
