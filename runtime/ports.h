#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "runtime/machine_state.h"
#include "runtime/run_gate.h"

/// What the migration needs from the machine that it moves. The VMM implements this file; the
/// migration knows nothing else of KVM, vCPUs or devices.
namespace towline::runtime {

enum class Backing : std::uint8_t { kMemfd, kHugetlb, kAnonymous };

/// One range of guest memory, backed by (a part of) one file.
struct Region {
  std::string name;  ///< "ram.low": equal on both sides.
  base::GuestAddress start;
  base::Bytes size;
  base::Bytes page_size = base::kSmallPage;  ///< Or kHugePage, and nothing else.
  Backing backing = Backing::kMemfd;
  int fd = -1;                  ///< Borrowed; the machine outlives every migration.
  std::uint64_t fd_offset = 0;  ///< Where the region begins in the file. Bytes.
  base::HostAddress mapping;    ///< The guest mapping: what KVM and the devices use.
};

/// KVM's dirty log (manual protect, initially set), or anything that behaves like it.
///
/// Bitmaps hold one bit per 4 KiB of the region, bit 0 of word 0 first. Device writes appear in it
/// when they complete. Threads: one at a time.
class DirtyLog {
 public:
  DirtyLog() = default;
  DirtyLog(const DirtyLog&) = delete;
  DirtyLog& operator=(const DirtyLog&) = delete;
  virtual ~DirtyLog() = default;

  /// Begins logging in every region. Until a page's first clear() it is reported dirty.
  virtual base::Outcome enable() = 0;
  virtual void disable() = 0;

  /// Copies the region's bitmap out; re-arms nothing, so that a bit once set stays set until it
  /// is cleared. `bitmap` has ceil(pages / 64) words.
  virtual base::Outcome read(std::size_t region, std::span<std::uint64_t> bitmap) = 0;

  /// Clears and re-arms those of the pages [first, first + count) whose bit is set in `bitmap`,
  /// (bit 0 is page `first`). `first` is a multiple of 64; so is `count`, or it reaches the end.
  virtual base::Outcome clear(std::size_t region, std::uint64_t first, std::uint64_t count,
                              std::span<const std::uint64_t> bitmap) = 0;
};

/// A machine that can be moved.
class Machine {
 public:
  Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  virtual ~Machine() = default;

  /// Constant while the machine lives. Threads: any.
  [[nodiscard]] virtual const std::vector<Region>& regions() const = 0;

  [[nodiscard]] virtual DirtyLog& dirty_log() = 0;

  /// Who may run the guest. Threads: any.
  [[nodiscard]] virtual RunGate& gate() = 0;

  /// What the machine is: vCPUs, CPUID, devices with their state versions. Not the memory.
  [[nodiscard]] virtual MachineState shape() const = 0;

  /// Every reason why this machine cannot take over from one of shape `source`: names and both
  /// values, a line each. Empty: it can.
  [[nodiscard]] virtual std::vector<std::string> refusals(const MachineState& source) const = 0;

  /// Asks every vCPU to leave the guest and returns at once; `parked` is called once, from any
  /// thread, when the last one is out (at once if they are). Whoever calls this has closed the
  /// gate before. It never waits for a page.
  virtual void park(std::function<void()> parked) = 0;

  /// Lets the vCPUs run again if the gate allows it and the user did not stop the guest.
  virtual void unpark() = 0;

  /// Reads the state of the parked machine. The last vCPU ioctl of the save has been made when it
  /// returns; the dirty log is read after it. Threads: the migration's, with every vCPU parked.
  virtual base::Expected<MachineState> save() = 0;

  /// Gives a machine that never ran the state of another. May touch guest memory, and so wait for
  /// pages: fault service runs on other threads. Errors name section and field.
  virtual base::Outcome load(const MachineState& state) = 0;

  /// Pages (global indices) that KVM and the guest's first instructions will touch, most urgent
  /// first: clock and steal-time pages, page tables on the way to RIP and RSP, the stack, the code.
  /// Those of the state that was saved last: called after save(), before the last read of the dirty
  /// log, and makes no vCPU ioctl.
  [[nodiscard]] virtual std::vector<base::PageIndex> first_pages() = 0;

  /// Target, after the gate opened: starts the vCPUs (unless the source's guest was stopped by its
  /// user). `entered` is called once, from any thread, just before the first KVM_RUN; at once if
  /// the guest stays stopped.
  virtual void start_here(std::function<void()> entered) = 0;

  /// The guest was running (not stopped by its user) when it was parked. Carried in the state.
  [[nodiscard]] virtual bool wants_to_run() const = 0;

  /// Target: so many pages of guest memory are lost for good; whoever touches one gets an error.
  /// The machine runs on. It writes to guest memory no more by itself (a reset would).
  virtual void pages_lost(std::uint64_t pages) = 0;

  /// Guest memory has become unreachable or wrong (poison, lost source): stop with this reason.
  virtual void guest_failed(const std::string& reason) = 0;
};

}  // namespace towline::runtime
