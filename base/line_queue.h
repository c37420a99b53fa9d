#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>

namespace towline::base {

enum class LogLevel : unsigned char { kDebug, kInfo, kWarning, kError };

struct LogLine {
  LogLevel level = LogLevel::kInfo;
  bool about_owner = false;  ///< Says who owns the guest: dearer than an error.
  bool plain = false;        ///< For people at a terminal: no time, no name, no level before it.
  bool of_dropped = false;   ///< The queue's own: counts those that are missing here.
  std::chrono::system_clock::time_point at;
  std::string text;
};

/// Lines that wait for a reader, in bounded memory.
///
/// Where there is no room for all, the cheapest go first: debug, then info, warnings, errors, and
/// last the lines about the guest's owner. Of equal ones the newest go, so that what led to the
/// trouble stays. They are counted, and a line says so in the place of the first of them.
///
/// Threads: the owner's lock.
class LineQueue {
 public:
  static constexpr std::size_t kRanks = 5;
  using Counts = std::array<std::uint64_t, kRanks>;

  explicit LineQueue(std::size_t most_bytes) : most_bytes_(most_bytes) {}

  /// Never refuses: what finds no room is counted.
  void push(LogLine line);

  /// pop() has something to give.
  [[nodiscard]] bool ready() const { return lines_ > 0 || untold_is_due_; }

  /// The oldest line, or the one that tells of those that were dropped before it; none unless
  /// ready().
  std::optional<LogLine> pop();

  /// A line that was popped could not be written. It is told with the next that can.
  void lose(const LogLine& line);

  /// Lines dropped or lost so far.
  [[nodiscard]] std::uint64_t dropped() const { return dropped_; }

 private:
  struct Numbered {
    std::uint64_t number = 0;
    LogLine line;
  };

  [[nodiscard]] static std::size_t cost(const LogLine& line);
  void drop(std::size_t rank);
  LogLine tell();

  const std::size_t most_bytes_;
  std::array<std::deque<Numbered>, kRanks> by_rank_;
  std::size_t lines_ = 0;
  std::size_t bytes_ = 0;
  std::uint64_t next_number_ = 0;

  Counts untold_{};
  Counts being_told_{};  ///< What the last line of tell() says.
  bool untold_is_due_ = false;
  std::uint64_t first_untold_at_ = 0;
  std::uint64_t dropped_ = 0;
};

}  // namespace towline::base
