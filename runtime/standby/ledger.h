#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "runtime/run_gate.h"

namespace towline::runtime {

/// Where the guest is, as far as a page server must know when the source's process is gone.
enum class StandbyPhase : std::uint64_t {
  kRunning = 1,  ///< In the source's process, and dies with it.
  kParked = 2,   ///< Its state is here; the run order was not given.
  kOrdered = 3,  ///< The order was (perhaps) sent.
  kServing = 4,  ///< The target runs it.
  kOver = 5,     ///< Nothing is left to keep.
};

std::string_view to_string(StandbyPhase phase);

/// Who owns the guest when the process that wrote this phase has ended, as its heir's gate begins
/// with. None: there is nothing to inherit.
std::optional<Ownership> ownership_left(StandbyPhase phase);

/// What a source leaves behind: a memory file with a record (record.h), the parked
/// machine's state, and a few words that change as the migration goes on.
///
/// The source writes it and a page server holds another descriptor of it, so that whatever was
/// written last is there when the source is gone, whether or not anybody listened then. It is read
/// and written by system calls: a peer that cuts it short makes an error, not a signal.
///
/// A parked guest that is moved from here to another target has a second migration in the same
/// file, with a record of its own; the one before is over by then.
///
/// Threads: any, each word by one writer at a time: the source, then the server that took over.
class StandbyLedger {
 public:
  struct Words {
    StandbyPhase phase = StandbyPhase::kRunning;
    std::uint64_t epoch = 1;  ///< The greatest that was begun.
    std::uint64_t files = 0;  ///< Of guest memory.
    std::uint64_t parked_at_ns = 0;
    std::int64_t clock_offset_ns = 0;
    std::uint64_t clock_error_ns = 0;
    std::uint64_t source_pid = 0;
    std::uint64_t source_start = 0;  ///< When that process began; tells it from a later one.
  };

  /// The parked machine, and when it was parked.
  struct Parked {
    std::span<const std::byte> state;
    std::uint64_t at_ns = 0;
    std::int64_t clock_offset_ns = 0;
    std::uint64_t clock_error_ns = 0;
  };

  /// Memory for all that is written while the guest stands still is allocated here.
  static base::Expected<StandbyLedger> create(std::span<const std::byte> record,
                                              std::uint64_t files);

  /// Errors: kCorrupt: not a ledger.
  static base::Expected<StandbyLedger> open(base::OwnedFd fd);

  [[nodiscard]] int fd() const { return fd_.get(); }

  [[nodiscard]] base::Expected<Words> read() const;
  [[nodiscard]] base::Expected<std::vector<std::byte>> record() const;
  [[nodiscard]] base::Expected<std::vector<std::byte>> state() const;
  /// Where the target was reached last, if that is not in the record.
  [[nodiscard]] base::Expected<std::optional<std::string>> address() const;

  base::Outcome set_phase(StandbyPhase phase) const;
  base::Outcome set_epoch(std::uint64_t epoch) const;
  base::Outcome set_source(std::uint64_t pid, std::uint64_t start) const;
  base::Outcome set_address(std::string_view uri) const;
  /// The state, then the phase kParked: never one without the other.
  base::Outcome park(const Parked& parked) const;

  /// A further migration of what is parked here: `record` is the one from now on, with epoch 1 and
  /// no address but its own. In the phase kParked nobody acts on any of these, so that a crash in
  /// the middle changes nothing. Errors: kFailed: another phase, or no memory.
  base::Outcome renew(std::span<const std::byte> record) const;
  /// All of `parked` but the state, which stays what it is.
  base::Outcome set_times(const Parked& parked) const;

  /// Makes the caller the only one that acts on this ledger, until the returned descriptor is
  /// closed. Errors: kRefused: another process does.
  [[nodiscard]] base::Expected<base::OwnedFd> claim() const;

 private:
  explicit StandbyLedger(base::OwnedFd fd) : fd_(std::move(fd)) {}

  [[nodiscard]] base::Outcome write(std::uint64_t at, std::span<const std::byte> bytes) const;
  [[nodiscard]] base::Outcome read(std::uint64_t at, std::span<std::byte> bytes) const;
  [[nodiscard]] base::Outcome put(std::uint64_t at, std::uint64_t value) const;
  [[nodiscard]] base::Expected<std::uint64_t> get(std::uint64_t at) const;
  [[nodiscard]] base::Expected<std::vector<std::byte>> part(std::uint64_t length_at,
                                                            std::uint64_t from,
                                                            std::uint64_t most) const;

  base::OwnedFd fd_;
};

}  // namespace towline::runtime
