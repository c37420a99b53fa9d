#pragma once

#include <optional>
#include <string>

#include "base/error.h"
#include "runtime/parameters.h"
#include "tools/arguments/parse.h"
#include "tools/client/migrate.h"
#include "tools/client/qmp_client.h"
#include "vmm/monitor/json.h"

namespace towline::tools {

/// One look at both ends.
struct MoveView {
  monitor::Json source;  ///< query-migrate's last answer; null: that process is gone.
  monitor::Json target;
  std::string silent;          ///< Who does not answer now, for a person; empty when both do.
  std::optional<MoveEnd> end;  ///< Not set: the move goes on.
  std::string reason;          ///< Why it ended so, for a person; empty when it went well.
};

/// Drives one move between two machines through their QMP sockets.
///
/// 1. prepare(): the target listens (unless it does already), both ends get their settings;
/// 2. start(): `migrate` at the source;
/// 3. look(), again and again, until it says how the move ended;
/// 4. meanwhile cancel() may be tried, which the source refuses once the guest was handed over.
class Move {
 public:
  /// All outlive this.
  Move(Peer& source, Peer& target, const MigrateArguments& arguments);

  base::Outcome prepare();
  base::Outcome start();
  MoveView look();
  base::Outcome cancel();

 private:
  base::Outcome check_states();
  base::Outcome target_listens();
  base::Outcome choose_address(const monitor::Json& listening);
  base::Outcome configure();
  base::Outcome set_parameters(Peer& peer, runtime::Parameter::End end);
  [[nodiscard]] MoveView judge(monitor::Json source, monitor::Json target);
  [[nodiscard]] bool away_for_long(const monitor::Json& source, const monitor::Json& target);

  std::string ask(Peer& peer, const std::string& path, monitor::Json& said) const;

  Peer& source_;
  Peer& target_;
  monitor::Json source_said_;  ///< query-migrate's last answer; null: that process is gone.
  monitor::Json target_said_;
  const MigrateArguments& arguments_;
  std::string address_;  ///< What the source connects to.
  int away_looks_ = 0;
  bool handed_over_ = false;  ///< The target has loaded, or is loading, the guest.
};

}  // namespace towline::tools
