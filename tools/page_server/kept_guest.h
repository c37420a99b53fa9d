#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>

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

  /// Who is told of each status of the migration out of here, on the loop's thread.
  void tell(std::function<void(runtime::MigrationStatus)> told) { told_ = std::move(told); }

  [[nodiscard]] std::string name() const override { return name_; }

  [[nodiscard]] vmm::RunState run_state() const override;

  [[nodiscard]] std::string failure() const override { return {}; }

  [[nodiscard]] base::Bytes memory() const override;

  base::Outcome stop() override;
  base::Outcome cont() override;
  base::Outcome system_reset() override;

  void on_leaving(runtime::MigrationStatus status) override;

  [[nodiscard]] std::optional<std::string> danger_of_ending() const override;

 private:
  const std::string name_;
  bool kept_elsewhere_ = false;
  runtime::KeptMachine* machine_ = nullptr;  // Outlives what is kept here.
  bool away_ = false;
  std::function<void(runtime::MigrationStatus)> told_;
};

}  // namespace towline::tools
