#include "tools/arguments.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "runtime/options.h"

#include <CLI/CLI.hpp>

namespace towline::tools {
namespace {

constexpr const char* kMainHelp = R"(Moves running virtual machines between hosts, post-copy first.

  towline run      starts a virtual machine, or waits for one to arrive
  towline migrate  moves a guest between two machines that run
  towline status   says how a machine and its migration are
  towline qmp      sends one QMP command
  towline page-server  holds a guest's memory, so that it outlives the source's process)";

constexpr const char* kMainFooter = R"(Example, a move on one host:
  towline run --kernel guest.elf --memory 1G --qmp unix:/tmp/a.qmp &
  towline run --incoming defer   --memory 1G --qmp unix:/tmp/b.qmp &
  towline migrate /tmp/a.qmp /tmp/b.qmp

'towline COMMAND --help' says more.)";

constexpr const char* kRunFooter = R"(Examples:
  towline run --kernel guest.elf --append 'pattern=random' --memory 512M --vcpus 2
  towline run --incoming tcp:127.0.0.1:4444 --memory 512M --vcpus 2 --qmp unix:/tmp/b.qmp
  towline run --incoming tcp:0.0.0.0:4444 --secret /etc/towline/secret --memory 512M

The process ends with 0 when the guest switched itself off or 'quit' was ordered, with 1 when it
cannot start or an incoming migration failed, with 2 for a wrong command line.
SIGINT and SIGTERM are refused while ending would lose a guest; a second one within five seconds
is obeyed.)";

constexpr const char* kPageServerFooter =
    R"(Example, one that a service manager keeps, and a source that uses it:
  towline page-server --listen unix:/run/towline/vm1.pages --qmp unix:/run/towline/vm1.pages.qmp
  towline run --page-server unix:/run/towline/vm1.pages --kernel guest.elf --memory 1G

A source with --page-server own starts one for each migration by itself; with --page-server scope
in a scope of systemd's, so that what ends the source's control group does not end it.
It holds the memory of one guest at a time. When the source's process dies after the run order, it
goes on in its place; until then it does nothing. With a service manager that keeps descriptors
($NOTIFY_SOCKET), it may be restarted at any time.

The process ends with 0 when nothing is kept any more or 'quit' was ordered, with 1 when it cannot
start, with 2 for a wrong command line.)";

constexpr const char* kMigrateFooter = R"(Examples:
  towline migrate /run/vm1.qmp /tmp/vm1-new.qmp
  towline migrate /run/vm1.qmp /tmp/vm1-new.qmp --via tcp:10.0.0.7:0 --max-bandwidth 500M
  towline migrate /run/vm1.qmp /tmp/vm1-new.qmp --json

The target is a machine started with --incoming, of the same memory and vCPUs. Interrupting this
command cancels the move before the switch; after it the move goes on without this command.

Exit status:
  0  moved: the guest runs at the target
  1  failed: the guest runs on at the source, or nothing was begun
  2  wrong command line
  3  cancelled: the guest runs on at the source
  4  undecided: the move is paused, or goes on without this command; 'towline status' tells)";

constexpr const char* kQmpFooter = R"(Examples:
  towline qmp /tmp/a.qmp query-status
  towline qmp /tmp/a.qmp migrate-set-parameters max-bandwidth=0 x-towline-passes=2
  towline qmp /tmp/a.qmp migrate '{"uri": "tcp:127.0.0.1:4444"}')";

constexpr const char* kSizeForms = "a number of bytes, or with K, M, G or T, such as 512M or 2G";

/// Our own complaint about one option.
[[noreturn]] void complain(const std::string& option, const std::string& value,
                           const std::string& remedy) {
  throw CLI::ValidationError(fmt::format("{} '{}'", option, value), remedy);
}

std::uint64_t size_of(const std::string& option, const std::string& text) {
  const auto size = parse_size(text);
  if (!size) {
    complain(option, text, fmt::format("use {}", kSizeForms));
  }
  return *size;
}

/// A socket's path, which may stand with unix: before it.
std::string socket_path(const std::string& text) {
  return text.starts_with("unix:") ? text.substr(5) : text;
}

QmpSocket parse_qmp(const std::string& text) {
  constexpr const char* kForm = "use unix:PATH or unix:PATH,events=off";
  if (!text.starts_with("unix:")) {
    complain("--qmp", text, kForm);
  }
  QmpSocket socket;
  std::size_t comma = text.find(',');
  socket.path = text.substr(5, comma - 5);
  while (comma != std::string::npos) {
    const std::size_t next = text.find(',', comma + 1);
    const std::string option = text.substr(comma + 1, next - comma - 1);
    if (option == "events=off" || option == "events=on") {
      socket.events = option == "events=on";
    } else if (option != "server=on" && option != "wait=off") {
      // Those two are what QEMU is given for the same thing.
      complain("--qmp", text, fmt::format("unknown option '{}'; {}", option, kForm));
    }
    comma = next;
  }
  if (socket.path.empty()) {
    complain("--qmp", text, fmt::format("the path is missing; {}", kForm));
  }
  return socket;
}

