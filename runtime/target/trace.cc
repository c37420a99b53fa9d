#include "runtime/target/trace.h"

#include <string>

#include <fmt/format.h>

#include "base/log.h"

namespace towline::runtime {
namespace {

using base::LogLevel;

std::string hex_of(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte one : bytes) {
    text += fmt::format("{:02x}", static_cast<unsigned>(one));
  }
  return text;
}

// The two numbers of a task of which the brain looks at the kind alone when it is done.
int frame_of(const TargetTask& task) {
  return static_cast<int>(task.frame);
}

void trace_signs(const TargetSigns& signs) {
  base::log(
      LogLevel::kDebug,
      "target.signs verdict={} hears={} control_ns={} urgent_dead={} words={} urgent_words={}",
      static_cast<int>(signs.verdict), signs.hears, signs.control_unacknowledged.count(),
      signs.urgent_dead, signs.words, signs.urgent_words);
}

}  // namespace

void trace_target_brain(const MigrationOptions& options, base::PageCount pages) {
  if (!base::log_enabled(LogLevel::kDebug)) {
    return;
  }
  base::log(LogLevel::kDebug,
            "target.brain pages={} handshake_ms={} patience_ms={} frozen_ms={} paused_ms={}",
            pages.value, options.handshake_timeout.count(), options.patience.count(),
            options.frozen_patience.count(), options.paused_after.count());
}

// What was seen of the link comes in a line of its own, before the input that brings it.
void trace(const TargetInput& input) {
  if (!base::log_enabled(LogLevel::kDebug)) {
    return;
  }
  if (input.kind == TargetInput::Kind::kSigns) {
    trace_signs(input.signs);
  }
  const base::Error error = input.error.value_or(base::Error{});
  base::log(LogLevel::kDebug,
            "target.input kind={} at_ns={} id={} hello_epoch={} hello_role={} hello_lane={} "
            "hello_attempt={} features={} frame={} count={} "
            "round={} flags={} task={} task_frame={} failed={} error={} errno={} step={} detail={} "
            "lane={:#x} epoch={} number={} silent_ns={} policy={} deadline_s={} flag={} text={}",
            to_string(input.kind), base::to_ns(input.at), hex_of(input.hello.id), input.hello.epoch,
            static_cast<int>(input.hello.role), input.hello.lane, input.hello.attempt,
            input.hello.features, static_cast<int>(input.frame.type), input.frame.count,
            input.frame.round, input.frame.flags,
            input.task.has_value() ? to_string(input.task->kind) : "none",
            input.task.has_value() ? frame_of(*input.task) : 0, input.error.has_value(),
            static_cast<int>(error.kind), error.errno_value, std::string(error.operation),
            error.detail, lane_code(input.lane), input.epoch, input.number, input.silent.count(),
            static_cast<int>(input.policy), input.deadline.count(), input.flag, input.text);
}

void trace(const TargetEffect& effect) {
  if (!base::log_enabled(LogLevel::kDebug)) {
    return;
  }
  base::log(
      LogLevel::kDebug,
      "target.effect kind={} from={} on={} to={} status={} link={} policy={} epoch={} number={} "
      "lane={:#x} awaited={} text={}",
      to_string(effect.kind), to_string(effect.rule.from), to_string(effect.rule.on),
      to_string(effect.rule.to), to_string(effect.status), to_string(effect.link),
      static_cast<int>(effect.policy), effect.epoch, effect.number, lane_code(effect.lane),
      effect.awaited, effect.text);
}

void trace(const TargetTask& task) {
  if (!base::log_enabled(LogLevel::kDebug)) {
    return;
  }
  base::log(LogLevel::kDebug,
            "target.task kind={} epoch={} number={} count={} frame={} lane={:#x} flag={} text={}",
            to_string(task.kind), task.epoch, task.number, task.count, frame_of(task),
            lane_code(task.lane), task.flag, task.text);
}

void trace_load(const TargetTask& task) {
  if (base::log_enabled(LogLevel::kDebug)) {
    base::log(LogLevel::kDebug, "target.load kind={}", to_string(task.kind));
  }
}

}  // namespace towline::runtime
