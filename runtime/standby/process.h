#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

/// Processes, as one looks at another: whether it lives, and how one is started.
namespace towline::runtime {

/// When a process began, in the kernel's ticks since the start of the system: with the pid it names
/// a process for ever. Errors: kDisconnected: there is no such process.
base::Expected<std::uint64_t> start_of_process(std::int64_t pid);

/// A descriptor that becomes readable when the process ends, whoever its parent is.
/// Errors: kDisconnected: there is no such process, or another one that began at another time.
base::Expected<base::OwnedFd> watch_process(std::int64_t pid, std::uint64_t start);

/// The process behind watch_process() has ended.
[[nodiscard]] bool process_has_ended(int pidfd);

/// Ends it at once, also when it is stopped.
void kill_process(int pidfd);

/// Executes `command` in a session of its own with `passed` as descriptor 3, standard error shared,
/// standard output joined to it, nothing to read, and waits until it has put itself into the
/// background. What a service manager said to this process in its environment (NOTIFY_SOCKET and
/// the like) is not passed on: it is not meant for others. Errors: kFailed: it cannot be started.
base::Outcome start_process(const std::vector<std::string>& command, int passed);

/// A child whose standard output is read; everything else of it goes nowhere.
struct Reading {
  std::int64_t pid = 0;
  base::OwnedFd output;
};

/// Errors: kFailed: it cannot be started.
base::Expected<Reading> start_reading(const std::vector<std::string>& command);

/// Ends it if it has not closed its output. True: it had, and was successful.
bool end_reading(Reading reading);

}  // namespace towline::runtime
