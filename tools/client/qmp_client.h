#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "vmm/monitor/framing.h"
#include "vmm/monitor/json.h"

namespace towline::tools {

/// A machine that takes QMP commands; tests put their own here.
class Peer {
 public:
  Peer() = default;
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  virtual ~Peer() = default;

  /// Sends a command and waits for its answer; events that come in between are dropped.
  /// `arguments` may be null: then there are none.
  ///
  /// Errors: kRefused with the machine's own words; kDisconnected when the machine went away;
  /// kOverloaded when it says nothing for so long that it may be stopped.
  virtual base::Expected<monitor::Json> execute(const std::string& command,
                                                const monitor::Json& arguments) = 0;

  base::Expected<monitor::Json> execute(const std::string& command) {
    return execute(command, monitor::Json());
  }

 protected:
  Peer(Peer&&) = default;
  Peer& operator=(Peer&&) = default;
};

/// A blocking QMP client. Threads: one.
class QmpClient final : public Peer {
 public:
  /// Connects to the unix socket `path` and negotiates.
  ///
  /// Errors: kDisconnected when nobody is there, or it takes no client; kOverloaded when the
  /// greeting does not come in time. Each names the path.
  static base::Expected<QmpClient> connect(const std::string& path);

  /// kOverloaded, naming the path, after the patience. A later answer is known as late.
  base::Expected<monitor::Json> execute(const std::string& command,
                                        const monitor::Json& arguments) override;
  using Peer::execute;

  /// How long an answer is waited for. A machine answers within milliseconds whatever it does; this
  /// is for one that is stopped.
  void set_patience(std::chrono::seconds patience) { patience_ = patience; }

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  QmpClient(std::string path, base::OwnedFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  base::Outcome wait_readable(std::chrono::steady_clock::time_point deadline) const;
  base::Outcome read_some(std::chrono::steady_clock::time_point deadline);
  base::Expected<monitor::Json> next_message(std::chrono::steady_clock::time_point deadline);

  std::string path_;
  base::OwnedFd fd_;
  std::string unread_;  ///< Bytes after the last whole line.
  std::uint64_t next_id_ = 1;
  std::chrono::seconds patience_{10};
};

}  // namespace towline::tools
