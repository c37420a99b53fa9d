#pragma once

#include <string>
#include <string_view>

#include "vmm/monitor/commands.h"
#include "vmm/monitor/framing.h"
#include "vmm/monitor/json.h"
#include "vmm/monitor/session.h"

namespace towline::monitor {

/// A program's conversation.
///
/// The life of one: greet(); until `qmp_capabilities` nothing else is answered and no event is
/// sent; afterwards every message gets one answer, in the order in which they came.
class QmpSession final : public Session {
 public:
  /// `context` outlives this. `events`: whether this client wants any.
  QmpSession(CommandContext& context, bool events, Send send);

  void greet() override;

  void receive(std::string_view bytes) override { splitter_.feed(bytes); }

  void send_event(const std::string& line) override;

 private:
  void on_message(const std::string& text);
  Json answer(const Json& message);
  base::Expected<Json> dispatch(const Json& message);
  base::Expected<Json> negotiate(CommandArguments& arguments);
  void send(const Json& message);

  CommandContext& context_;
  const bool wants_events_;
  const Send send_;
  bool negotiated_ = false;
  bool out_of_band_ = false;
  const char* error_class_ = "";
  JsonSplitter splitter_;
};

/// An event with the time of now, CRLF-ended. `data` may be null: then there is none.
std::string event_line(std::string_view name, const Json& data);

}  // namespace towline::monitor
