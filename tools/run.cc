#include "tools/run.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/event_loop.h"
#include "base/fd.h"
#include "base/log.h"
#include "runtime/options.h"
#include "vmm/machine.h"
#include "vmm/monitor/guest.h"
#include "vmm/monitor/monitor.h"

namespace towline::tools {
namespace {

/// How long vCPUs are waited for at the end. (Guess: they leave within microseconds, except one
/// that waits for a page on a kernel that does not let it go.)
constexpr std::chrono::seconds kVcpusEndWithin{5};

constexpr std::size_t kMaxSecret = 4096;

/// A pipe has no mode that says anything.
void tell_if_exposed(const base::OwnedFd& fd, const std::string& path) {
  struct stat about {};

  if (::fstat(fd.get(), &about) == 0 && S_ISREG(about.st_mode) &&
      (about.st_mode & (S_IROTH | S_IWOTH)) != 0) {
    base::log(base::LogLevel::kWarning, "secret.exposed file={} mode={:04o} reason={} remedy={}",
              path, about.st_mode & 07777U,
              (about.st_mode & S_IROTH) != 0
                  ? "every user of this host can read it, and with it give or take a guest"
                  : "every user of this host can change it, and with it give or take a guest",
              "chmod 600 " + path);
  }
}

/// Not refused: a guest may leave most of its memory untouched.
void tell_if_beyond_host(base::Bytes memory) {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const auto host =
      base::Bytes{static_cast<std::uint64_t>(std::max(pages, 0L)) * base::kSmallPage.value};
  if (memory.value > host.value) {
    base::log(
        base::LogLevel::kWarning,
        "memory.beyond_host memory_mib={} host_mib={} reason={} remedy={}", memory.value >> 20U,
        host.value >> 20U,
        "the guest is given more than this host has; once it has touched more than there is, the "
        "kernel ends this process, and the guest with it",
        "give less --memory");
  }
}

/// Tells what --kernel is for with --incoming: the command line reads as if it were booted.
void tell_what_kernel_is_for(const RunArguments& arguments) {
  if (arguments.machine.incoming && !arguments.machine.kernel.empty()) {
    base::log(base::LogLevel::kInfo, "vm.kernel_waits kernel={} reason={}",
              arguments.machine.kernel,
              "with --incoming the guest comes from its source; only system_reset boots this");
  }
}

base::Expected<std::optional<std::string>> read_secret(const std::string& path) {
  if (path.empty()) {
    return std::optional<std::string>();
  }
  const auto complain = [&path](const char* what) {
    return base::fail(base::ErrorKind::kRefused, "secret",
                      fmt::format("--secret '{}': {}; put 1 to {} bytes into it, such as from "
                                  "'head -c 32 /dev/urandom | base64'",
                                  path, what, kMaxSecret));
  };
  const base::OwnedFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string secret(kMaxSecret + 1, '\0');
  const ssize_t got = fd.valid() ? ::read(fd.get(), secret.data(), secret.size()) : -1;
  if (got < 0) {
    return base::fail_errno(base::ErrorKind::kRefused, "open",
                            fmt::format("--secret '{}' cannot be read", path));
  }
  tell_if_exposed(fd, path);
  secret.resize(static_cast<std::size_t>(got));
  if (secret.size() > kMaxSecret) {
    return complain("it is too long");
  }
  while (!secret.empty() && (secret.back() == '\n' || secret.back() == '\r')) {
    secret.pop_back();  // The line end of a text file is not part of the secret.
  }
  if (secret.empty()) {
    return complain("it is empty");
  }
  return std::optional(std::move(secret));
}

/// What is executed for a page server of one's own: this program.
std::vector<std::string> page_server_command(const RunArguments& arguments) {
  std::string qmp = arguments.page_server_qmp;
  if (qmp.empty() && !arguments.qmp.empty()) {
    qmp = arguments.qmp.front().path + ".pages";
  }
  std::vector<std::string> command{"/proc/self/exe", "page-server", "--name",
                                   arguments.machine.name + ".pages"};
  if (!qmp.empty()) {
    command.insert(command.end(), {"--qmp", "unix:" + qmp});
  }
  return command;
}

struct SignalName {
  int signal;
  const char* name;
};

constexpr std::array kEndingSignals{SignalName{SIGINT, "SIGINT"}, SignalName{SIGTERM, "SIGTERM"},
                                    SignalName{SIGHUP, "SIGHUP"}, SignalName{SIGQUIT, "SIGQUIT"}};

/// Everything of one `towline run`, in the order in which it must be made; gone in reverse.
class MachineProcess {
 public:
  static base::Expected<std::unique_ptr<MachineProcess>> create(const RunArguments& arguments) {
    auto secret = TRY(read_secret(arguments.secret_file));
    auto made = std::make_unique<MachineProcess>();
    made->loop_ = TRY(base::EventLoop::create());
    made->events_ = std::make_unique<monitor::MachineEvents>(*made->loop_);
    made->machine_ = TRY(vmm::KvmMachine::create(arguments.machine));
    tell_if_beyond_host(arguments.machine.memory);
    tell_what_kernel_is_for(arguments);
    made->machine_->set_listener(made->events_.get());
    runtime::MigrationOptions options = arguments.options;
    options.secret = std::move(secret);
    options.page_server.command = page_server_command(arguments);
    made->make_monitor({.incoming = arguments.machine.incoming,
                        .allow_unprotected = arguments.allow_unprotected,
                        .options = std::move(options)});
    TRY(made->open(arguments));
    return made;
  }

