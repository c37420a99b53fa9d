#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "vmm/monitor/commands.h"
#include "vmm/monitor/session.h"

namespace towline::monitor {

/// The longest line that is read, and what may wait behind a `migrate` that is waited for. Bytes.
inline constexpr std::size_t kMaxHumanBytes = 4096;

/// A person, or a script written for one: a prompt, a line, its answer, a prompt. The prompt is
/// QEMU's, because scripts wait for it. There are no events here.
class HumanSession final : public Session {
 public:
  /// `context` outlives this.
  HumanSession(CommandContext& context, Send send);

  void greet() override;
  void receive(std::string_view bytes) override;

  void send_event(const std::string& /*line*/) override {}

  void migration_changed() override;

 private:
  void read_lines();
  void on_line(const std::string& line);
  [[nodiscard]] bool migration_goes_on() const;

  CommandContext& context_;
  const Send send_;
  std::string unread_;
  bool too_long_ = false;  // What comes before the next end of a line belongs to a refused one.
  bool waits_ = false;     // For the end of the migration that the last line began.
};

}  // namespace towline::monitor
