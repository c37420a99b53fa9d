#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <string>

#include "base/clock.h"
#include "tools/client/move.h"

namespace towline::tools {

/// Shows a move while it goes on: on a terminal one line in place, elsewhere a line a second and
/// one for each change of status.
class Progress {
 public:
  /// `out` is borrowed; `terminal`: it can be written over.
  Progress(std::FILE* out, bool terminal) : out_(out), terminal_(terminal) {}

  void show(const MoveView& view, base::Instant now);

  /// A message between the lines of progress.
  void say(const std::string& text);

  /// Takes the line in place away.
  void finish();

 private:
  struct Sample {
    base::Instant at;
    std::uint64_t transferred = 0;
  };

  [[nodiscard]] double rate(base::Instant now, std::uint64_t transferred);
  [[nodiscard]] std::string line(const MoveView& view, base::Instant now);

  std::FILE* const out_;
  const bool terminal_;
  std::deque<Sample> samples_;  ///< The last two seconds.
  std::string last_status_;
  std::string last_waits_;
  std::string last_silent_;
  base::Instant last_line_;
  bool line_is_open_ = false;
};

}  // namespace towline::tools