  int run() {
    machine_->start();
    loop_->run();
    base::log(base::LogLevel::kInfo, "vm.ending code={} forced={}", exit_.code, exit_.forced);
    // vCPUs first: what their memory depends on goes with the monitor and its migrations.
    const auto deadline = base::system_clock().now() + kVcpusEndWithin;
    if (exit_.forced || !machine_->end_vcpus(deadline)) {
      monitor_->close_qmp();
      base::flush_log();
      std::_Exit(exit_.code);
    }
    return exit_.code;
  }

 private:
  void make_monitor(monitor::MigrationConfig config) {
    guest_ = monitor::make_guest(*machine_);
    factory_ = monitor::make_migration_factory(*machine_);
    const monitor::Monitor::Parts parts{*loop_, *guest_, *factory_, *events_};
    monitor_ =
        std::make_unique<monitor::Monitor>(parts, std::move(config), [this](monitor::Exit how) {
          exit_ = how;
          loop_->stop();
        });
  }

  base::Outcome open(const RunArguments& arguments) {
    for (const auto& one : kEndingSignals) {
      signals_.push_back(
          loop_->on_signal(one.signal, [this, name = one.name] { monitor_->on_signal(name); }));
    }
    for (const auto& socket : arguments.qmp) {
      TRY(monitor_->listen_qmp(socket.path, socket.events));
    }
    for (const auto& path : arguments.monitors) {
      TRY(monitor_->listen_human(path));
    }
    if (arguments.machine.incoming && arguments.incoming != "defer") {
      const auto at = TRY(runtime::Uri::parse(arguments.incoming));
      TRY(monitor_->listen_for_guest(at));
    }
    return base::Done{};
  }

  std::unique_ptr<base::EventLoop> loop_;
  std::unique_ptr<monitor::MachineEvents> events_;
  std::unique_ptr<vmm::KvmMachine> machine_;
  std::unique_ptr<monitor::Guest> guest_;
  std::unique_ptr<monitor::MigrationFactory> factory_;
  std::unique_ptr<monitor::Monitor> monitor_;
  std::vector<std::unique_ptr<base::EventLoop::Handle>> signals_;
  monitor::Exit exit_;
};

}  // namespace

int run(const RunArguments& arguments) {
  base::configure_log(arguments.log_level, arguments.machine.name);
  // A reader that went away shows as EPIPE where it is written to.
  std::signal(SIGPIPE, SIG_IGN);
  auto process = MachineProcess::create(arguments);
  if (!process.ok()) {
    base::say_on_error(fmt::format("towline run: {}\n", base::to_string(process.error())));
    return 1;
  }
  return process.value()->run();
}

}  // namespace towline::tools
