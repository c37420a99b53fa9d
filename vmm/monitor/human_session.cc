#include "vmm/monitor/human_session.h"

#include <utility>

#include <fmt/format.h>

#include "vmm/monitor/human_commands.h"
#include "vmm/monitor/human_info.h"

namespace towline::monitor {
namespace {

constexpr std::string_view kPrompt = "(qemu) ";

}  // namespace

HumanSession::HumanSession(CommandContext& context, Send send)
    : context_(context), send_(std::move(send)) {
}

void HumanSession::greet() {
  send_(fmt::format("{} monitor, with QEMU's commands - type 'help' for more information\r\n{}",
                    text_of(version_json(), "package"), kPrompt));
}

void HumanSession::receive(std::string_view bytes) {
  unread_ += bytes;
  read_lines();
}

void HumanSession::read_lines() {
  while (!waits_) {
    const std::size_t end = unread_.find('\n');
    if (end == std::string::npos) {
      break;
    }
    const std::string line = unread_.substr(0, end);
    unread_.erase(0, end + 1);
    if (!std::exchange(too_long_, false)) {
      on_line(line);
    }
  }
  if (unread_.size() > kMaxHumanBytes) {
    unread_.clear();
    if (!std::exchange(too_long_, true)) {
      send_(fmt::format("Error: a line of more than {} bytes; it is not carried out\r\n{}",
                        kMaxHumanBytes, waits_ ? "" : kPrompt));
    }
  }
}

void HumanSession::on_line(const std::string& line) {
  const HumanAnswer answer = run_human_command(context_, line);
  waits_ = answer.waits_for_migration && migration_goes_on();
  send_(fmt::format("{}{}", answer.text, waits_ ? "" : kPrompt));
}

bool HumanSession::migration_goes_on() const {
  const auto latest = context_.migration.report();
  return latest && latest->role == Role::kSource && !runtime::is_final(latest->report.status) &&
         latest->report.status != runtime::MigrationStatus::kPostcopyPaused;
}

void HumanSession::migration_changed() {
  if (!waits_ || migration_goes_on()) {
    return;
  }
  waits_ = false;
  const std::string told = run_human_command(context_, "info migrate").text;
  send_(fmt::format("{}{}", told.substr(0, told.find('\n') + 1), kPrompt));
  read_lines();
}

}  // namespace towline::monitor
