#include "tools/client/move.h"

#include <utility>

#include <fmt/format.h>

#include "runtime/options.h"
#include "vmm/monitor/migration_json.h"
#include "vmm/monitor/migration_settings.h"

namespace towline::tools {
namespace {

using monitor::Json;
using monitor::text_of;
using monitor::whole_of;
using runtime::Parameter;

constexpr const char* kDefaultVia = "tcp:127.0.0.1:0";

/// So many looks in a row may find the move paused before it is called so: about a minute, in which
/// the source reconnects by itself; two seconds if the source's process is gone.
constexpr int kPausedLooks = 600;
constexpr int kDesertedLooks = 20;

base::Err<base::Error> refuse(std::string why) {
  return base::fail(base::ErrorKind::kRefused, "migrate", std::move(why));
}

Json capability(const char* name) {
  return Json::object({{"capability", name}, {"state", true}});
}

const Json* first_address(const Json& migration) {
  const Json* addresses = migration.find("socket-address");
  const bool there =
      addresses != nullptr && addresses->items() != nullptr && !addresses->items()->empty();
  return there ? &addresses->items()->front() : nullptr;
}

/// The reason a side gives, or else the other's.
std::string reason_of(const Json& first, const Json& second) {
  for (const Json* said : {&first, &second}) {
    if (std::string reason = text_of(*said, "error-desc"); !reason.empty()) {
      return reason;
    }
    const Json* own = said->find("x-towline");
    if (std::string reason = own == nullptr ? "" : text_of(*own, "link-desc"); !reason.empty()) {
      return reason;
    }
  }
  return {};
}

/// Nobody is connected to it, whatever its status promises.
bool is_away(const Json& migration) {
  const Json* own = migration.find("x-towline");
  return text_of(migration, "status") == "postcopy-paused" ||
         (own != nullptr && text_of(*own, "link") == "lost");
}

/// Of a guest that runs on without what its source took along.
std::uint64_t poisoned_pages(const Json& migration) {
  const Json* own = migration.find("x-towline");
  const Json* loss = own == nullptr ? nullptr : own->find("source-loss");
  return loss == nullptr ? 0 : whole_of(*loss, "poisoned-pages");
}

bool is_wildcard(const runtime::Uri& uri) {
  return uri.kind == runtime::Uri::Kind::kTcp && (uri.host == "0.0.0.0" || uri.host == "::");
}

}  // namespace

Move::Move(Peer& source, Peer& target, const MigrateArguments& arguments)
    : source_(source),
      target_(target),
      source_said_(Json::object()),  // Both are there before they have said anything.
      target_said_(Json::object()),
      arguments_(arguments) {
}

base::Outcome Move::prepare() {
  TRY(check_states());
  TRY(target_listens());
  return configure();
}

base::Outcome Move::check_states() {
  const std::string source = text_of(TRY(source_.execute("query-status")), "status");
  if (source != "running" && source != "paused" && source != "prelaunch") {
    return refuse(
        fmt::format("the source at '{}' has no guest to move: its state is '{}'; "
                    "'towline status {}' tells where the guest is",
                    arguments_.source, source, arguments_.source));
  }
  const std::string target = text_of(TRY(target_.execute("query-status")), "status");
  if (target != "inmigrate") {
    return refuse(
        fmt::format("the target at '{}' does not wait for a guest: its state is '{}'; "
                    "start it with 'towline run --incoming defer'",
                    arguments_.target, target));
  }
  return base::Done{};
}

base::Outcome Move::target_listens() {
  Json migration = TRY(target_.execute("query-migrate"));
  if (first_address(migration) == nullptr) {
    const std::string at = arguments_.via.empty() ? kDefaultVia : arguments_.via;
    static_cast<void>(TRY(target_.execute("migrate-incoming", Json::object({{"uri", at}}))));
    migration = TRY(target_.execute("query-migrate"));
  }
  const Json* listening = first_address(migration);
  if (listening == nullptr) {
    return refuse(fmt::format("the target at '{}' does not say where it listens: {}",
                              arguments_.target, text_of(migration, "error-desc", "no reason")));
  }
  return choose_address(*listening);
}

base::Outcome Move::choose_address(const Json& listening) {
  runtime::Uri at = TRY(monitor::address_from_json(listening));
  if (!arguments_.via.empty()) {
    runtime::Uri via = TRY(runtime::Uri::parse(arguments_.via));
    if (via.kind == runtime::Uri::Kind::kTcp && via.port == 0) {
      via.port = at.port;
    }
    at = via;
  }
  if (is_wildcard(at)) {
    return refuse(
        fmt::format("the target listens at every address ({}); say with --via at which "
                    "one the source reaches it, such as --via tcp:HOST:{}",
                    at.to_string(), at.port));
  }
  address_ = at.to_string();
  return base::Done{};
}

base::Outcome Move::configure() {
  const Json capabilities = Json::object(
      {{"capabilities", Json::array().add(capability("events")).add(capability("postcopy-ram"))}});
  static_cast<void>(TRY(target_.execute("migrate-set-capabilities", capabilities)));
  static_cast<void>(TRY(source_.execute("migrate-set-capabilities", capabilities)));
  TRY(set_parameters(source_, Parameter::End::kSource));
  return set_parameters(target_, Parameter::End::kTarget);
}

base::Outcome Move::set_parameters(Peer& peer, Parameter::End end) {
  Json values = Json::object();
  for (const auto& one : arguments_.parameters) {
    const bool concerns = one.parameter->end == end || one.parameter->end == Parameter::End::kBoth;
    // What the target was told stays as it is.
    if (concerns && (one.given || end == Parameter::End::kSource)) {
      values.set(std::string(one.parameter->name), monitor::json_of(one.value));
    }
  }
  if (!values.members()->empty()) {
    static_cast<void>(TRY(peer.execute("migrate-set-parameters", values)));
  }
  return base::Done{};
}

base::Outcome Move::start() {
  static_cast<void>(TRY(source_.execute("migrate", Json::object({{"uri", address_}}))));
  return base::Done{};
}

base::Outcome Move::cancel() {
  static_cast<void>(TRY(source_.execute("migrate_cancel")));
  return base::Done{};
}

MoveView Move::look() {
  std::string silent = ask(source_, arguments_.source, source_said_);
  const std::string target = ask(target_, arguments_.target, target_said_);
  if (silent.empty()) {
    silent = target;
  }
  MoveView view = judge(source_said_, target_said_);
  view.silent = std::move(silent);
  return view;
}

// A process that says nothing may be stopped, and its guest with it: only one that went away is
// gone.
std::string Move::ask(Peer& peer, const std::string& path, Json& said) const {
  auto answer = peer.execute("query-migrate");
  if (answer.ok()) {
    said = std::move(answer).value();
  } else if (answer.error().kind == base::ErrorKind::kOverloaded) {
    return fmt::format("the machine at '{}' does not answer; is it stopped?", path);
  } else {
    said = Json();
  }
  return {};
}

bool Move::away_for_long(const Json& source, const Json& target) {
  away_looks_ = is_away(source) || is_away(target) ? away_looks_ + 1 : 0;
  return away_looks_ >= (source.is_null() ? kDesertedLooks : kPausedLooks);
}

MoveView Move::judge(Json source, Json target) {
  MoveView view;
  const std::string at_source = text_of(source, "status");
  const std::string at_target = text_of(target, "status");
  handed_over_ = handed_over_ || at_target.starts_with("postcopy");
  if (at_target == "completed" && (at_source == "completed" || source.is_null())) {
    view.end = MoveEnd::kMoved;
  } else if (at_source == "completed" && target.is_null()) {
    view.end = MoveEnd::kUndecided;
    view.reason = "the guest went over, but the target's process has ended since";
  } else if (poisoned_pages(target) > 0) {
    view.end = MoveEnd::kUndecided;
    view.reason = text_of(target, "error-desc");
  } else if (handed_over_ && source.is_null() && target.is_null()) {
    view.end = MoveEnd::kUndecided;
    view.reason = "the guest was handed over, and neither process answers any more";
  } else if (at_source == "failed") {
    view.end = MoveEnd::kFailed;
    view.reason = reason_of(source, target);
  } else if (at_source == "cancelled") {
    view.end = MoveEnd::kCancelled;
  } else if (source.is_null() && !handed_over_) {
    view.end = MoveEnd::kFailed;
    view.reason = "the source's process has ended, and its guest with it";
  } else if (away_for_long(source, target)) {
    view.end = MoveEnd::kUndecided;
    view.reason = reason_of(target, source);
  }
  view.source = std::move(source);
  view.target = std::move(target);
  return view;
}

}  // namespace towline::tools
