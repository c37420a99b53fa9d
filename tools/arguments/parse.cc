#include "tools/arguments/parse.h"

#include <charconv>
#include <limits>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "tools/arguments/checks.h"
#include "tools/arguments/migrate.h"
#include "tools/arguments/run.h"

#include <CLI/CLI.hpp>

namespace towline::tools {
namespace {

constexpr const char* kMainHelp = R"(Moves running virtual machines between hosts, post-copy first.

  towline run          starts a machine, or waits for a guest to arrive
  towline migrate      moves a guest from one running machine to another
  towline status       shows the state of a machine and of its migration
  towline qmp          sends one QMP command
  towline page-server  holds a guest's memory, so that it outlives the source's process)";

constexpr const char* kMainFooter = R"(Example, a move on one host:
  towline run --kernel guest.elf --memory 1G --qmp unix:/tmp/a.qmp &
  towline run --incoming defer   --memory 1G --qmp unix:/tmp/b.qmp &
  towline migrate /tmp/a.qmp /tmp/b.qmp

'towline COMMAND --help' shows the options of a command.)";

constexpr const char* kPageServerFooter =
    R"(Example, a page server that listens, and a source that uses it:
  towline page-server --listen unix:/run/towline/vm1.pages --qmp unix:/run/towline/vm1.pages.qmp
  towline run --page-server unix:/run/towline/vm1.pages --kernel guest.elf --memory 1G

A source with --page-server own starts a page server for each migration by itself. With --page-server
scope it starts it in a systemd scope, so that ending the source's control group does not end it.

A page server holds the memory of one guest at a time. If the source's process dies after the run
order, the page server continues the migration in its place; until then it only waits. Under a service
manager that keeps descriptors ($NOTIFY_SOCKET) it may be restarted at any time.

Exit status:
  0  it holds nothing any more, or 'quit' was obeyed
  1  it could not start
  2  wrong command line)";

constexpr const char* kQmpFooter = R"(Examples:
  towline qmp /tmp/a.qmp query-status
  towline qmp /tmp/a.qmp migrate-set-parameters max-bandwidth=0 x-towline-passes=2
  towline qmp /tmp/a.qmp migrate '{"uri": "tcp:127.0.0.1:4444"}')";

struct PageServerTexts {
  std::vector<std::string> qmp;
  std::string level = "info";
};

void declare_page_server(CLI::App& app, PageServerArguments& server, PageServerTexts& texts) {
  app.add_option("--listen", server.listen, "Wait for sources at the unix socket unix:PATH")
      ->type_name("SOCKET");
  app.add_option("--socket-fd", server.socket_fd,
                 "Serve the one source at the other end of this descriptor")
      ->type_name("N");
  app.add_option("--qmp", texts.qmp,
                 "Control socket unix:PATH[,events=off]; may be given several times")
      ->type_name("SOCKET");
  app.add_option("--name", server.name, "Name in the log. Default: page-server.")
      ->type_name("NAME");
  app.add_option("--log-level", texts.level, "debug, info, warning or error. Default: info.")
      ->type_name("LEVEL");
  app.footer(kPageServerFooter);
}

void finish_page_server(PageServerArguments& server, const PageServerTexts& texts) {
  check_name(server.name);
  server.listen = unix_path("--listen", server.listen);
  if (server.listen.empty() == (server.socket_fd < 0)) {
    throw CLI::RequiredError("Either --listen unix:PATH or --socket-fd N");
  }
  for (const auto& text : texts.qmp) {
    server.qmp.push_back(parse_qmp(text));
    if (server.qmp.back().path == server.listen) {
      complain("--qmp", text, "--listen is there; use another path");
    }
  }
  server.log_level = log_level(texts.level);
}

/// key=value words, or one JSON object.
monitor::Json command_arguments(const std::vector<std::string>& words) {
  if (words.empty()) {
    return {};
  }
  if (words.front().starts_with('{')) {
    auto object = monitor::Json::parse(words.front());
    if (!object.ok() || words.size() > 1) {
      complain("arguments", words.front(),
               object.ok() ? "one JSON object, and nothing after it" : object.error().detail);
    }
    return std::move(object).value();
  }
  monitor::Json object = monitor::Json::object();
  for (const auto& word : words) {
    const std::size_t equals = word.find('=');
    if (equals == std::string::npos || equals == 0) {
      complain("argument", word, "use NAME=VALUE, or one JSON object");
    }
    // 5, true and [1] are themselves; what is no JSON is a text.
    const std::string text = word.substr(equals + 1);
    auto value = monitor::Json::parse(text);
    object.set(word.substr(0, equals), value.ok() ? std::move(value).value() : monitor::Json(text));
  }
  return object;
}

