#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/simulation/lanes.h"
#include "tests/simulation/network.h"
#include "tests/simulation/source_end.h"
#include "tests/simulation/target_end.h"
#include "tests/simulation/world.h"

namespace towline::simulation {

/// What the world does to a migration: as its setup says, at moments that its seed draws. All of it
/// ends: from some step on the network holds, and whoever lives runs.
class Troublemaker {
 public:
  Troublemaker(World& world, Network& network, const Identity& identity, SourceEnd& source,
               TargetEnd& target);

  /// Before the first step.
  void begin();

 private:
  /// A moment: whether it is now, and how many of its turns pass first.
  struct Moment {
    std::function<bool()> due;
    std::uint64_t turns;
  };

  void add_watches();
  void add_setup_trouble();
  void add_storm();
  void add_fault(Moment moment);
  void add_death(bool source);
  void add_giving_up();
  void at(const std::string& name, Moment moment, std::function<void()> act);
  void for_a_while(const std::string& name, std::uint64_t longest, std::function<void(bool)> set);

  Moment any_time();
  Moment switching();
  Moment after_order(std::uint64_t turns);
  Moment some_moment();

  void cut_all();
  void cut_one();
  void harm_lane();
  void flip();
  void swallow();
  void harm_network();
  void harm_processes();
  void harm_connecting();
  void freeze_something();
  void partition();

  // Strangers and other processes.
  void send_stranger();
  Task replay(Connection& connection);
  Task answer_elsewhere(Connection& connection);

  World& world_;
  Network& network_;
  const Identity& identity_;
  SourceEnd& source_;
  TargetEnd& target_;
  std::uint64_t swallow_tries_ = 0;
};

}  // namespace towline::simulation
