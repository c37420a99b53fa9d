#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "runtime/ports.h"
#include "runtime/standby/ledger.h"
#include "runtime/standby/record.h"

namespace towline::runtime {

/// A machine without vCPUs: the memory and the parked state that a source's process left behind.
/// It can be the source of a migration, and never runs.
///
/// Threads: as Machine.
class KeptMachine final : public Machine {
 public:
  /// Maps the files, which outlive the machine. Errors: kCorrupt: a file is shorter than the record
  /// says; kFailed: no address space.
  static base::Expected<std::unique_ptr<KeptMachine>> create(
      const StandbyRecord& record, const std::vector<base::OwnedFd>& files, MachineState state,
      Ownership owner);

  /// As far as it can be known before anything is mapped: every region is in its file.
  static base::Outcome check(const StandbyRecord& record, const std::vector<base::OwnedFd>& files);

  ~KeptMachine() override;
  KeptMachine(const KeptMachine&) = delete;
  KeptMachine& operator=(const KeptMachine&) = delete;

  [[nodiscard]] const std::vector<Region>& regions() const override { return regions_; }

  [[nodiscard]] DirtyLog& dirty_log() override { return *log_; }

  [[nodiscard]] RunGate& gate() override { return gate_; }

  [[nodiscard]] MachineState shape() const override { return shape_; }

  [[nodiscard]] std::vector<std::string> refusals(const MachineState& source) const override;

  void park(std::function<void()> parked) override { parked(); }

  /// Nobody can run it here; it stays what it is.
  void unpark() override {}

  base::Expected<MachineState> save() override { return state_; }

  base::Outcome load(const MachineState& state) override;

  [[nodiscard]] std::vector<base::PageIndex> first_pages() override { return {}; }

  void start_here(std::function<void()> entered) override { entered(); }

  [[nodiscard]] bool wants_to_run() const override { return false; }

  void guest_failed(const std::string& reason) override;

  /// A target's matter.
  void pages_lost(std::uint64_t /*pages*/) override {}

 private:
  KeptMachine(const StandbyRecord& record, MachineState state, Ownership owner);
  base::Outcome map(const StandbyRecord& record, const std::vector<base::OwnedFd>& files);

  const MachineState shape_;
  const MachineState state_;
  std::vector<Region> regions_;
  std::unique_ptr<DirtyLog> log_;
  RunGate gate_;
};

}  // namespace towline::runtime