void check_serial(const std::string& text) {
  const bool path = (text.starts_with("file:") || text.starts_with("unix:")) && text.size() > 5;
  if (!path && text != "stdio" && text != "none") {
    complain("--serial", text, "use stdio, file:PATH, unix:PATH or none");
  }
}

runtime::Backing check_backing(const std::string& text) {
  if (text == "anonymous") {
    complain("--memory-backing", text, "not built yet; use memfd or hugetlb");
  }
  if (text != "memfd" && text != "hugetlb") {
    complain("--memory-backing", text, "use memfd or hugetlb");
  }
  return text == "hugetlb" ? runtime::Backing::kHugetlb : runtime::Backing::kMemfd;
}

/// What guest memory is made of.
void check_memory(RunArguments& run, const std::string& memory, const std::string& backing) {
  const std::uint64_t bytes = size_of("--memory", memory);
  if (bytes == 0 || bytes % base::kSmallPage.value != 0) {
    complain("--memory", memory, "memory is a multiple of 4096 bytes and not 0");
  }
  run.machine.memory = base::Bytes{bytes};
  run.machine.backing = check_backing(backing);
  if (run.machine.backing != runtime::Backing::kHugetlb) {
    return;
  }
  if (bytes % base::kHugePage.value != 0) {
    complain("--memory", memory,
             fmt::format("with --memory-backing hugetlb it is a multiple of 2M: use {}M",
                         (bytes / base::kHugePage.value + 1) * 2));
  }
  if (!run.machine.memory_path.empty()) {
    complain("--memory-path", run.machine.memory_path,
             "huge pages are in no file of yours; leave it out with --memory-backing hugetlb");
  }
}

runtime::SourceLoss check_source_loss(const std::string& text) {
  const auto policy = runtime::source_loss_named(text);
  if (!policy) {
    complain("--source-loss", text, "use wait, poison or give-up");
  }
  return *policy;
}

/// "host" or "host,-avx2,-fma": the features that the guest is not shown.
std::vector<std::string> hidden_features(const std::string& text) {
  constexpr const char* kForm = "use host, or host,-FEATURE,… with names as in /proc/cpuinfo";
  std::vector<std::string> hidden;
  std::size_t comma = text.find(',');
  if (text.substr(0, comma) != "host") {
    complain("--cpu", text, kForm);
  }
  while (comma != std::string::npos) {
    const std::size_t next = text.find(',', comma + 1);
    const std::string one = text.substr(comma + 1, next - comma - 1);
    if (one.size() < 2 || one.front() != '-') {
      complain("--cpu", text, fmt::format("'{}' is no feature to hide; {}", one, kForm));
    }
    hidden.push_back(one.substr(1));
    comma = next;
  }
  return hidden;
}

void check_uri(const std::string& option, const std::string& text) {
  const auto uri = runtime::Uri::parse(text);
  if (!uri.ok()) {
    complain(option, text, uri.error().detail);
  }
}

base::LogLevel log_level(const std::string& text) {
  if (text == "debug") {
    return base::LogLevel::kDebug;
  }
  if (text == "info") {
    return base::LogLevel::kInfo;
  }
  if (text == "warning") {
    return base::LogLevel::kWarning;
  }
  if (text == "error") {
    return base::LogLevel::kError;
  }
  complain("--log-level", text, "use debug, info, warning or error");
}

/// What CLI11 fills in before it is checked.
struct RunTexts {
  std::string memory = "256M";
  std::string backing = "memfd";
  std::string cpu = "host";
  std::vector<std::string> qmp;
  std::string source_loss = "wait";
  std::string page_server = "none";
  std::string level = "info";
};

