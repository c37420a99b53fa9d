#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/line_queue.h"

namespace towline::base {

/// Writes lines to a descriptor whose reader may have stopped: a paused terminal, a journal that
/// stalls. A thread of its own waits in write(2), and nobody else does.
///
/// The descriptor is used as it is and never made non-blocking: that is a property of the open
/// file, which others have inherited, or gave to us.
///
/// Threads: any.
class LineWriter {
 public:
  struct Ways {
    std::string (*format)(const LogLine&) = nullptr;      ///< With its end; called by the thread.
    void (*failed)(const LogLine&, int error) = nullptr;  ///< May be null.
  };

  /// `fd` is borrowed and outlives the process' interest in it. `thread`: at most 15 characters.
  LineWriter(int fd, const char* thread, Ways ways, std::size_t most_bytes);

  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;

  /// Waits for nothing: the thread ends once it is not held in a write any more.
  ~LineWriter();

  /// Never waits. The thread starts with the first line, in the process that says it.
  void put(LogLine line);

  /// Waits until all is written, not beyond `deadline`. False: something is not.
  bool flush(Instant deadline);

  /// Lines that never were written, so far.
  [[nodiscard]] std::uint64_t dropped() const;

 private:
  class Shared;

  const std::shared_ptr<Shared> shared_;  // shared: with a thread that may be held for ever.
};

}  // namespace towline::base
