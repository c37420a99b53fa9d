#pragma once

#include "runtime/run_gate.h"

namespace towline::runtime {

/// As gate.step(), and the log says who owns the guest from now on.
base::Outcome change_owner(RunGate& gate, OwnershipEvent event);

}  // namespace towline::runtime
