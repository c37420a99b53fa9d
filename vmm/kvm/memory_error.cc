#include "vmm/kvm/memory_error.h"

#include <signal.h>

#include <cstdint>
#include <string_view>

#include "base/last_words.h"

namespace towline::vmm {
namespace {

// Of one thread and its own signal handler.
thread_local volatile sig_atomic_t in_guest = 0;
thread_local volatile std::uintptr_t touched = 0;

constexpr std::string_view kLastWords =
    "towline: this process touched a page of guest memory whose content is lost, and ends\n";

void on_bus_error(int signal, siginfo_t* info, void* /*context*/) {
  if (in_guest != 0 && info->si_code == BUS_MCEERR_AR) {
    touched = reinterpret_cast<std::uintptr_t>(info->si_addr);
    return;
  }
  if (info->si_code == BUS_MCEERR_AO) {
    return;  // Somewhere in this process, for whoever wants to know early.
  }
  base::say_last_words(kLastWords);
  ::signal(signal, SIG_DFL);  // The access is repeated, and ends the process.
}

}  // namespace

void install_memory_error_handler() {
  struct sigaction action {};

  action.sa_sigaction = on_bus_error;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
}

void accept_memory_errors() {
  sigset_t bus;
  sigemptyset(&bus);
  sigaddset(&bus, SIGBUS);
  ::pthread_sigmask(SIG_UNBLOCK, &bus, nullptr);
}

void enter_guest() {
  touched = 0;
  in_guest = 1;
}

void leave_guest() {
  in_guest = 0;
}

std::optional<base::HostAddress> take_memory_error() {
  const std::uintptr_t at = touched;
  touched = 0;
  return at == 0 ? std::nullopt : std::optional(base::HostAddress{at});
}

}  // namespace towline::vmm
