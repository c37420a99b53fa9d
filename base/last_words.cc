#include "base/last_words.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "base/log.h"

namespace towline::base {
namespace {

void on_terminate() noexcept {
  std::array<char, 512> words{};
  const char* what = "nobody threw";
  try {
    if (const auto thrown = std::current_exception()) {
      what = "not a std::exception";
      std::rethrow_exception(thrown);
    }
  } catch (const std::exception& thrown) {
    std::snprintf(words.data(), words.size(), "process.terminated exception=%s",
                  log_value(thrown.what()).c_str());
  } catch (...) {
  }
  if (words.front() == '\0') {
    std::snprintf(words.data(), words.size(), "process.terminated exception=\"%s\"", what);
  }
  end_with(words.data());
}

}  // namespace

void say_last_words(std::string_view words) noexcept {
  const int before = errno;

  struct stat about {};

  const bool known = ::fstat(STDERR_FILENO, &about) == 0;
  if (known && S_ISSOCK(about.st_mode)) {
    [[maybe_unused]] const ssize_t said =
        ::send(STDERR_FILENO, words.data(), words.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  } else if (known && (S_ISFIFO(about.st_mode) || S_ISCHR(about.st_mode))) {
    // An open file of our own: non-blocking here is not non-blocking for those who share the other.
    const int own = ::open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (own >= 0) {
      [[maybe_unused]] const ssize_t said = ::write(own, words.data(), words.size());
      ::close(own);
    }
  } else if (known) {
    [[maybe_unused]] const ssize_t said = ::write(STDERR_FILENO, words.data(), words.size());
  }
  errno = before;
}

void end_with(const char* words) noexcept {
  try {
    write_log(LogLevel::kError, true, words);
    flush_log();
  } catch (...) {
    say_last_words(words);
  }
  std::abort();
}

void install_terminate_handler() noexcept {
  std::set_terminate(on_terminate);
}

}  // namespace towline::base
