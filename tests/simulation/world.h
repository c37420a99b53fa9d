#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/units.h"
#include "runtime/core/memory_layout.h"
#include "runtime/core/source_session.h"
#include "runtime/core/target_input.h"
#include "runtime/core/target_session.h"
#include "runtime/run_gate.h"
#include "tests/simulation/setup.h"
#include "tests/simulation/task.h"

namespace towline::simulation {

/// Whose threads stop and end together.
enum class Process : std::uint8_t { kSource, kTarget, kOutside };

/// Thrown where a run cannot go on, not even to its next step.
struct Broken {};

/// What runs have shown, added up over many of them.
struct Coverage {
  std::set<std::pair<runtime::SourceState, runtime::SourceEvent>> source;
  std::set<std::pair<runtime::TargetState, runtime::TargetEvent>> target;
  std::set<std::pair<runtime::Ownership, runtime::OwnershipEvent>> gates;
  std::set<runtime::TargetEffect::Kind> target_effects;
  std::set<runtime::TargetTask::Kind> target_tasks;
  std::map<std::string, std::uint64_t> events;  ///< Situations that only luck brings about.

  void add(const Coverage& other);
};

/// A clock that moves by one microsecond with each step of the world.
class StepClock final : public base::Clock {
 public:
  [[nodiscard]] base::Instant now() const override { return now_; }

  void tick() { now_ += std::chrono::microseconds(1); }

  /// What was waited for until `then` did not come.
  void pass_to(base::Instant then) { now_ = std::max(now_, then); }

 private:
  base::Instant now_;
};

/// What all parts of a run share: chance, time, the truth about memory, and the first thing that
/// went wrong.
class World {
 public:
  explicit World(const Setup& chosen);

  /// Notes a broken promise; the first one ends the run.
  void fail(const std::string& what);

  /// As fail(), where going on to the next step would break the shipped code's own invariants.
  [[noreturn]] void stop(const std::string& what);

  [[nodiscard]] bool failed() const { return violation.has_value(); }

  void saw(const std::string& event) { ++coverage.events[event]; }

  [[nodiscard]] bool planted(Plant plant) const { return setup.plant == plant; }

  // ---- actors -----------------------------------------------------------------------------------

  void add_actor(Process process, std::string name, Task task);

  /// `over`: it never becomes ready again.
  void add_actor(
      Process process, std::string name, std::function<bool()> ready, std::function<void()> run,
      std::function<bool()> over = [] { return false; });

  /// Happens once, after so many of its turns in which `due` holds; never while another thread is
  /// half-way through a step.
  void add_event(std::string name, std::function<bool()> due, std::uint64_t turns,
                 std::function<void()> act);

  // ---- processes --------------------------------------------------------------------------------

  /// None of its threads takes another step.
  void kill(Process process) { dead_[static_cast<std::size_t>(process)] = true; }

  [[nodiscard]] bool dead(Process process) const {
    return dead_[static_cast<std::size_t>(process)];
  }

  /// Its threads do not run for a while.
  void freeze(Process process, bool frozen) { frozen_[static_cast<std::size_t>(process)] = frozen; }

  [[nodiscard]] bool frozen(Process process) const {
    return frozen_[static_cast<std::size_t>(process)];
  }

  /// Lets one actor that is ready take a step. False: nobody is.
  bool run_one();

  /// A place inside a step where another thread may cut in; now and then one does.
  void preempt();

  /// As preempt(), where whoever is half-way holds a lock: only the source's guest may run.
  std::function<void()> guest_cuts_in = [] {};

  /// Called when the switch's flight was handed to the network.
  std::function<void()> flight_sent = [] {};

  // ---- the truth --------------------------------------------------------------------------------

  /// The value of the last write to each page, wherever the guest ran. 0: the page holds zeros.
  std::vector<std::uint64_t> latest;

  /// A new value for a write to `page`; now and then zero.
  std::uint64_t write(base::PageIndex page);

  Setup setup;
  Random random;
  StepClock clock;
  Coverage coverage;
  std::optional<std::string> violation;
  runtime::MemoryLayout layout;
  bool trace = false;  ///< Prints each step.

  // What both ends and the checks have to know of each other.
  bool link_harmed = false;       ///< By the run's trouble.
  bool switched = false;          ///< The final delta is applied at the target.
  bool runs_there = false;        ///< The target's vCPUs were started.
  std::size_t wait_for_room = 0;  ///< Lanes of the target that do.
  bool source_released = false;
  std::uint64_t source_epoch = 1;  ///< The newest that the source has begun.
  bool taken_back = false;         ///< By the source's user.
  bool source_given_up = false;    ///< By the target.

  /// Called when the source has compared, before its lanes are there again.
  std::function<void()> resuming = [] {};

  /// Pages that other lanes were installing when what is missing was told behind a lane's fence.
  std::set<std::uint64_t> being_installed;

  /// Called when the source has heard what is missing behind the fence of one lane.
  std::function<void()> told_of_lane = [] {};

 private:
  struct Actor {
    Process process = Process::kOutside;
    std::string name;
    std::function<bool()> ready;
    std::function<void()> run;
    std::function<bool()> over;
    Task task;
    std::uint64_t weight = 1;
    bool busy = false;
    bool alone = false;  // Never in the middle of another's step.
  };

  static constexpr std::size_t kProcesses = 3;

  [[nodiscard]] bool can_run(const Actor& actor) const;
  void drop_those_over();

  std::vector<std::unique_ptr<Actor>> actors_;
  std::array<bool, kProcesses> dead_{};
  std::array<bool, kProcesses> frozen_{};
  std::uint64_t values_ = 0;
  std::uint64_t turns_ = 0;
  int depth_ = 0;
};

}  // namespace towline::simulation
