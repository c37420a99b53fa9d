#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace towline::monitor {

/// One client's conversation, without I/O: bytes in, lines out.
///
/// Threads: the loop's.
class Session {
 public:
  /// Takes whole lines, with their ends. May not destroy the session.
  using Send = std::function<void(std::string lines)>;

  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;

  /// Once, before anything else.
  virtual void greet() = 0;

  virtual void receive(std::string_view bytes) = 0;

  /// `line` as event_line() made it.
  virtual void send_event(const std::string& line) = 0;

  /// The migration out of here has another status.
  virtual void migration_changed() {}
};

}  // namespace towline::monitor
