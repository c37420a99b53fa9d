#include "tools/client/migrate.h"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <utility>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/event_loop.h"
#include "tools/client/move.h"
#include "tools/client/move_summary.h"
#include "tools/client/progress.h"
#include "tools/client/qmp_client.h"
#include "tools/output.h"

namespace towline::tools {
namespace {

using monitor::Json;

constexpr std::chrono::milliseconds kLookEvery{100};
/// With a side that is stopped. An interruption waits so long for each.
constexpr std::chrono::seconds kPatience{2};

/// The move in progress, with its looks and interruptions as the loop's callbacks. They ask the
/// machines and wait for the answers: nothing else depends on this loop.
class Watch {
 public:
  Watch(base::EventLoop& loop, Move& move)
      : loop_(loop), move_(move), progress_(stderr, ::isatty(STDERR_FILENO) == 1) {}

  MoveView run() {
    const auto looks = loop_.after(
        kLookEvery, [this] { look(); }, true);
    const auto interrupt = loop_.on_signal(SIGINT, [this] { interrupted(); });
    const auto terminate = loop_.on_signal(SIGTERM, [this] { interrupted(); });
    const auto hang_up = loop_.on_signal(SIGHUP, [this] { interrupted(); });
    loop_.run();
    progress_.finish();
    return std::move(view_);
  }

 private:
  void look() {
    if (view_.end) {
      return;  // Decided while this was waiting to be called.
    }
    view_ = move_.look();
    progress_.show(view_, base::system_clock().now());
    if (view_.end) {
      loop_.stop();
    }
  }

  void interrupted() {
    const auto cancelled = move_.cancel();
    if (cancelled.ok()) {
      progress_.say("cancelling; the guest stays at the source");
      return;  // The next looks tell when that is done.
    }
    view_ = move_.look();
    if (!view_.end && cancelled.error().kind == base::ErrorKind::kOverloaded) {
      view_.end = MoveEnd::kUndecided;
      view_.reason = "the source does not answer; whether it obeys the cancel is not known";
    }
    if (!view_.end) {
      view_.end = MoveEnd::kUndecided;
      view_.reason = "the guest was handed over already, so the move goes on without this command";
    }
    loop_.stop();
  }

  base::EventLoop& loop_;
  Move& move_;
  Progress progress_;
  MoveView view_;
};

base::Expected<MoveView> carry_out(const MigrateArguments& arguments) {
  auto source = TRY(QmpClient::connect(arguments.source));
  auto target = TRY(QmpClient::connect(arguments.target));
  auto loop = TRY(base::EventLoop::create());
  Move move(source, target, arguments);
  TRY(move.prepare());
  Watch watch(*loop, move);
  TRY(move.start());
  source.set_patience(kPatience);
  target.set_patience(kPatience);
  return watch.run();
}

}  // namespace

int migrate(const MigrateArguments& arguments) {
  auto view = carry_out(arguments);
  if (!view.ok()) {
    put(stderr, fmt::format("towline migrate: {}\n", base::to_string(view.error())));
    if (arguments.json) {
      put(stdout, Json::object({{"status", "failed"},
                                {"exit-status", static_cast<int>(MoveEnd::kFailed)},
                                {"reason", base::to_string(view.error())}})
                          .pretty() +
                      "\n");
    }
    return static_cast<int>(MoveEnd::kFailed);
  }
  if (arguments.json) {
    put(stdout, fmt::format("{}\n", summary_json(view.value()).pretty()));
  } else {
    put(stdout, fmt::format("{}", summary_text(view.value(), arguments.target)));
  }
  // The status tells of the guest, whether or not the words were heard.
  [[maybe_unused]] const bool heard = output_is_written();
  return static_cast<int>(*view.value().end);
}

}  // namespace towline::tools
