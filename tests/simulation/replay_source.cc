#include <sstream>

#include <fmt/format.h>

#include "runtime/core/source_protocol.h"
#include "tests/simulation/replay_log.h"

namespace towline::replay {
namespace {

using runtime::MigrationOptions;
using runtime::SourceEffect;
using runtime::SourceInput;
using runtime::SourceProtocol;
using runtime::SourceTask;

SourceProtocol brain_of(const Fields& told) {
  MigrationOptions options;
  options.switch_policy = static_cast<runtime::SwitchPolicy>(number<int>(told.at("policy")));
  options.passes = number<std::uint32_t>(told.at("passes"));
  options.bulk_lanes = number<std::uint32_t>(told.at("lanes"));
  options.switch_page_budget = number(told.at("budget"));
  options.switch_wait = std::chrono::milliseconds(number<std::int64_t>(told.at("wait_ms")));
  options.handshake_timeout =
      std::chrono::milliseconds(number<std::int64_t>(told.at("handshake_ms")));
  options.pause_before_switchover = told.at("pauses") == "true";
  options.paused_after = std::chrono::milliseconds(number<std::int64_t>(told.at("paused_ms")));
  options.auto_recover = told.at("recovers") == "true";
  options.reconnect_deadline = std::chrono::seconds(number<std::int64_t>(told.at("deadline_s")));
  std::istringstream alternates(told.at("alternates"));
  for (std::string one; alternates >> one;) {
    options.alternates.push_back(uri(one));
  }
  return {uri(told.at("target")), options, base::PageCount{number(told.at("pages"))}};
}

SourceInput input_of(const Fields& told) {
  SourceInput input{.kind = kind_named<SourceInput::Kind>(told.at("kind"))};
  input.at = base::Instant(base::Duration(number<std::int64_t>(told.at("at_ns"))));
  if (told.at("task") != "none") {
    input.task = kind_named<SourceTask::Kind>(told.at("task"));
  }
  input.error = error_of(told);
  input.lane = runtime::lane_of_code(number(told.at("lane")));
  if (told.at("address") != "none") {
    input.address = uri(told.at("address"));
  }
  input.text = told.at("text");
  input.number = number(told.at("number"));
  input.features = number(told.at("features"));
  input.epoch = number(told.at("epoch"));
  input.attempt = number<std::uint32_t>(told.at("attempt"));
  input.flag = told.at("flag") == "true";
  return input;
}

std::string line_of(const SourceEffect& effect) {
  return fmt::format("effect {} {} {} {} {} {} {:#x} {} {} {}", to_string(effect.kind),
                     to_string(effect.rule.from), to_string(effect.rule.on),
                     to_string(effect.rule.to), to_string(effect.status), to_string(effect.link),
                     runtime::lane_code(effect.lane), effect.attempt, effect.flag, effect.text);
}

std::string line_of(const SourceTask& task) {
  return fmt::format("task {} {} {} {} {:#x} {} {} {}", to_string(task.kind), task.at.to_string(),
                     task.epoch, task.pass, runtime::lane_code(task.lane), task.attempt, task.flag,
                     task.patience.has_value() ? task.patience->count() : -1);
}

std::string line_of_effect(Fields told) {
  return fmt::format("effect {} {} {} {} {} {} {} {} {} {}", told["kind"], told["from"], told["on"],
                     told["to"], told["status"], told["link"], told["lane"], told["attempt"],
                     told["flag"], told["text"]);
}

std::string line_of_task(Fields told) {
  return fmt::format("task {} {} {} {} {} {} {} {}", told["kind"], told["at"], told["epoch"],
                     told["pass"], told["lane"], told["attempt"], told["flag"],
                     told["patience_ms"]);
}

class SourceReplay final : public Replay {
 public:
  explicit SourceReplay(const Fields& told) : brain_(brain_of(told)) {}

  bool take(const std::string& event, const Fields& told) override {
    if (event == "input") {
      return owes_nothing() && (feed(input_of(told)), true);
    }
    if (event == "effect") {
      return compare(line_of_effect(told));
    }
    return event != "task" || compare(line_of_task(told));
  }

 private:
  void feed(const SourceInput& input) {
    note_input();
    const bool had_task = brain_.task().has_value() && input.kind != SourceInput::Kind::kDone;
    [[maybe_unused]] const auto taken = brain_.on(input);
    for (const SourceEffect& effect : brain_.take_effects()) {
      owe(line_of(effect));
    }
    if (!had_task && brain_.task().has_value()) {
      owe(line_of(*brain_.task()));
    }
  }

  SourceProtocol brain_;
};

}  // namespace

std::unique_ptr<Replay> replay_source(const Fields& brain) {
  return std::make_unique<SourceReplay>(brain);
}

}  // namespace towline::replay
