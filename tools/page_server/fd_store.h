#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/fd.h"

/// Descriptors that outlive the process, kept by the service manager: sd_notify(3) with FDSTORE,
/// sd_listen_fds(3) at the next start. Without a manager ($NOTIFY_SOCKET) nothing is kept.
///
/// Nothing that is sent there is answered, and the variable is inherited by whomever a service
/// starts. What counts as kept is therefore what the manager confirms, and nothing else:
///
/// 1. The environment was made for this process: $SYSTEMD_EXEC_PID (systemd 248) is its own.
/// 2. Everything was sent, and the manager has read it: it closes the pipe of a BARRIER=1.
/// 3. It has room: $FDSTORE (systemd 254) says for how many; an older one is asked how many it
///    keeps, NFileDescriptorStore of the unit that this process is in, before and after.
namespace towline::tools {

struct KeptFd {
  std::string name;
  base::OwnedFd fd;
};

/// One to be kept, borrowed.
struct NamedFd {
  std::string name;
  int fd = -1;
};

/// Those that the manager passed to this process, apart from what it passes to others. Once, at the
/// start: they are close-on-exec and owned from then on.
std::vector<KeptFd> take_kept_fds();

/// Threads: one.
class FdStore {
 public:
  /// Takes what the environment says of a manager out of it. `daemon`: this process may be a
  /// manager's own; otherwise nothing is ever kept, whatever was inherited.
  explicit FdStore(bool daemon);

  [[nodiscard]] bool present() const { return socket_.valid(); }

  /// All of them and nothing else of these names. When it succeeds, the manager has them. It waits
  /// for the manager, for some seconds at most.
  /// Errors: kUnsupported, kFailed: they count as not kept, and why.
  base::Outcome keep(const std::vector<NamedFd>& all);

  void drop(const std::vector<std::string>& names);

  /// The service is ready; `status` is shown by the manager. Errors: kFailed: it does not listen.
  base::Outcome tell(const std::string& status);

 private:
  base::Outcome send(const std::string& text, int fd, base::Instant deadline);
  base::Outcome await_barrier(base::Instant deadline);
  [[nodiscard]] base::Expected<std::uint64_t> count_kept(base::Instant deadline) const;

  base::OwnedFd socket_;
  bool of_user_ = false;               // The manager is a user's.
  std::optional<std::int64_t> owner_;  // $SYSTEMD_EXEC_PID
  std::optional<std::uint64_t> room_;  // $FDSTORE
};

}  // namespace towline::tools