void declare_run(CLI::App& app, RunArguments& run, RunTexts& texts) {
  app.add_option("--kernel", run.machine.kernel, "PVH ELF to boot; not needed with --incoming")
      ->type_name("FILE");
  app.add_option("--append", run.machine.append, "Kernel command line")->type_name("TEXT");
  app.add_option("--initrd", run.machine.initrd, "Initial RAM disk")->type_name("FILE");
  app.add_option("--memory", texts.memory, "Guest memory, such as 512M or 2G (256M)")
      ->type_name("SIZE");
  app.add_option("--memory-backing", texts.backing,
                 "memfd (default), or hugetlb: huge pages of 2 MiB")
      ->type_name("KIND");
  app.add_option("--memory-path", run.machine.memory_path,
                 "Guest memory in this file, or in a nameless one in this folder, on a tmpfs")
      ->type_name("PATH");
  app.add_option("--vcpus", run.machine.vcpus, "Virtual CPUs (1)")->type_name("N");
  app.add_option("--cpu", texts.cpu,
                 "host (default), or host,-FEATURE,… to hide what another host does not have")
      ->type_name("MODEL");
  app.add_option("--serial", run.machine.serial,
                 "COM1: stdio (default), file:PATH, unix:PATH or none")
      ->type_name("WHERE");
  app.add_option("--qmp", texts.qmp,
                 "Control socket unix:PATH[,events=off]; may be given several times")
      ->type_name("SOCKET");
  app.add_option("--incoming", run.incoming,
                 "Wait for a guest at tcp:HOST:PORT or unix:PATH, or 'defer': at what "
                 "migrate-incoming says")
      ->type_name("URI");
  app.add_option("--secret", run.secret_file,
                 "File with the secret that both ends of a migration prove to each other")
      ->type_name("FILE");
  app.add_option("--page-server", texts.page_server,
                 "Who holds the memory when this process dies in post-copy: own (one is started "
                 "for each migration), scope (the same, in a scope of systemd's), unix:PATH (one "
                 "that listens) or none (default)")
      ->type_name("WHICH");
  app.add_option("--page-server-qmp", run.page_server_qmp,
                 "Control socket unix:PATH of the page server that is started; without it, the "
                 "first --qmp path with .pages at its end")
      ->type_name("SOCKET");
  app.add_flag("--allow-unprotected", run.allow_unprotected,
               "Listen beyond this host without a secret");
  app.add_option("--source-loss", texts.source_loss,
                 "What a target does when its source stays away in post-copy: wait (default), "
                 "poison what is missing, or give-up the guest")
      ->type_name("POLICY");
  app.add_option("--source-loss-deadline", run.source_loss_deadline_s,
                 "Seconds of absence until that is done (60)")
      ->type_name("SECONDS");
  app.add_flag("--paused", run.machine.start_paused, "Do not run the guest before 'cont'");
  app.add_option("--name", run.machine.name, "Name of the machine (towline)")->type_name("NAME");
  app.add_option("--log-level", texts.level, "debug, info (default), warning or error")
      ->type_name("LEVEL");
  app.footer(kRunFooter);
}

void finish_run(RunArguments& run, const RunTexts& texts, bool incoming) {
  run.machine.incoming = incoming;
  check_memory(run, texts.memory, texts.backing);
  check_serial(run.machine.serial);
  run.machine.hidden_features = hidden_features(texts.cpu);
  for (const auto& text : texts.qmp) {
    run.qmp.push_back(parse_qmp(text));
  }
  const auto server = runtime::PageServerChoice::parse(texts.page_server);
  if (!server.ok()) {
    complain("--page-server", texts.page_server, server.error().detail);
  }
  run.page_server = server.value();
  run.page_server_qmp = socket_path(run.page_server_qmp);
  if (run.machine.vcpus == 0) {
    complain("--vcpus", "0", "a machine has at least one");
  }
  if (run.machine.incoming && run.incoming != "defer") {
    check_uri("--incoming", run.incoming);
  }
  if (!run.machine.incoming && run.machine.kernel.empty()) {
    throw CLI::RequiredError("--kernel FILE (what to boot) or --incoming URI (wait for a guest)");
  }
  if (run.incoming == "defer" && run.qmp.empty()) {
    throw CLI::RequiredError(
        "--qmp unix:PATH, because --incoming defer waits for migrate-incoming");
  }
  run.source_loss = check_source_loss(texts.source_loss);
  if (run.source_loss_deadline_s == 0) {
    complain("--source-loss-deadline", "0", "use 1 or more");
  }
  run.log_level = log_level(texts.level);
}

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
  app.add_option("--name", server.name, "Name in the log (page-server)")->type_name("NAME");
  app.add_option("--log-level", texts.level, "debug, info (default), warning or error")
      ->type_name("LEVEL");
  app.footer(kPageServerFooter);
}

void finish_page_server(PageServerArguments& server, const PageServerTexts& texts) {
  server.listen = socket_path(server.listen);
  if (server.listen.empty() == (server.socket_fd < 0)) {
    throw CLI::RequiredError("Either --listen unix:PATH or --socket-fd N");
  }
  for (const auto& text : texts.qmp) {
    server.qmp.push_back(parse_qmp(text));
  }
  server.log_level = log_level(texts.level);
}