NothingToDo explain(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* at = &app;
  std::string name = "towline";
  if (const auto chosen = app.get_subcommands(); !chosen.empty()) {
    at = chosen.front();
    name += ' ' + at->get_name();
  }
  if (error.get_exit_code() == 0) {   // --help is an error in CLI11's eyes.
    return {0, at->help("towline")};  // A subcommand adds its own name.
  }
  const bool no_subcommand = at == &app && !app.remaining().empty();
  const std::string hint = no_subcommand
                               ? "; the subcommands are run, migrate, status, qmp and page-server"
                               : std::string();
  return {2, fmt::format("{}: {}{}\n'{} --help' shows every option, with examples.\n", name,
                         error.what(), hint, name)};
}

}  // namespace

std::optional<std::uint64_t> parse_size(const std::string& text) {
  std::uint64_t value = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, value);
  if (error != std::errc{} || end == text.data()) {
    return std::nullopt;
  }
  const std::string_view unit(end, static_cast<std::size_t>(last - end));
  constexpr std::string_view kUnits = "KMGT";
  unsigned shift = 0;
  if (!unit.empty()) {
    const std::size_t power = kUnits.find(unit.front());
    const std::string_view rest = unit.substr(1);
    if (power == std::string_view::npos || !(rest.empty() || rest == "iB" || rest == "B")) {
      return std::nullopt;
    }
    shift = static_cast<unsigned>(power + 1) * 10;
  }
  if (value > std::numeric_limits<std::uint64_t>::max() >> shift) {
    return std::nullopt;
  }
  return value << shift;
}

base::Result<Arguments, NothingToDo> parse_arguments(const std::vector<std::string>& words) {
  CLI::App app(kMainHelp);
  app.footer(kMainFooter);
  app.require_subcommand(0, 1);  // None is judged below: an unknown word is the better complaint.
  RunArguments run;
  RunTexts run_texts;
  declare_run(*app.add_subcommand("run", "Starts a machine, or waits for a guest to arrive"), run,
              run_texts);
  MigrateArguments migrate;
  ParameterOptions migrate_parameters(ParameterOptions::Command::kMigrate);
  declare_migrate(
      *app.add_subcommand("migrate", "Moves a guest from one running machine to another"), migrate,
      migrate_parameters);
  StatusArguments status;
  auto* status_app =
      app.add_subcommand("status", "Shows the state of a machine and of its migration");
  status_app->add_option("QMP", status.qmp, "QMP socket of the machine")->required();
  status_app->add_flag("--json", status.json, "Print one JSON object");
  QmpArguments qmp;
  std::vector<std::string> qmp_words;
  auto* qmp_app = app.add_subcommand("qmp", "Sends one QMP command and prints the answer");
  qmp_app->add_option("QMP", qmp.qmp, "QMP socket of the machine")->required();
  qmp_app->add_option("COMMAND", qmp.command, "Such as query-status")->required();
  qmp_app->add_option("ARGUMENTS", qmp_words, "NAME=VALUE words, or one JSON object");
  qmp_app->footer(kQmpFooter);

  PageServerArguments server;
  PageServerTexts server_texts;
  declare_page_server(
      *app.add_subcommand("page-server",
                          "Holds a guest's memory, so that it outlives the source's process"),
      server, server_texts);

  std::vector<std::string> reversed(words.rbegin(), words.rend());  // As CLI11 wants them.
  try {
    app.parse(reversed);
    if (app.got_subcommand("run")) {
      // An empty address is a mistake, not the absence of one.
      finish_run(run, run_texts, app.get_subcommand("run")->count("--incoming") > 0);
      return Arguments(std::move(run));
    }
    if (app.got_subcommand("migrate")) {
      finish_migrate(migrate, migrate_parameters);
      return Arguments(std::move(migrate));
    }
    if (app.got_subcommand("status")) {
      status.qmp = socket_path(status.qmp);
      return Arguments(std::move(status));
    }
    if (app.got_subcommand("page-server")) {
      finish_page_server(server, server_texts);
      return Arguments(std::move(server));
    }
    if (!app.got_subcommand("qmp")) {
      throw CLI::RequiredError("A subcommand (run, migrate, status, qmp or page-server)");
    }
    qmp.qmp = socket_path(qmp.qmp);
    qmp.arguments = command_arguments(qmp_words);
    return Arguments(std::move(qmp));
  } catch (const CLI::ParseError& error) {
    return base::Err{explain(app, error)};
  }
}

}  // namespace towline::tools
