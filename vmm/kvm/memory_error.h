#pragma once

#include <optional>

#include "base/units.h"

/// Pages of guest memory that became an error to touch (UFFDIO_POISON, a broken memory module), as
/// a vCPU's thread meets them.
///
/// KVM sends SIGBUS (BUS_MCEERR_AR, with the host address) to the thread whose guest touched one,
/// and leaves the guest. Anybody else who touches one would do it again for ever: their process
/// ends, with a word.
namespace towline::vmm {

/// Makes SIGBUS within KVM_RUN harmless, for every thread of the process. Repeatable.
void install_memory_error_handler();

/// On each vCPU's thread, before its first entry: our threads block signals, and a guest that
/// touched lost memory would be entered again and again while its SIGBUS is pending.
void accept_memory_errors();

/// Between both, SIGBUS on this thread is the guest's.
void enter_guest();
void leave_guest();

/// The host address that the guest last touched in vain on this thread; forgotten with that.
std::optional<base::HostAddress> take_memory_error();

}  // namespace towline::vmm
