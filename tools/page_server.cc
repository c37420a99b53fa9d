#include "tools/page_server.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/event_loop.h"
#include "base/log.h"
#include "tools/page_server/server.h"
#include "vmm/monitor/monitor.h"

namespace towline::tools {
namespace {

constexpr std::array kEndingSignals{std::pair{SIGINT, "SIGINT"}, std::pair{SIGTERM, "SIGTERM"},
                                    std::pair{SIGHUP, "SIGHUP"}, std::pair{SIGQUIT, "SIGQUIT"}};

/// Everything of one `towline page-server`, in the order in which it must be made; gone in reverse.
class PageServerProcess {
 public:
  static base::Expected<std::unique_ptr<PageServerProcess>> create(
      const PageServerArguments& arguments) {
    auto made = std::make_unique<PageServerProcess>();
    made->kept_ = take_kept_fds();
    made->store_ = std::make_unique<FdStore>(!arguments.listen.empty());
    made->loop_ = TRY(base::EventLoop::create());
    made->events_ = std::make_unique<monitor::MachineEvents>(*made->loop_);
    made->guest_ = std::make_unique<KeptGuest>(arguments.name);
    made->factory_ = std::make_unique<KeptMigrations>();
    const monitor::Monitor::Parts parts{*made->loop_, *made->guest_, *made->factory_,
                                        *made->events_};
    // A page server exists only for a move whose user asked for post-copy. A guest that it keeps
    // runs nowhere, so a move to a new target switches without an order.
    monitor::MigrationConfig config;
    config.options.switch_policy = runtime::SwitchPolicy::kAfterPass;
    made->monitor_ = std::make_unique<monitor::Monitor>(parts, std::move(config),
                                                        [process = made.get()](monitor::Exit how) {
                                                          process->exit_ = how;
                                                          process->loop_->stop();
                                                        });
    TRY(made->open(arguments));
    return made;
  }

  int run() {
    loop_->run();
    base::log(base::LogLevel::kInfo, "page_server.ending code={} forced={}", exit_.code,
              exit_.forced);
    if (exit_.forced) {
      monitor_->close_qmp();
      server_->close();
      base::flush_log();
      std::_Exit(exit_.code);
    }
    return exit_.code;
  }

 private:
  base::Outcome open(const PageServerArguments& arguments) {
    for (const auto& one : kEndingSignals) {
      signals_.push_back(
          loop_->on_signal(one.first, [this, name = one.second] { monitor_->on_signal(name); }));
    }
    for (const auto& socket : arguments.qmp) {
      TRY(monitor_->listen_qmp(socket.path, socket.events));
    }
    server_ = std::make_unique<PageServer>(
        PageServer::Parts{*loop_, *monitor_, *guest_, *factory_, *store_},
        !arguments.listen.empty());
    if (!arguments.listen.empty()) {
      TRY(server_->listen(arguments.listen));
      TRY(server_->restore(std::move(kept_)));
    } else {
      server_->serve(base::OwnedFd(arguments.socket_fd));
    }
    if (const auto told = store_->tell("ready"); !told.ok()) {
      base::log(base::LogLevel::kWarning, "page_server.not_told reason={}",
                base::to_string(told.error()));
    }
    return base::Done{};
  }

  std::vector<KeptFd> kept_;
  std::unique_ptr<FdStore> store_;
  std::unique_ptr<base::EventLoop> loop_;
  std::unique_ptr<monitor::MachineEvents> events_;
  std::unique_ptr<KeptGuest> guest_;
  std::unique_ptr<KeptMigrations> factory_;
  std::unique_ptr<PageServer> server_;  // What the monitor's migration works on is in it.
  std::unique_ptr<monitor::Monitor> monitor_;
  std::vector<std::unique_ptr<base::EventLoop::Handle>> signals_;
  monitor::Exit exit_;
};

/// Goes on in a fork. The process that started this one waits for the parent only, and has no child
/// afterwards.
void go_into_the_background() {
  const pid_t child = ::fork();
  if (child != 0) {
    ::_exit(child > 0 ? 0 : 1);
  }
}

}  // namespace

int page_server(const PageServerArguments& arguments) {
  if (arguments.socket_fd >= 0) {
    int type = 0;
    socklen_t size = sizeof type;
    if (::getsockopt(arguments.socket_fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) {
      const auto why = base::fail_errno(
          base::ErrorKind::kRefused, "getsockopt",
          fmt::format("--socket-fd {} is no socket; it is for a source that starts this, use "
                      "--listen unix:PATH",
                      arguments.socket_fd));
      base::say_on_error(fmt::format("towline page-server: {}\n", base::to_string(why.error)));
      return 1;
    }
    go_into_the_background();
    ::close_range(static_cast<unsigned>(arguments.socket_fd) + 1, ~0U, 0);
  }
  base::configure_log(arguments.log_level, arguments.name);
  // A reader that went away shows as EPIPE where it is written to.
  std::signal(SIGPIPE, SIG_IGN);
  auto process = PageServerProcess::create(arguments);
  if (!process.ok()) {
    if (arguments.socket_fd >= 0) {
      // Its source waits for an answer, and its user looks there and not here.
      refuse_source(arguments.socket_fd, base::to_string(process.error()));
    }
    base::say_on_error(fmt::format("towline page-server: {}\n", base::to_string(process.error())));
    return 1;
  }
  return process.value()->run();
}

}  // namespace towline::tools