struct MigrateTexts {
  std::string max_bandwidth = "0";
  std::string max_postcopy_bandwidth = "0";
};

void declare_migrate(CLI::App& app, MigrateArguments& migrate, MigrateTexts& texts) {
  app.add_option("SOURCE_QMP", migrate.source, "QMP socket of the machine with the guest")
      ->required();
  app.add_option("TARGET_QMP", migrate.target, "QMP socket of the machine that waits for it")
      ->required();
  app.add_option("--via", migrate.via,
                 "Where the target listens, tcp:HOST:PORT (port 0: a free one) or unix:PATH "
                 "(tcp:127.0.0.1:0)")
      ->type_name("URI");
  app.add_option("--alternate", migrate.alternates,
                 "Another address of the same target, tried in turn when the link is lost in "
                 "post-copy; may be given several times")
      ->type_name("URI");
  app.add_option("--switch", migrate.switch_policy,
                 "When the vCPUs go over: immediate, after-pass (default) or manual")
      ->type_name("WHEN");
  app.add_option("--passes", migrate.passes, "Passes over memory before the switch, 0 to 16 (1)")
      ->type_name("N");
  app.add_option("--bulk-lanes", migrate.bulk_lanes, "Connections for the bulk, 1 to 16 (2)")
      ->type_name("N");
  app.add_option("--max-bandwidth", texts.max_bandwidth,
                 "Bytes per second before the switch, such as 500M (0: no limit)")
      ->type_name("SIZE");
  app.add_option("--max-postcopy-bandwidth", texts.max_postcopy_bandwidth,
                 "The same for the bulk after the switch (0: no limit)")
      ->type_name("SIZE");
  app.add_option("--source-loss", migrate.source_loss,
                 "What the target does when the source stays away in post-copy: wait, poison what "
                 "is missing, or give-up the guest (as the target was told)")
      ->type_name("POLICY");
  app.add_option("--source-loss-deadline", migrate.source_loss_deadline_s,
                 "Seconds of absence until that is done")
      ->type_name("SECONDS");
  app.add_flag("--json", migrate.json, "The result as one JSON object on standard output");
  app.footer(kMigrateFooter);
}

void finish_migrate(MigrateArguments& migrate, const MigrateTexts& texts) {
  migrate.source = socket_path(migrate.source);
  migrate.target = socket_path(migrate.target);
  const auto& policy = migrate.switch_policy;
  if (policy != "immediate" && policy != "after-pass" && policy != "manual") {
    complain("--switch", policy, "use immediate, after-pass or manual");
  }
  if (migrate.passes > 16) {
    complain("--passes", std::to_string(migrate.passes), "use 0 to 16");
  }
  if (migrate.bulk_lanes < 1 || migrate.bulk_lanes > 16) {
    complain("--bulk-lanes", std::to_string(migrate.bulk_lanes), "use 1 to 16");
  }
  if (!migrate.via.empty()) {
    check_uri("--via", migrate.via);
  }
  for (const std::string& address : migrate.alternates) {
    check_uri("--alternate", address);
  }
  if (!migrate.source_loss.empty()) {
    check_source_loss(migrate.source_loss);
  }
  migrate.max_bandwidth = size_of("--max-bandwidth", texts.max_bandwidth);
  migrate.max_postcopy_bandwidth =
      size_of("--max-postcopy-bandwidth", texts.max_postcopy_bandwidth);
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
  declare_run(*app.add_subcommand("run", "Starts a virtual machine, or waits for one to arrive"),
              run, run_texts);
  MigrateArguments migrate;
  MigrateTexts migrate_texts;
  declare_migrate(*app.add_subcommand("migrate", "Moves a guest between two running machines"),
                  migrate, migrate_texts);
  StatusArguments status;
  auto* status_app = app.add_subcommand("status", "Says how a machine and its migration are");
  status_app->add_option("QMP", status.qmp, "QMP socket of the machine")->required();
  status_app->add_flag("--json", status.json, "As one JSON object");
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
      *app.add_subcommand("page-server", "Holds a guest's memory when its process dies"), server,
      server_texts);

  std::vector<std::string> reversed(words.rbegin(), words.rend());  // As CLI11 wants them.
  try {
    app.parse(reversed);
    if (app.got_subcommand("run")) {
      // An empty address is a mistake, not the absence of one.
      finish_run(run, run_texts, app.get_subcommand("run")->count("--incoming") > 0);
      return Arguments(std::move(run));
    }
    if (app.got_subcommand("migrate")) {
      finish_migrate(migrate, migrate_texts);
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
