#include "tools/process.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>

namespace towline::tools {
namespace {

// Those that end or steer a process are left: HUP, INT, QUIT, TERM, TSTP. SIGUSR1 is what takes
// vCPUs out of the guest; until they are there nobody may send it either.
constexpr std::array kStray{SIGUSR1, SIGUSR2,   SIGALRM, SIGVTALRM, SIGPROF,
                            SIGIO,   SIGSTKFLT, SIGPWR,  SIGXCPU,   SIGXFSZ};

}  // namespace

void prepare_process() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) == -1 && errno == EBADF) {
      // The lowest that is free, which is this one.
      [[maybe_unused]] const int opened =
          ::open("/dev/null", fd == STDIN_FILENO ? O_RDONLY : O_WRONLY);  // NOLINT: no O_CLOEXEC.
    }
  }
  for (const int one : kStray) {
    std::signal(one, SIG_IGN);
  }
  for (int one = SIGRTMIN; one <= SIGRTMAX; ++one) {
    std::signal(one, SIG_IGN);
  }
}

}  // namespace towline::tools
