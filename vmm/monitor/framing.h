#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

#include "vmm/monitor/json.h"

namespace towline::monitor {

/// Longest message that is read. Bytes.
inline constexpr std::size_t kMaxMessageBytes = 1U << 20U;

/// Cuts a stream of bytes into JSON texts: a message may span several reads, and a read may hold
/// several messages, with or without anything between them.
///
/// What cannot be JSON is reported once and then skipped up to a place where a message may begin:
/// - garbage between messages: to the next '{', '[' or line end;
/// - a line end inside a string, a bracket of the wrong kind, the bytes 0xfe and 0xff (which no
///   text contains, so that a client may send one to start afresh): the message is dropped there;
/// - a message too long or nested too deeply: to its own end if that comes, or to a line end.
///
/// Strings may stand in single quotes, as QEMU allows; they come out in double quotes.
class JsonSplitter {
 public:
  /// Told of each message's text, or (with `text` empty) of why one was dropped.
  using Sink = std::function<void(std::string text, std::string problem)>;

  explicit JsonSplitter(Sink sink) : sink_(std::move(sink)) {}

  void feed(std::string_view bytes);

 private:
  enum class State : unsigned char { kBetween, kMessage, kString, kEscape, kRecovering };

  void step(char byte);
  void between(char byte);
  void in_message(char byte);
  void in_string(char byte);
  void after_backslash(char byte);
  void recovering(char byte);
  void open(char byte);
  void close(char byte);
  void keep(char byte);
  void finish();
  void reset(State next);
  void drop(std::string why, State next);
  void drop_string(char byte);
  void discard_rest(std::string why);

  const Sink sink_;
  State state_ = State::kBetween;
  std::string text_;
  std::string open_;         // The brackets not closed yet, outermost first.
  char quote_ = '"';         // What the string in progress began with.
  bool discarding_ = false;  // The message was refused for its size: only its end is looked for.
  std::size_t depth_ = 0;    // While discarding, in place of open_.
};

}  // namespace towline::monitor
