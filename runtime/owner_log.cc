#include "runtime/owner_log.h"

#include "base/log.h"

namespace towline::runtime {

base::Outcome change_owner(RunGate& gate, OwnershipEvent event) {
  const Ownership from = gate.ownership();
  TRY(gate.step(event));
  base::log_owner(base::LogLevel::kInfo, "guest.owner event={} from={} to={}", to_string(event),
                  to_string(from), to_string(gate.ownership()));
  return base::Done{};
}

}  // namespace towline::runtime
