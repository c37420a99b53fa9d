#include <algorithm>

#include <fmt/format.h>

#include "runtime/core/target_protocol.h"
#include "tests/simulation/replay_log.h"

namespace towline::replay {
namespace {

using runtime::MigrationOptions;
using runtime::TargetEffect;
using runtime::TargetInput;
using runtime::TargetProtocol;
using runtime::TargetSigns;
using runtime::TargetTask;

TargetProtocol brain_of(const Fields& told) {
  const auto milliseconds = [&told](const char* name) {
    return std::chrono::milliseconds(number<std::int64_t>(told.at(name)));
  };
  MigrationOptions options;
  options.handshake_timeout = milliseconds("handshake_ms");
  options.patience = milliseconds("patience_ms");
  options.frozen_patience = milliseconds("frozen_ms");
  options.paused_after = milliseconds("paused_ms");
  return {options, base::PageCount{number(told.at("pages"))}};
}

base::Duration duration(const std::string& text) {
  return base::Duration(number<std::int64_t>(text));
}

TargetSigns signs_of(const Fields& told) {
  TargetSigns signs;
  signs.verdict = static_cast<runtime::LinkVerdict>(number<int>(told.at("verdict")));
  signs.hears = told.at("hears") == "true";
  signs.control_unacknowledged = duration(told.at("control_ns"));
  signs.urgent_dead = told.at("urgent_dead") == "true";
  signs.words = told.at("words");
  signs.urgent_words = told.at("urgent_words");
  return signs;
}

TargetInput input_of(const Fields& told) {
  TargetInput input{.kind = kind_named<TargetInput::Kind>(told.at("kind"))};
  input.at = base::Instant(duration(told.at("at_ns")));
  const std::string& id = told.at("id");
  for (std::size_t i = 0; i < input.hello.id.size() && 2 * i + 1 < id.size(); ++i) {
    input.hello.id[i] = static_cast<std::byte>(number<int>("0x" + id.substr(2 * i, 2)));
  }
  input.hello.epoch = number(told.at("hello_epoch"));
  input.hello.role = static_cast<runtime::wire::LaneRole>(number<int>(told.at("hello_role")));
  input.hello.lane = number<std::uint8_t>(told.at("hello_lane"));
  input.hello.attempt = number<std::uint32_t>(told.at("hello_attempt"));
  input.hello.features = number(told.at("features"));
  input.frame.type = static_cast<runtime::wire::FrameType>(number<int>(told.at("frame")));
  input.frame.count = number(told.at("count"));
  input.frame.round = number<std::uint32_t>(told.at("round"));
  input.frame.flags = number<std::uint16_t>(told.at("flags"));
  if (told.at("task") != "none") {
    input.task = TargetTask{.kind = kind_named<TargetTask::Kind>(told.at("task"))};
    input.task->frame = static_cast<runtime::wire::FrameType>(number<int>(told.at("task_frame")));
  }
  input.error = error_of(told);
  input.lane = runtime::lane_of_code(number(told.at("lane"))).value_or(runtime::LaneName{});
  input.epoch = number(told.at("epoch"));
  input.number = number(told.at("number"));
  input.silent = duration(told.at("silent_ns"));
  input.policy = static_cast<runtime::SourceLoss>(number<int>(told.at("policy")));
  input.deadline = std::chrono::seconds(number<std::int64_t>(told.at("deadline_s")));
  input.flag = told.at("flag") == "true";
  input.text = told.at("text");
  return input;
}

std::string line_of(const TargetEffect& effect) {
  return fmt::format("effect {} {} {} {} {} {} {} {} {} {:#x} {} {}", to_string(effect.kind),
                     to_string(effect.rule.from), to_string(effect.rule.on),
                     to_string(effect.rule.to), to_string(effect.status), to_string(effect.link),
                     static_cast<int>(effect.policy), effect.epoch, effect.number,
                     runtime::lane_code(effect.lane), effect.awaited, effect.text);
}

std::string line_of(const TargetTask& task) {
  return fmt::format("task {} {} {} {} {} {:#x} {} {}", to_string(task.kind), task.epoch,
                     task.number, task.count, static_cast<int>(task.frame),
                     runtime::lane_code(task.lane), task.flag, task.text);
}

std::string line_of_effect(Fields told) {
  return fmt::format("effect {} {} {} {} {} {} {} {} {} {} {} {}", told["kind"], told["from"],
                     told["on"], told["to"], told["status"], told["link"], told["policy"],
                     told["epoch"], told["number"], told["lane"], told["awaited"], told["text"]);
}

std::string line_of_task(Fields told) {
  return fmt::format("task {} {} {} {} {} {} {} {}", told["kind"], told["epoch"], told["number"],
                     told["count"], told["frame"], told["lane"], told["flag"], told["text"]);
}

class TargetReplay final : public Replay {
 public:
  explicit TargetReplay(const Fields& told) : brain_(brain_of(told)) {}

  bool take(const std::string& event, const Fields& told) override {
    if (event == "signs") {
      signs_ = signs_of(told);
      return true;
    }
    if (event == "input") {
      return owes_nothing() && (feed(input_of(told)), true);
    }
    if (event == "load") {
      const auto task = brain_.take_load_task();
      owe(task.has_value() ? std::string(to_string(task->kind)) : "nothing");
      return compare(told.at("kind"));
    }
    if (event == "effect") {
      return compare(line_of_effect(told));
    }
    return event != "task" || compare(line_of_task(told));
  }

 private:
  void feed(TargetInput input) {
    note_input();
    input.signs = signs_;
    if (!brain_.on(input).ok()) {
      return;
    }
    for (const TargetEffect& effect : brain_.take_effects()) {
      owe(line_of(effect));
    }
    for (const TargetTask& task : brain_.take_tasks()) {
      owe(line_of(task));
    }
  }

  TargetProtocol brain_;
  TargetSigns signs_;
};

}  // namespace

std::unique_ptr<Replay> replay_target(const Fields& brain) {
  return std::make_unique<TargetReplay>(brain);
}

}  // namespace towline::replay
