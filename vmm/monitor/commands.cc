#include "vmm/monitor/commands.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "vmm/monitor/human_commands.h"
#include "vmm/monitor/migration_json.h"

#ifndef TOWLINE_VERSION
#error "the build defines TOWLINE_VERSION"
#endif

namespace towline::monitor {
namespace {

using Answer = base::Expected<Json>;

/// For commands without arguments: refuses any.
#define NO_ARGUMENTS() TRY(arguments.finish())

Answer done() {
  return Json::object();
}

Answer query_version(CommandContext& /*context*/, CommandArguments& arguments) {
  NO_ARGUMENTS();
  return version_json();
}

Answer query_commands(CommandContext& /*context*/, CommandArguments& arguments) {
  NO_ARGUMENTS();
  Json list = Json::array();
  list.add(Json::object({{"name", "qmp_capabilities"}}));  // The session's own.
  for (const auto& command : commands()) {
    list.add(Json::object({{"name", command.name}}));
  }
  return list;
}

Answer query_status(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  const vmm::RunState state = context.guest.run_state();
  Json answer = Json::object(
      {{"status", vmm::to_string(state)}, {"running", state == vmm::RunState::kRunning}});
  if (state == vmm::RunState::kInternalError) {
    answer.set("x-towline-reason", context.guest.failure());
  }
  return answer;
}

Answer query_name(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  return Json::object({{"name", context.guest.name()}});
}

Answer query_kvm(CommandContext& /*context*/, CommandArguments& arguments) {
  NO_ARGUMENTS();
  return Json::object({{"enabled", true}, {"present", true}});
}

Answer query_target(CommandContext& /*context*/, CommandArguments& arguments) {
  NO_ARGUMENTS();
  return Json::object({{"arch", "x86_64"}});
}

Answer stop(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  TRY(context.guest.stop());
  return done();
}

Answer cont(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  TRY(context.migration.may_continue());
  TRY(context.guest.cont());
  return done();
}

Answer system_reset(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  TRY(context.migration.may_reset());
  TRY(context.guest.system_reset());
  return done();
}

Answer quit(CommandContext& context, CommandArguments& arguments) {
  const auto force = TRY(arguments.optional_boolean("x-force"));
  NO_ARGUMENTS();
  TRY(context.quitter.quit(force.value_or(false)));
  return done();
}

/// The `uri` or `channels` of migrate and migrate-incoming.
base::Expected<runtime::Uri> address(CommandArguments& arguments) {
  const auto uri = TRY(arguments.optional_text("uri"));
  const Json* channels = TRY(arguments.optional_array("channels"));
  if (uri.has_value() == (channels != nullptr)) {
    return refuse("need either 'uri' or 'channels' argument");
  }
  return uri ? runtime::Uri::parse(*uri) : address_from_channels(*channels);
}

/// For an address to listen at. Host names are not looked up here: without a network a look-up
/// takes seconds, and no client would get an answer meanwhile.
base::Outcome without_lookup(const runtime::Uri& at) {
  return !at.needs_lookup()
             ? base::Outcome(base::Done{})
             : refuse(fmt::format("address '{}' to listen at has a host name; give an address of "
                                  "this host in numbers, or tcp::{} for all of them",
                                  at.to_string(), at.port));
}

Answer migrate_pause(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  TRY(context.migration.pause());
  return done();
}

Answer migrate_recover(CommandContext& context, CommandArguments& arguments) {
  const std::string uri = TRY(arguments.text("uri"));
  NO_ARGUMENTS();
  const auto at = TRY(runtime::Uri::parse(uri));
  TRY(without_lookup(at));
  TRY(context.migration.recover_at(at));
  return done();
}

Answer take_back(CommandContext& context, CommandArguments& arguments) {
  const auto fenced = TRY(arguments.optional_boolean("target-is-fenced"));
  NO_ARGUMENTS();
  TRY(context.migration.take_back(fenced.value_or(false)));
  return done();
}

Answer give_up_source(CommandContext& context, CommandArguments& arguments) {
  const auto mode = TRY(arguments.optional_text("mode"));
  NO_ARGUMENTS();
  std::optional<runtime::SourceLoss> how;
  if (mode) {
    how = runtime::source_loss_named(*mode);
    if (!how || *how == runtime::SourceLoss::kWait) {
      return not_accepted("mode", *mode);
    }
  }
  TRY(context.migration.give_up_source(how));
  return done();
}

Answer migrate(CommandContext& context, CommandArguments& arguments) {
  const auto resume = TRY(arguments.optional_boolean("resume"));
  // Old scripts set it. It has had no effect for long, so only the value that is true is accepted.
  const auto detach = TRY(arguments.optional_boolean("detach"));
  const auto target = TRY(address(arguments));
  NO_ARGUMENTS();
  if (detach == false) {
    return refuse("Parameter 'detach' cannot be false: 'migrate' always returns at once");
  }
  TRY(resume.value_or(false) ? context.migration.resume_migration(target)
                             : context.migration.migrate(target));
  return done();
}

Answer migrate_incoming(CommandContext& context, CommandArguments& arguments) {
  const auto exit_on_error = TRY(arguments.optional_boolean("exit-on-error"));
  const auto at = TRY(address(arguments));
  NO_ARGUMENTS();
  TRY(without_lookup(at));
  TRY(context.migration.listen(at, exit_on_error.value_or(true)));
  return done();
}

Answer migrate_cancel(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  TRY(context.migration.cancel());
  return done();
}

Answer migrate_start_postcopy(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  TRY(context.migration.start_postcopy());
  return done();
}

Answer migrate_continue(CommandContext& context, CommandArguments& arguments) {
  const std::string state = TRY(arguments.text("state"));
  NO_ARGUMENTS();
  TRY(context.migration.continue_switch(state));
  return done();
}

Answer query_migrate(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  return query_migrate_json(context.migration.report());
}

Answer set_capabilities(CommandContext& context, CommandArguments& arguments) {
  const Json* list = TRY(arguments.array("capabilities"));
  NO_ARGUMENTS();
  TRY(context.migration.set_capabilities(*list));
  return done();
}

Answer query_capabilities(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  return capabilities_json(context.migration.settings());
}

Answer set_parameters(CommandContext& context, CommandArguments& arguments) {
  // Not finish(): with_parameters() refuses unknown names, and says what to use instead.
  TRY(context.migration.set_parameters(arguments.all()));
  return done();
}

Answer query_parameters(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  return parameters_json(context.migration.settings());
}

Answer human_monitor_command(CommandContext& context, CommandArguments& arguments) {
  const std::string line = TRY(arguments.text("command-line"));
  static_cast<void>(
      TRY(arguments.optional_whole("cpu-index")));  // No command here looks at a vCPU.
  NO_ARGUMENTS();
  HumanAnswer answer = run_human_command(context, line);
  if (answer.waits_for_migration) {
    answer.text += "terminal does not allow synchronous migration, continuing detached\r\n";
  }
  return Json(std::move(answer.text));
}

/// QEMU's answer for a machine that was given none.
Answer query_uuid(CommandContext& /*context*/, CommandArguments& arguments) {
  NO_ARGUMENTS();
  return Json::object({{"UUID", "00000000-0000-0000-0000-000000000000"}});
}

Answer query_cpus_fast(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  Json list = Json::array();
  std::size_t index = 0;
  for (const auto thread : context.guest.vcpu_threads()) {
    list.add(Json::object(
        {{"thread-id", thread},
         {"props", Json::object({{"core-id", 0}, {"thread-id", 0}, {"socket-id", index}})},
         {"qom-path", fmt::format("/machine/unattached/device[{}]", index)},
         {"cpu-index", index},
         {"target", "x86_64"}}));
    ++index;
  }
  return list;
}

Answer query_memory_size_summary(CommandContext& context, CommandArguments& arguments) {
  NO_ARGUMENTS();
  return Json::object({{"base-memory", context.guest.memory().value}, {"plugged-memory", 0}});
}

#undef NO_ARGUMENTS

// clang-format off
constexpr std::array kCommands{
    Command{"query-version",              true,  query_version},
    Command{"query-commands",             true,  query_commands},
    Command{"query-name",                 true,  query_name},
    Command{"query-kvm",                  true,  query_kvm},
    Command{"query-target",               true,  query_target},
    Command{"query-uuid",                 true,  query_uuid},
    Command{"query-cpus-fast",            true,  query_cpus_fast},
    Command{"query-memory-size-summary",  true,  query_memory_size_summary},
    Command{"query-status",               true,  query_status},
    Command{"stop",                       false, stop},
    Command{"cont",                       false, cont},
    Command{"system_reset",               false, system_reset},
    Command{"quit",                       false, quit},
    Command{"migrate",                    false, migrate},
    Command{"migrate-incoming",           false, migrate_incoming},
    Command{"migrate_cancel",             true,  migrate_cancel},
    Command{"migrate-start-postcopy",     true,  migrate_start_postcopy},
    Command{"migrate-continue",           false, migrate_continue},
    Command{"migrate-pause",              true,  migrate_pause},
    Command{"migrate-recover",            true,  migrate_recover},
    Command{"x-towline-take-back",        false, take_back},
    Command{"x-towline-give-up-source",   false, give_up_source},
    Command{"query-migrate",              true,  query_migrate},
    Command{"migrate-set-capabilities",   false, set_capabilities},
    Command{"query-migrate-capabilities", true,  query_capabilities},
    Command{"migrate-set-parameters",     false, set_parameters},
    Command{"query-migrate-parameters",   true,  query_parameters},
    Command{"human-monitor-command",      false, human_monitor_command},
};
// clang-format on

}  // namespace

std::span<const Command> commands() {
  return kCommands;
}

const Command* find_command(std::string_view name) {
  const auto* const found = std::find_if(kCommands.begin(), kCommands.end(),
                                         [&](const Command& one) { return one.name == name; });
  return found == kCommands.end() ? nullptr : found;
}

Json version_json() {
  // The version of QEMU's interface, which managers look for, and the program behind it.
  return Json::object({{"qemu", Json::object({{"micro", 0}, {"minor", 2}, {"major", 10}})},
                       {"package", "towline " TOWLINE_VERSION}});
}

}  // namespace towline::monitor
