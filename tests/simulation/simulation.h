#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tests/simulation/setup.h"
#include "tests/simulation/world.h"

/// One migration in a world without threads, time or kernel: what ships (sessions, gates, page map,
/// request table, receiver, rounds, owed set, push order, codec) at both ends, a guest that writes,
/// and a network that delivers late, in pieces, damaged or not at all. The same seed gives the same
/// run.
///
/// After every step the invariants of the design are checked; at the end, that the run ended as its
/// trouble allows.
namespace towline::simulation {

/// So many seeds in a row, whose troubles are their own, take every rule of every table. (Measured:
/// the rarest are taken once in some thousands; every other row of 5000 lacks one.)
inline constexpr std::uint64_t kRunsForEveryRule = 50'000;

struct Result {
  /// What was broken; nothing: the run is good.
  std::optional<std::string> violation;
  bool completed = false;
  std::uint64_t steps = 0;
  Coverage coverage;
};

Result simulate(const Setup& setup, bool trace = false);

/// No run takes it: nobody reads a control lane while the source is paused, because its reader was
/// joined before. The table has the rule all the same, so that nothing depends on that
/// (source_protocol_test.cc feeds it).
constexpr bool never_taken(const runtime::SourceRule& rule) {
  return rule.from == runtime::SourceState::kOrderedPaused &&
         rule.on == runtime::SourceEvent::kTargetRunning;
}

template <typename Rule>
constexpr bool never_taken(const Rule& /*rule*/) {
  return false;
}

}  // namespace towline::simulation
