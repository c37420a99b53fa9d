#include "vmm/monitor/qmp_session.h"

#include <chrono>
#include <utility>

#include <fmt/format.h>

namespace towline::monitor {
namespace {

constexpr const char* kGeneric = "GenericError";
constexpr const char* kNotFound = "CommandNotFound";

/// A message, once it is known to be well formed.
struct Request {
  const std::string* name = nullptr;
  const Json* arguments = nullptr;
  bool out_of_band = false;
};

base::Outcome read_name(Request& request, const Json::Member& member) {
  if (member.value.text() == nullptr) {
    return refuse(fmt::format("QMP input member '{}' must be a string", member.name));
  }
  if (request.name != nullptr) {
    return refuse(fmt::format("QMP input member '{}' clashes with '{}'", member.name,
                              request.out_of_band ? "exec-oob" : "execute"));
  }
  request.name = member.value.text();
  request.out_of_band = member.name == "exec-oob";
  return base::Done{};
}

base::Expected<Request> read_request(const Json& message, bool out_of_band_allowed) {
  if (message.members() == nullptr) {
    return refuse("QMP input must be a JSON object");
  }
  Request request;
  for (const auto& member : *message.members()) {
    if (member.name == "execute" || (member.name == "exec-oob" && out_of_band_allowed)) {
      TRY(read_name(request, member));
    } else if (member.name == "arguments") {
      if (member.value.members() == nullptr) {
        return refuse("QMP input member 'arguments' must be an object");
      }
      request.arguments = &member.value;
    } else if (member.name != "id") {
      return refuse(fmt::format("QMP input member '{}' is unexpected", member.name));
    }
  }
  if (request.name == nullptr) {
    return refuse("QMP input lacks member 'execute'");
  }
  return request;
}

}  // namespace

QmpSession::QmpSession(CommandContext& context, bool events, Send send)
    : context_(context),
      wants_events_(events),
      send_(std::move(send)),
      splitter_([this](const std::string& text, const std::string& problem) {
        if (problem.empty()) {
          on_message(text);
        } else {
          this->send(Json::object(
              {{"error",
                Json::object({{"class", kGeneric}, {"desc", "JSON parse error, " + problem}})}}));
        }
      }) {
}

void QmpSession::greet() {
  send(Json::object({{"QMP", Json::object({{"version", version_json()},
                                           {"capabilities", Json::array().add("oob")}})}}));
}

void QmpSession::send_event(const std::string& line) {
  if (wants_events_ && negotiated_) {
    send_(line);
  }
}

void QmpSession::on_message(const std::string& text) {
  const auto message = Json::parse(text);
  if (!message.ok()) {
    send(Json::object(
        {{"error", Json::object({{"class", kGeneric},
                                 {"desc", "JSON parse error, " + message.error().detail}})}}));
    return;
  }
  Json reply = answer(message.value());
  if (const Json* id = message.value().find("id")) {
    reply.set("id", *id);
  }
  send(reply);
}

Json QmpSession::answer(const Json& message) {
  error_class_ = kGeneric;
  auto result = dispatch(message);
  if (result.ok()) {
    return Json::object({{"return", std::move(result).value()}});
  }
  return Json::object({{"error", Json::object({{"class", error_class_},
                                               {"desc", base::to_string(result.error())}})}});
}

base::Expected<Json> QmpSession::dispatch(const Json& message) {
  const Request request = TRY(read_request(message, out_of_band_));
  CommandArguments arguments(request.arguments);
  if (*request.name == "qmp_capabilities") {
    return negotiate(arguments);
  }
  if (!negotiated_) {
    error_class_ = kNotFound;
    return refuse("Expecting capabilities negotiation with 'qmp_capabilities'");
  }
  const Command* command = find_command(*request.name);
  if (command == nullptr) {
    error_class_ = kNotFound;
    return refuse(fmt::format("The command {} has not been found", *request.name));
  }
  if (request.out_of_band && !command->out_of_band) {
    return refuse(fmt::format("The command {} does not support OOB", *request.name));
  }
  return command->run(context_, arguments);
}

base::Expected<Json> QmpSession::negotiate(CommandArguments& arguments) {
  if (negotiated_) {
    error_class_ = kNotFound;
    return refuse("Capabilities negotiation is already complete, command ignored");
  }
  bool out_of_band = false;
  if (const Json* enable = TRY(arguments.optional_array("enable"))) {
    for (const auto& entry : *enable->items()) {
      if (entry.text() == nullptr) {
        return wrong_type("enable", "array of strings");
      }
      if (*entry.text() != "oob") {
        return not_accepted("enable", *entry.text());
      }
      out_of_band = true;
    }
  }
  TRY(arguments.finish());
  negotiated_ = true;
  out_of_band_ = out_of_band;
  return Json::object();
}

void QmpSession::send(const Json& message) {
  send_(message.dump() + "\r\n");
}

std::string event_line(std::string_view name, const Json& data) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(now).count();
  Json event = Json::object(
      {{"timestamp", Json::object({{"seconds", us / 1'000'000}, {"microseconds", us % 1'000'000}})},
       {"event", name}});
  if (!data.is_null()) {
    event.set("data", data);
  }
  return event.dump() + "\r\n";
}

}  // namespace towline::monitor
