#include "tests/simulation/world.h"

#include <array>
#include <cstdio>
#include <memory>

namespace towline::simulation {
namespace {

constexpr int kMaxDepth = 3;  // Threads that cut in while others are half-way.

runtime::MemoryLayout layout_of(const Setup& setup) {
  std::vector<runtime::Region> regions;
  std::uint64_t start = 0;
  for (const std::uint64_t pages : setup.regions) {
    runtime::Region region;
    region.name = "ram." + std::to_string(regions.size());
    region.start = base::GuestAddress{start};
    region.size = base::Bytes{pages * base::kSmallPage.value};
    start += 2 * region.size.value;
    regions.push_back(region);
  }
  return runtime::MemoryLayout(regions);
}

}  // namespace

void Coverage::add(const Coverage& other) {
  source.insert(other.source.begin(), other.source.end());
  target.insert(other.target.begin(), other.target.end());
  gates.insert(other.gates.begin(), other.gates.end());
  target_effects.insert(other.target_effects.begin(), other.target_effects.end());
  target_tasks.insert(other.target_tasks.begin(), other.target_tasks.end());
  for (const auto& [event, times] : other.events) {
    events[event] += times;
  }
}

World::World(const Setup& chosen)
    : setup(chosen), random(chosen.seed * 2 + 1), layout(layout_of(chosen)) {
  latest.resize(layout.pages().value, 0);
}

void World::fail(const std::string& what) {
  if (!violation.has_value()) {
    violation = what;
  }
}

void World::stop(const std::string& what) {
  fail(what);
  throw Broken{};
}

void World::add_actor(Process process, std::string name, Task task) {
  auto actor = std::make_unique<Actor>();
  Actor* const own = actor.get();
  own->process = process;
  own->name = std::move(name);
  own->task = std::move(task);
  own->ready = [own] { return own->task.ready(); };
  own->run = [own] { own->task.resume(); };
  own->over = [own] { return own->task.done(); };
  constexpr std::array<std::uint64_t, 6> kWeights{1, 1, 2, 4, 8, 24};
  own->weight = kWeights[random.below(kWeights.size())];
  actors_.push_back(std::move(actor));
}

void World::add_actor(Process process, std::string name, std::function<bool()> ready,
                      std::function<void()> run, std::function<bool()> over) {
  add_actor(process, std::move(name), Task());
  actors_.back()->ready = std::move(ready);
  actors_.back()->run = std::move(run);
  actors_.back()->over = std::move(over);
}

void World::add_event(std::string name, std::function<bool()> due, std::uint64_t turns,
                      std::function<void()> act) {
  auto left = std::make_shared<std::uint64_t>(turns + 1);
  add_actor(
      Process::kOutside, std::move(name),
      [left, due = std::move(due)] { return *left > 0 && due(); },
      [left, act = std::move(act)] {
        if (--*left == 0) {
          act();
        }
      },
      [left] { return *left == 0; });
  actors_.back()->alone = true;
}

bool World::can_run(const Actor& actor) const {
  const auto process = static_cast<std::size_t>(actor.process);
  return !actor.busy && !dead_[process] && !frozen_[process] && (depth_ == 0 || !actor.alone) &&
         actor.ready();
}

void World::drop_those_over() {
  std::erase_if(actors_, [this](const auto& actor) {
    return dead_[static_cast<std::size_t>(actor->process)] || actor->over();
  });
}

bool World::run_one() {
  if (depth_ == 0 && ++turns_ % 64 == 0) {
    drop_those_over();
  }
  std::uint64_t total = 0;
  std::vector<Actor*> ready;
  ready.reserve(actors_.size());
  for (const auto& actor : actors_) {
    if (can_run(*actor)) {
      ready.push_back(actor.get());
      total += actor->weight;
    }
  }
  if (ready.empty()) {
    return false;
  }
  std::uint64_t chosen = random.below(total);
  Actor* actor = ready.front();
  for (Actor* one : ready) {
    if (chosen < one->weight) {
      actor = one;
      break;
    }
    chosen -= one->weight;
  }
  if (trace) {
    std::printf("%*s%s\n", 2 * depth_, "", actor->name.c_str());
  }
  clock.tick();
  ++depth_;
  actor->busy = true;
  actor->run();
  actor->busy = false;
  --depth_;
  return true;
}

void World::preempt() {
  if (depth_ > 0 && depth_ < kMaxDepth && !failed() && random.once_in(setup.preemption)) {
    run_one();
  }
}

std::uint64_t World::write(base::PageIndex page) {
  ++values_;
  latest[page.value] = random.once_in(8) ? 0 : values_;
  return latest[page.value];
}

}  // namespace towline::simulation
