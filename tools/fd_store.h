#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

/// Descriptors that outlive the process, kept by the service manager: sd_notify(3) with FDSTORE,
/// sd_listen_fds(3) at the next start. Without a manager ($NOTIFY_SOCKET) nothing is kept.
namespace towline::tools {

struct KeptFd {
  std::string name;
  base::OwnedFd fd;
};

/// Those that the manager passed to this process, apart from what it passes to others. Once, at the
/// start: they are close-on-exec and owned from then on.
std::vector<KeptFd> take_kept_fds();

class FdStore {
 public:
  /// Looks for $NOTIFY_SOCKET.
  FdStore();

  [[nodiscard]] bool present() const { return socket_.valid(); }

  /// Errors: kFailed: the manager does not listen.
  base::Outcome keep(const std::string& name, int fd) const;
  base::Outcome drop(const std::string& name) const;

  /// The service is ready; `status` is shown by the manager.
  base::Outcome tell(const std::string& status) const;

 private:
  base::Outcome send(const std::string& text, int fd) const;

  base::OwnedFd socket_;
};

}  // namespace towline::tools
