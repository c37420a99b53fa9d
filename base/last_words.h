#pragma once

#include <string_view>

namespace towline::base {

/// Puts `words` on standard error if it takes them now; never waits. May be called from a signal
/// handler, and where no memory is to be had.
void say_last_words(std::string_view words) noexcept;

/// Logs `words` behind what explains them, and aborts: neither a reader that stopped nor the want
/// of memory keeps a process that must end.
[[noreturn]] void end_with(const char* words) noexcept;

/// From here on std::terminate() is end_with(). Its own way waits for whoever reads standard error.
void install_terminate_handler() noexcept;

}  // namespace towline::base
