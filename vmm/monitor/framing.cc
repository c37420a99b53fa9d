#include "vmm/monitor/framing.h"

#include <utility>

#include <fmt/format.h>

namespace towline::monitor {
namespace {

bool is_line_end(char byte) {
  return byte == '\n' || byte == '\r';
}

bool is_control(char byte) {
  return static_cast<unsigned char>(byte) < 0x20;
}

/// In no text of any kind: 0xfe and 0xff are not UTF-8.
bool is_reset(char byte) {
  return static_cast<unsigned char>(byte) >= 0xfe;
}

}  // namespace

void JsonSplitter::feed(std::string_view bytes) {
  for (const char byte : bytes) {
    step(byte);
  }
}

void JsonSplitter::step(char byte) {
  if (is_reset(byte) && state_ != State::kBetween) {
    return state_ == State::kRecovering || discarding_
               ? reset(State::kBetween)
               : drop("the message ends at a byte that is not UTF-8", State::kBetween);
  }
  if (discarding_ && is_line_end(byte)) {
    return reset(State::kBetween);
  }
  switch (state_) {
    case State::kBetween:
      return between(byte);
    case State::kMessage:
      return in_message(byte);
    case State::kString:
      return in_string(byte);
    case State::kEscape:
      return after_backslash(byte);
    case State::kRecovering:
      return recovering(byte);
  }
}

void JsonSplitter::between(char byte) {
  if (byte == '{' || byte == '[') {
    state_ = State::kMessage;
    open(byte);
  } else if (byte != ' ' && byte != '\t' && !is_line_end(byte)) {
    const auto code = static_cast<unsigned>(static_cast<unsigned char>(byte));
    drop(fmt::format("a message begins with '{{', not with byte 0x{:02x}", code),
         State::kRecovering);
  }
}

void JsonSplitter::in_message(char byte) {
  if (byte == '"' || byte == '\'') {
    quote_ = byte;
    state_ = State::kString;
    keep('"');
  } else if (byte == '{' || byte == '[') {
    open(byte);
  } else if (byte == '}' || byte == ']') {
    close(byte);
  } else {
    keep(byte);
  }
}

void JsonSplitter::in_string(char byte) {
  if (byte == quote_) {
    state_ = State::kMessage;
    keep('"');
  } else if (is_control(byte)) {
    drop_string(byte);
  } else if (byte == '\\') {
    state_ = State::kEscape;
  } else {
    if (byte == '"') {
      keep('\\');  // A plain character inside single quotes.
    }
    keep(byte);
  }
}

void JsonSplitter::after_backslash(char byte) {
  state_ = State::kString;
  if (is_control(byte)) {
    return drop_string(byte);
  }
  if (byte != '\'') {  // \' is QEMU's; JSON knows only the plain character.
    keep('\\');
  }
  keep(byte);
}

void JsonSplitter::recovering(char byte) {
  if (is_line_end(byte)) {
    reset(State::kBetween);
  } else if (byte == '{' || byte == '[') {
    reset(State::kBetween);
    between(byte);
  }
}

void JsonSplitter::open(char byte) {
  if (discarding_) {
    ++depth_;
  } else if (open_.size() == kMaxJsonDepth) {
    depth_ = open_.size() + 1;
    discard_rest(fmt::format("nesting deeper than {}", kMaxJsonDepth));
  } else {
    open_.push_back(byte);
    keep(byte);
  }
}

void JsonSplitter::close(char byte) {
  if (discarding_) {
    if (--depth_ == 0) {
      reset(State::kBetween);
    }
    return;
  }
  if (open_.back() != (byte == '}' ? '{' : '[')) {
    return drop(fmt::format("'{}' does not close '{}'", byte, open_.back()), State::kRecovering);
  }
  open_.pop_back();
  keep(byte);
  if (discarding_ && depth_ == 0) {
    reset(State::kBetween);  // The very last bracket was one byte too many.
  } else if (!discarding_ && open_.empty()) {
    finish();
  }
}

void JsonSplitter::keep(char byte) {
  if (discarding_) {
    return;
  }
  if (text_.size() == kMaxMessageBytes) {
    depth_ = open_.size();
    discard_rest(fmt::format("the message is longer than {} bytes", kMaxMessageBytes));
    return;
  }
  text_.push_back(byte);
}

void JsonSplitter::finish() {
  std::string done = std::exchange(text_, {});
  reset(State::kBetween);
  sink_(std::move(done), {});
}

void JsonSplitter::reset(State next) {
  text_.clear();
  text_.shrink_to_fit();  // Up to a mebibyte that an idle client need not hold.
  open_.clear();
  discarding_ = false;
  depth_ = 0;
  state_ = next;
}

void JsonSplitter::drop(std::string why, State next) {
  const bool told = discarding_;
  reset(next);
  if (!told) {
    sink_({}, std::move(why));
  }
}

void JsonSplitter::drop_string(char byte) {
  drop("a string holds no line ends and no control characters: write them as \\n, \\u0007",
       is_line_end(byte) ? State::kBetween : State::kRecovering);
}

void JsonSplitter::discard_rest(std::string why) {
  text_.clear();
  text_.shrink_to_fit();
  open_.clear();
  discarding_ = true;
  sink_({}, std::move(why));
}

}  // namespace towline::monitor
