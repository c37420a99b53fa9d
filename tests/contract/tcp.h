#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <vector>

#include "base/fd.h"

namespace towline::contract {

/// Both ends of a TCP connection over loopback.
struct TcpPair {
  base::OwnedFd near;
  base::OwnedFd far;

  static TcpPair connect();
};

/// 0, 1, … 250, 0, …: a shift by any number of bytes below 251 shows.
std::vector<std::byte> numbered_bytes(std::size_t count);

/// Blocks until `bytes` can be read from `fd` at once.
void wait_until_readable(int fd, std::size_t bytes);

/// A child process. Its body makes system calls only; killed and reaped at the end of the scope.
class Child {
 public:
  explicit Child(const std::function<void()>& body);
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  ~Child() { kill_and_reap(); }

  void kill_and_reap();

  [[nodiscard]] pid_t pid() const { return pid_; }

  /// Blocks until the child has ended; its status as waitpid() has it.
  int wait_until_ended();

  /// Blocks until the child has stopped itself.
  void wait_until_stopped() const;

  /// The child is still stopped: nothing continued it.
  [[nodiscard]] bool is_stopped() const;

 private:
  pid_t pid_ = -1;
};

}  // namespace towline::contract
