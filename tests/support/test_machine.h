#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/sync.h"
#include "runtime/ports.h"

namespace towline::tests {

/// The dirty log of a TestMachine: its guest marks each page before and after it writes, as a
/// device model does.
class SoftwareDirtyLog final : public runtime::DirtyLog {
 public:
  explicit SoftwareDirtyLog(std::uint64_t pages) : words_((pages + 63) / 64), pages_(pages) {}

  base::Outcome enable() override;
  void disable() override;
  base::Outcome read(std::size_t region, std::span<std::uint64_t> bitmap) override;
  base::Outcome clear(std::size_t region, std::uint64_t first, std::uint64_t count,
                      std::span<const std::uint64_t> bitmap) override;

  void mark(std::uint64_t page);

  /// Called by disable(). Before the log is used.
  void when_it_ends(std::function<void()> call) { when_it_ends_ = std::move(call); }

 private:
  std::function<void()> when_it_ends_;
  std::vector<std::atomic<std::uint64_t>> words_;
  std::uint64_t pages_;
  std::atomic<bool> enabled_{false};
};

/// A machine without KVM: guest memory on a memfd, and threads that write and verify
/// self-checking pages through the guest mapping, so that they fault as vCPUs do.
///
/// A page holds its number, its generation and words made of both; the table of generations is the
/// machine's state, so that a stale page cannot look right.
///
/// The last guest thread to park writes a log behind the working set first, which no guest thread
/// touches afterwards: however fast the machine is, that much is left to be pushed after a switch.
class TestMachine final : public runtime::Machine {
 public:
  struct Config {
    std::uint64_t pages = 2048;
    std::uint64_t working_set = 1024;
    std::uint64_t log = 512;  ///< Pages behind the working set. The rest stays holes.
    unsigned guests = 1;
    bool incoming = false;
    std::string model = "test";  ///< Compared as the shape.
    bool refuses_state = false;  ///< load() fails.
    /// load() reads this page of memory, as KVM does for a clock or a steal-time page.
    std::optional<std::uint64_t> read_by_load = std::nullopt;
    std::uint64_t first_pages = 2;
    int memory = -1;    ///< An empty file for the guest's memory; otherwise a memfd.
    bool huge = false;  ///< On huge pages: a whole number of 512 pages.
  };

  explicit TestMachine(const Config& config);
  ~TestMachine() override;

  const std::vector<runtime::Region>& regions() const override { return regions_; }

  SoftwareDirtyLog& dirty_log() override { return log_; }

  runtime::RunGate& gate() override { return gate_; }

  runtime::MachineState shape() const override;
  std::vector<std::string> refusals(const runtime::MachineState& source) const override;
  void park(std::function<void()> parked) override;
  void unpark() override;
  base::Expected<runtime::MachineState> save() override;
  base::Outcome load(const runtime::MachineState& state) override;
  std::vector<base::PageIndex> first_pages() override;
  void start_here(std::function<void()> entered) override;

  bool wants_to_run() const override { return true; }

  void pages_lost(std::uint64_t /*pages*/) override {}

  void guest_failed(const std::string& /*reason*/) override {}

  /// Starts the guest threads of a machine that is not incoming.
  void start();

  /// Ends the guest threads; they wait for no page then only if none is missing.
  void stop();

  /// Accesses since the machine was made. Waits until `more` further ones were done.
  void wait_for_accesses(std::uint64_t more);

  [[nodiscard]] std::uint64_t accesses() const { return accesses_; }

  /// Pages that were not what they had to be.
  [[nodiscard]] std::uint64_t corrupt() const { return corrupt_; }

  /// Reads every page of the stopped machine. Pages behind the log must be holes, or zeros on huge
  /// pages.
  [[nodiscard]] std::uint64_t sweep();

  [[nodiscard]] std::uint64_t* page(std::uint64_t number) const;

 private:
  void guest(unsigned number);
  void access(unsigned number, std::uint64_t random);
  void write(std::uint64_t number);
  void write_log();
  [[nodiscard]] bool matches(std::uint64_t number, std::uint32_t generation) const;
  [[nodiscard]] bool is_zero(std::uint64_t number) const;
  void fill(std::uint64_t number, std::uint32_t generation) const;

  Config config_;
  base::OwnedFd fd_;
  std::byte* mapping_ = nullptr;
  std::vector<runtime::Region> regions_;
  SoftwareDirtyLog log_;
  runtime::RunGate gate_;
  std::vector<std::atomic<std::uint32_t>> generations_;
  std::atomic<std::uint64_t> accesses_{0};
  std::atomic<std::uint64_t> corrupt_{0};

  base::Mutex mutex_;
  base::Condition changed_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  bool parking_ GUARDED_BY(mutex_) = false;
  unsigned inside_ GUARDED_BY(mutex_) = 0;
  std::function<void()> parked_ GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

/// userfaultfd can be used here; prints a SKIP line with the reason otherwise.
bool can_serve_faults();

}  // namespace towline::tests
