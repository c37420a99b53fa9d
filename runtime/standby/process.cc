#include "runtime/standby/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
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

// What a service manager says to the process that it starts, and to no other: systemd.exec(5),
// sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
constexpr std::array<std::string_view, 9> kOfManager{
    "NOTIFY_SOCKET",  "FDSTORE",       "LISTEN_FDS",   "LISTEN_PID",      "LISTEN_PIDFDID",
    "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "SYSTEMD_EXEC_PID"};

/// Without that; ends with a null.
std::vector<char*> own_environment() {
  std::vector<char*> kept;
  for (char** one = environ; *one != nullptr; ++one) {
    const std::string_view text(*one);
    const std::string_view name = text.substr(0, text.find('='));
    if (std::find(kOfManager.begin(), kOfManager.end(), name) == kOfManager.end()) {
      kept.push_back(*one);
    }
  }
  kept.push_back(nullptr);
  return kept;
}

std::vector<char*> words_of(std::vector<std::string>& command) {
  std::vector<char*> words;
  words.reserve(command.size() + 1);
  for (std::string& word : command) {
    words.push_back(word.data());
  }
  words.push_back(nullptr);
  return words;
}

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

  void pass(int passed) {
    // First: it may have one of the numbers below. If it has this one, close-on-exec is cleared.
    ::posix_spawn_file_actions_adddup2(&actions_, passed, 3);
    ::posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions_, STDERR_FILENO, STDOUT_FILENO);
    set_attributes();
  }

  void read_from(int output) {
    ::posix_spawn_file_actions_adddup2(&actions_, output, STDOUT_FILENO);
    ::posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_addopen(&actions_, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    set_attributes();
  }

  int spawn(std::vector<char*>& words, pid_t& pid) {
    std::vector<char*> environment = own_environment();
    return ::posix_spawnp(&pid, words.front(), &actions_, &attributes_, words.data(),
                          environment.data());
  }

 private:
  void set_attributes() {
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

void kill_process(int pidfd) {
  // Whatever it returns: the process has ended, or will.
  [[maybe_unused]] const long done = ::syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0U);
}

base::Outcome start_process(const std::vector<std::string>& command, int passed) {
  std::vector<std::string> copies = command;
  std::vector<char*> words = words_of(copies);
  SpawnSettings settings;
  settings.pass(passed);
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

Expected<Reading> start_reading(const std::vector<std::string>& command) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return fail_errno(ErrorKind::kFailed, "pipe2");
  }
  Reading made{0, OwnedFd(ends[0])};
  const OwnedFd theirs(ends[1]);
  std::vector<std::string> copies = command;
  std::vector<char*> words = words_of(copies);
  SpawnSettings settings;
  settings.read_from(theirs.get());
  pid_t pid = 0;
  if (const int error = settings.spawn(words, pid); error != 0) {
    errno = error;
    return fail_errno(ErrorKind::kFailed, "posix_spawnp",
                      fmt::format("'{}' cannot be executed", command.front()));
  }
  made.pid = pid;
  return made;
}

bool end_reading(Reading reading) {
  pollfd waiting{.fd = reading.output.get(), .events = POLLIN, .revents = 0};
  if (::poll(&waiting, 1, 0) != 1 || (waiting.revents & POLLIN) != 0) {
    ::kill(static_cast<pid_t>(reading.pid), SIGKILL);  // It still writes, or might.
  }
  reading.output.reset();
  int status = 0;
  while (::waitpid(static_cast<pid_t>(reading.pid), &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace towline::runtime
