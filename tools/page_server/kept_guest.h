#pragma once

#include <functional>
#include <optional>
#include <string>

#include "runtime/standby/kept_machine.h"
#include "vmm/monitor/guest.h"

/// What a page server's control socket sees of the guest whose memory is kept.
namespace towline::tools {

class KeptGuest final : public monitor::Guest {
 public:
  explicit KeptGuest(std::string name) : name_(std::move(name)) {}

  /// Null: none is kept. `kept_elsewhere`: a service manager has confirmed that it holds the memory
  /// too.
  void hold(runtime::KeptMachine* machine, bool kept_elsewhere) {
    machine_ = machine;
    kept_elsewhere_ = kept_elsewhere;
    away_ = false;
  }

  [[nodiscard]] std::string name() const override { return name_; }

  [[nodiscard]] vmm::RunState run_state() const override;

  [[nodiscard]] std::string failure() const override { return {}; }

  base::Outcome stop() override;
  base::Outcome cont() override;
  base::Outcome system_reset() override;

  void migrated_away() override { away_ = true; }

  [[nodiscard]] std::optional<std::string> danger_of_ending() const override;

 private:
  const std::string name_;
  bool kept_elsewhere_ = false;
  runtime::KeptMachine* machine_ = nullptr;  // Outlives what is kept here.
  bool away_ = false;
};

/// Passes everything on, and tells each status to `also` too, from the migration's threads. What of
/// a status must outlive this process is in the ledger before either is told: the driver writes it.
class StatusTap final : public runtime::MigrationObserver {
 public:
  using Also = std::function<void(runtime::MigrationStatus)>;

  StatusTap(runtime::MigrationObserver& next, Also also) : next_(next), also_(std::move(also)) {}

  void on_status(runtime::MigrationStatus status) override {
    next_.on_status(status);
    also_(status);
  }

  void on_pass(std::uint64_t pass) override { next_.on_pass(pass); }

  void on_guest_stopped() override { next_.on_guest_stopped(); }

  /// Its memory may be used again; it does not run.
  void on_guest_started() override {}

 private:
  runtime::MigrationObserver& next_;
  const Also also_;
};

}  // namespace towline::tools
