#pragma once

#include <string_view>

namespace towline::base {

/// `text` holds a control character (C0, DEL, or C1 as UTF-8 has it): something that breaks a line
/// of the log, ends a C string or steers a terminal.
inline bool has_control(std::string_view text) {
  unsigned char before = 0;
  for (const char one : text) {
    const auto byte = static_cast<unsigned char>(one);
    if (byte < 0x20 || byte == 0x7f || (before == 0xc2 && byte >= 0x80 && byte < 0xa0)) {
      return true;
    }
    before = byte;
  }
  return false;
}

}  // namespace towline::base
