#include "runtime/source/trace.h"

#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/log.h"

namespace towline::runtime {
namespace {

using base::LogLevel;

std::string traced(const std::optional<Uri>& at) {
  return at.has_value() ? at->to_string() : "none";
}

}  // namespace

void trace_brain(const Uri& target, const MigrationOptions& options, std::uint64_t pages) {
  if (!base::log_enabled(LogLevel::kDebug)) {
    return;
  }
  std::vector<std::string> alternates;
  for (const Uri& one : options.alternates) {
    alternates.push_back(one.to_string());
  }
  base::log(LogLevel::kDebug,
            "source.brain target={} pages={} policy={} passes={} lanes={} budget={} wait_ms={} "
            "handshake_ms={} recovers={} pauses={} paused_ms={} deadline_s={} alternates={}",
            target.to_string(), pages, static_cast<int>(options.switch_policy), options.passes,
            options.bulk_lanes, options.switch_page_budget, options.switch_wait.count(),
            options.handshake_timeout.count(), options.auto_recover,
            options.pause_before_switchover, options.paused_after.count(),
            options.reconnect_deadline.count(), fmt::format("{}", fmt::join(alternates, " ")));
}

void trace(const SourceInput& input) {
  if (!base::log_enabled(LogLevel::kDebug)) {
    return;
  }
  const base::Error error = input.error.value_or(base::Error{});
  base::log(LogLevel::kDebug,
            "source.input kind={} at_ns={} task={} failed={} error={} errno={} step={} detail={} "
            "lane={:#x} address={} text={} number={} features={} epoch={} attempt={} flag={}",
            to_string(input.kind), base::to_ns(input.at),
            input.task.has_value() ? to_string(*input.task) : "none", input.error.has_value(),
            static_cast<int>(error.kind), error.errno_value, std::string(error.operation),
            error.detail, input.lane.has_value() ? lane_code(*input.lane) : 0,
            traced(input.address), input.text, input.number, input.features, input.epoch,
            input.attempt, input.flag);
}

void trace(const SourceEffect& effect) {
  if (!base::log_enabled(LogLevel::kDebug)) {
    return;
  }
  base::log(
      LogLevel::kDebug,
      "source.effect kind={} from={} on={} to={} status={} link={} lane={:#x} attempt={} flag={} "
      "text={}",
      to_string(effect.kind), to_string(effect.rule.from), to_string(effect.rule.on),
      to_string(effect.rule.to), to_string(effect.status), to_string(effect.link),
      lane_code(effect.lane), effect.attempt, effect.flag, effect.text);
}

void trace(const SourceTask& task) {
  if (!base::log_enabled(LogLevel::kDebug)) {
    return;
  }
  base::log(LogLevel::kDebug,
            "source.task kind={} at={} epoch={} pass={} lane={:#x} attempt={} flag={} "
            "patience_ms={}",
            to_string(task.kind), task.at.to_string(), task.epoch, task.pass, lane_code(task.lane),
            task.attempt, task.flag, task.patience.has_value() ? task.patience->count() : -1);
}

}  // namespace towline::runtime
