#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/migration.h"
#include "vmm/monitor/guest.h"
#include "vmm/monitor/migration_settings.h"

namespace towline::monitor {

/// Which end of a migration this process is.
enum class Role : std::uint8_t { kSource, kTarget };

/// Who is told of the migrations of this process, at each end.
struct MigrationObservers {
  runtime::MigrationObserver& source;
  runtime::MigrationObserver& target;
};

/// What a process is told about migrations when it starts.
struct MigrationConfig {
  bool incoming = false;           ///< Started to receive a guest.
  bool allow_unprotected = false;  ///< May listen beyond this host without a secret.
  /// The parameters' first values, and what no parameter changes: the secret, and how a page server
  /// is started.
  runtime::MigrationOptions options = {};
};

/// A migration's numbers, with the end that they are from.
struct RoleReport {
  Role role = Role::kSource;
  runtime::MigrationReport report;
};

/// The settings, the migration in progress and the rules about what may be asked when. The wording
/// of its errors is QEMU's where QEMU has the same rule.
///
/// Threads: the loop's. Waits for no vCPU and for none of the migration's threads, except that a
/// finished migration is joined when the next one starts.
class MigrationControl {
 public:
  /// All of them outlive this.
  MigrationControl(Guest& guest, MigrationFactory& factory, MigrationObservers observers,
                   MigrationConfig config);

  [[nodiscard]] const MigrationSettings& settings() const { return settings_; }

  base::Outcome set_capabilities(const Json& list);
  base::Outcome set_parameters(const Json* object);

  base::Outcome migrate(const runtime::Uri& target);

  using Start = std::function<base::Expected<std::unique_ptr<runtime::Outgoing>>(
      runtime::MigrationObserver& observer)>;
  /// Makes the migration that `start` returns, already under way, the one in progress here.
  base::Outcome adopt(const Start& start);
  /// Forgets the one in progress, apart from its numbers. Only after its end.
  void forget();

  /// Reconnects a paused migration, to `target`.
  base::Outcome resume_migration(const runtime::Uri& target);
  /// Ends the link in post-copy, at either end.
  base::Outcome pause();
  /// At a paused target: listens at a further address.
  base::Outcome recover_at(const runtime::Uri& at);
  /// The last resort of a source that does not know whether the target runs the guest.
  base::Outcome take_back(bool target_is_fenced);
  /// At a paused target: what is missing is lost; `how` says what becomes of the guest. Not given:
  /// as the parameter says.
  base::Outcome give_up_source(std::optional<runtime::SourceLoss> how);
  base::Outcome start_postcopy();

  /// migrate-continue. `state`: in which the caller believes it to wait.
  base::Outcome continue_switch(const std::string& state);
  base::Outcome cancel();

  /// Begins to listen. `exit_on_error`: see exits_on_error().
  base::Outcome listen(const runtime::Uri& at, bool exit_on_error);

  /// There is, or was, a migration at this end: one that was refused never is.
  [[nodiscard]] bool knows(Role role) const;

  /// The numbers of the last migration of this process, finished or not.
  [[nodiscard]] std::optional<RoleReport> report() const;

  /// The guest may be let run, as far as migrations are concerned.
  [[nodiscard]] base::Outcome may_continue() const;
  [[nodiscard]] base::Outcome may_reset() const;

  /// What goes on without this process is at a page server: it may end though it is in progress.
  [[nodiscard]] bool may_be_left() const;

  /// What would be lost if this process ended now; nothing if that harms no other process.
  [[nodiscard]] std::optional<std::string> danger_of_ending() const;

  /// The incoming migration ended the guest because its source was lost.
  [[nodiscard]] bool guest_given_up() const;

  /// A migration out of here is in progress and has not given the guest away yet.
  [[nodiscard]] bool can_be_cancelled() const;
  /// There is a migration here whose threads may not be joined yet.
  [[nodiscard]] bool in_progress() const;

  /// A failure of the incoming migration ends the process (QEMU's exit-on-error).
  [[nodiscard]] bool exits_on_error() const { return exit_on_error_; }

 private:
  [[nodiscard]] runtime::MigrationStatus outgoing_status() const;
  [[nodiscard]] runtime::MigrationStatus incoming_status() const;
  [[nodiscard]] base::Outcome may_migrate() const;
  [[nodiscard]] base::Outcome may_listen(const runtime::Uri& at) const;

  Guest& guest_;
  MigrationFactory& factory_;
  const MigrationObservers observers_;
  const MigrationConfig config_;
  MigrationSettings settings_;
  bool exit_on_error_ = true;
  Role last_role_ = Role::kSource;
  std::optional<RoleReport> past_;  // Of the outgoing migration before outgoing_.
  std::unique_ptr<runtime::Outgoing> outgoing_;
  std::unique_ptr<runtime::Incoming> incoming_;
};

}  // namespace towline::monitor
