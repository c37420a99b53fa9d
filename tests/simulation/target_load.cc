// The machine is loaded and started: runtime/target/load.cc as a task.
#include <vector>

#include "tests/simulation/target_end.h"

namespace towline::simulation {

using base::PageIndex;
using runtime::TargetTask;

namespace {

constexpr std::uint64_t kLoaderPages = 4;

}  // namespace

Task TargetEnd::load_and_run() {
  while (true) {
    co_await until([this] { return brain_.has_load_task() || !brain_.may_load(); });
    const auto task = brain_.take_load_task();
    if (!task.has_value()) {
      co_return;
    }
    world_.coverage.target_tasks.insert(task->kind);
    if (task->kind == Job::Kind::kLoad) {
      co_await load();
    } else if (!world_.planted(Plant::kOrderForgotten)) {
      co_await start_guest();
    }
  }
}

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
  Input done{.kind = Input::Kind::kDone, .task = TargetTask{.kind = Job::Kind::kLoad}};
  if (world_.setup.load_fails) {
    world_.link_harmed = true;
    done.error = base::Error{base::ErrorKind::kFailed, 0, "load", "it cannot be"};
  }
  (void)feed(done);
  if (world_.planted(Plant::kRunWithoutOrder) && !brain_.order_read()) {
    open_gate();
    co_await start_guest();
  }
}

/// It runs from here on, and takes a while until a vCPU has entered and the source is told.
Task TargetEnd::start_guest() {
  if (++starts_ > 1) {
    world_.fail("the order was obeyed twice");
  }
  world_.runs_there = true;
  for (std::uint64_t pause = world_.random.below(4); pause > 0; --pause) {
    co_await simulation::step();
  }
  (void)feed({.kind = Input::Kind::kGuestEntered, .number = 1});
}

}  // namespace towline::simulation
