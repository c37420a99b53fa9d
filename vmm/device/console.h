#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "base/sync.h"
#include "base/thread.h"

namespace towline::vmm {

/// Where the serial port's other end is: the process's own input and output, a file, a unix socket
/// with one client at a time, or nowhere.
///
/// put() never waits: output goes through a bounded buffer and a thread of its own. What finds no
/// room is dropped and counted, and a note in the output says so once there is room again. While
/// nobody is connected to the socket, the oldest output is dropped, so that who comes finds the
/// newest.
class Console {
 public:
  struct Input {
    std::function<std::size_t()> room;  ///< Bytes that take() would accept. Any thread.
    std::function<void(std::span<const std::byte>)> take;
  };

  /// `where`: stdio | file:PATH | unix:PATH | none. Errors: kRefused; names value and remedy.
  static base::Expected<std::unique_ptr<Console>> open(const std::string& where);

  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  /// Gives what is buffered a moment to get out.
  ~Console();

  /// Begins to read input. Once.
  void start(Input input);

  /// Sends one byte. Threads: any. Never waits.
  void put(std::byte byte);

  /// Input may be taken again. Threads: any.
  void poke() { base::signal_eventfd(wake_.get()); }

  /// Bytes that could not be delivered so far. Threads: any.
  std::uint64_t dropped();

 private:
  enum class Kind : std::uint8_t { kNone, kStdio, kFile, kUnix };

  explicit Console(Kind kind) : kind_(kind) {}

  void run();
  bool poll_once();
  void read_input();
  void end_input();
  void accept_client();
  void write_output();
  void drop_client();
  void take_note() REQUIRES(mutex_);
  [[nodiscard]] bool wants_input() const;
  [[nodiscard]] int in_fd() const;
  [[nodiscard]] int out_fd() const;

  const Kind kind_;
  base::OwnedFd file_;
  base::OwnedFd output_;  // Of stdio, an open file of our own where that can be had.
  base::OwnedFd listener_;
  std::string socket_path_;
  base::OwnedFd wake_;
  Input input_;

  // Of the console's thread.
  base::OwnedFd client_;
  bool input_ended_ = false;
  bool told_failure_ = false;

  base::Mutex mutex_;
  std::deque<std::byte> buffer_ GUARDED_BY(mutex_);
  bool keep_newest_ GUARDED_BY(mutex_) = false;
  bool ending_ GUARDED_BY(mutex_) = false;
  std::uint64_t dropped_ GUARDED_BY(mutex_) = 0;
  std::uint64_t dropped_untold_ GUARDED_BY(mutex_) = 0;

  base::NamedThread thread_;
};

}  // namespace towline::vmm
