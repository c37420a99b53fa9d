#pragma once

#include <cstdint>

#include "tests/guest/boot_constants.h"
#include "tests/guest/histogram.h"
#include "tests/guest/mix.h"
#include "tests/guest/options.h"
#include "tests/guest/page.h"

/// One vCPU: its part of the pages, its counters and its loop.
///
/// A vCPU alone reads and writes its pages. The first one also speaks (console.h).
namespace guest {

/// Pages [first, first + count).
struct Part {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

/// What never goes back while the guest lives.
struct Counters {
  std::uint64_t accesses = 0;
  std::uint64_t writes = 0;
  std::uint64_t verified = 0;
  std::uint64_t corrupt = 0;
  std::uint64_t generation_sum = 0;
  std::uint64_t digest = 0;  ///< Of this vCPU's part of the table. Moves freely.
};

/// Damage found by this vCPU, for the first one to print.
struct DamageRecord {
  Finding finding;
  PageIdentity expected;
  std::uint64_t address = 0;
  const char* kind = nullptr;
};

struct GapRecord {
  std::uint64_t at = 0;  ///< TSC at its end.
  std::uint64_t length = 0;
};

struct SweepResult {
  std::uint64_t pages = 0;
  std::uint64_t corrupt = 0;
  std::uint64_t digest = 0;
  std::uint64_t generation_sum = 0;
  std::uint64_t table_wrong = 0;  ///< 1: the table's digest is not the running one.
};

// Its twin has a page of its own. NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding)
struct alignas(4096) Vcpu {
  static constexpr std::uint32_t kDamageRecords = 16;
  static constexpr std::uint32_t kGapRecords = 64;

  Vcpu* self = nullptr;  ///< boot.S points GS here.
  std::uint32_t index = 0;
  std::uint32_t online = 0;
  std::uint64_t phase = 0;    ///< The phase this vCPU is in.
  std::uint64_t reached = 0;  ///< The last phase of which it finished its share.
  Part working_set;
  Part fill;

  // Written by this vCPU inside `version` odd; others read with `snapshot`.
  std::uint64_t version = 0;
  Counters counters;

  Random random;
  std::uint64_t position = 0;
  std::uint64_t round = 0;
  std::uint64_t cursor = 0;  ///< Of the fill and of the sweep.
  std::uint64_t next_due = 0;

  std::uint64_t last_tick = 0;
  std::uint64_t tsc_went_back = 0;
  std::uint64_t gap_max = 0;
  std::uint64_t gap_recent = 0;
  std::uint64_t gaps_logged = 0;
  std::uint64_t latency_max = 0;
  std::uint64_t report_number = 0;
  std::uint64_t reset_number = 0;
  SweepResult sweep;

  std::uint64_t damage_count = 0;
  DamageRecord damage[kDamageRecords];
  GapRecord gap_log[kGapRecords];
  Histogram latency;

  /// The same counters on a page of their own: the two cannot go stale unnoticed.
  alignas(4096) Counters twin;
};

static_assert(sizeof(Vcpu) == BOOT_VCPU_STRIDE);

enum class PhaseKind : std::uint8_t {
  kFill,   ///< Every page is written once.
  kHold,   ///< Nobody writes.
  kRun,    ///< The workload.
  kSweep,  ///< Everything is read.
};

/// What all vCPUs share. Written by the first one only.
struct Control {
  std::uint64_t phase = 0;  ///< Number << 8 | PhaseKind.
  std::uint64_t report_number = 0;
  std::uint64_t reset_number = 0;
  std::uint64_t start_tsc = 0;
  std::uint64_t tsc_khz = 0;  ///< Never 0: 1 GHz when unknown.
  std::uint64_t gap_log_cycles = 0;
  std::uint64_t rate_cycles = 0;  ///< Between two accesses of one vCPU; 0: full speed.
  Options options;
};

// Constants fill it before anything runs. NOLINTNEXTLINE(bugprone-dynamic-static-initializers)
extern Control control;

/// The block of a vCPU.
Vcpu& vcpu(std::uint64_t index);

/// A consistent copy of the counters of any vCPU.
Counters snapshot(const Vcpu& from);

/// Shares out the pages. Before the other vCPUs start.
void prepare_vcpus();

/// Starts vCPUs 1 and up. False if one does not come within ten seconds of its TSC.
bool start_other_vcpus();

/// Next phase for everybody.
void enter_phase(PhaseKind kind);

/// True when every vCPU did its share of the phase.
bool phase_reached();

/// Runs for ever.
[[noreturn]] void run(Vcpu& self);

}  // namespace guest
