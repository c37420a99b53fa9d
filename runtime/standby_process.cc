#include "runtime/standby_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail;
using base::fail_errno;
using base::OwnedFd;

// proc(5): the fields after the command, which stands in brackets and may hold anything.
constexpr int kStartField = 22 - 3;

class SpawnSettings {
 public:
  SpawnSettings() {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawnattr_init(&attributes_);
  }

  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;

  ~SpawnSettings() {
    ::posix_spawnattr_destroy(&attributes_);
    ::posix_spawn_file_actions_destroy(&actions_);
  }

  void prepare(int passed) {
    // First: it may have one of the numbers below. If it has this one, close-on-exec is cleared.
    ::posix_spawn_file_actions_adddup2(&actions_, passed, 3);
    ::posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions_, STDERR_FILENO, STDOUT_FILENO);
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    ::posix_spawnattr_setsigmask(&attributes_, &none);
    ::posix_spawnattr_setsigdefault(&attributes_, &all);
    ::posix_spawnattr_setflags(
        &attributes_,
        static_cast<short>(POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF));
  }

  int spawn(std::vector<char*>& words, pid_t& pid) {
    return ::posix_spawnp(&pid, words.front(), &actions_, &attributes_, words.data(), environ);
  }

 private:
  posix_spawn_file_actions_t actions_{};
  posix_spawnattr_t attributes_{};
};

}  // namespace

Expected<std::uint64_t> start_of_process(std::int64_t pid) {
  const std::string path = fmt::format("/proc/{}/stat", pid);
  const OwnedFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 1024> bytes{};
  const ssize_t got = fd.valid() ? ::read(fd.get(), bytes.data(), bytes.size()) : -1;
  if (got <= 0) {
    return fail_errno(ErrorKind::kDisconnected, "read",
                      fmt::format("process {} cannot be looked at", pid));
  }
  std::string_view text(bytes.data(), static_cast<std::size_t>(got));
  text.remove_prefix(std::min(text.rfind(')'), text.size()));
  for (int field = 0; field <= kStartField; ++field) {
    const std::size_t space = text.find(' ');
    text.remove_prefix(space == std::string_view::npos ? text.size() : space + 1);
  }
  std::uint64_t start = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), start).ec != std::errc{}) {
    return fail(ErrorKind::kFailed, "read", fmt::format("'{}' is not as in proc(5)", path));
  }
  return start;
}

Expected<OwnedFd> watch_process(std::int64_t pid, std::uint64_t start) {
  OwnedFd fd(static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0U)));
  if (!fd.valid()) {
    return fail_errno(errno == ESRCH ? ErrorKind::kDisconnected : ErrorKind::kUnsupported,
                      "pidfd_open", fmt::format("process {}", pid));
  }
  // The descriptor names one process; if that is the wanted one, it is so for ever.
  if (TRY(start_of_process(pid)) != start) {
    return fail(ErrorKind::kDisconnected, "pidfd_open",
                fmt::format("process {} is another one than before", pid));
  }
  return fd;
}

bool process_has_ended(int pidfd) {
  pollfd waiting{.fd = pidfd, .events = POLLIN, .revents = 0};
  return ::poll(&waiting, 1, 0) == 1;
}

base::Outcome start_process(const std::vector<std::string>& command, int passed) {
  std::vector<std::string> copies = command;
  std::vector<char*> words;
  words.reserve(copies.size() + 1);
  for (std::string& word : copies) {
    words.push_back(word.data());
  }
  words.push_back(nullptr);
  SpawnSettings settings;
  settings.prepare(passed);
  pid_t pid = 0;
  if (const int error = settings.spawn(words, pid); error != 0) {
    errno = error;
    return fail_errno(ErrorKind::kFailed, "posix_spawnp",
                      fmt::format("'{}' cannot be executed", command.front()));
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return fail(ErrorKind::kFailed, "page server",
                fmt::format("'{}' ended at once, {}; the log has its reason", command.front(),
                            WIFEXITED(status) ? fmt::format("with status {}", WEXITSTATUS(status))
                                              : fmt::format("by signal {}", WTERMSIG(status))));
  }
  return base::Done{};
}

}  // namespace towline::runtime
