#include "tools/arguments/parse.h"

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/parameters.h"

namespace towline::tools {
namespace {

using Words = std::vector<std::string>;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

template <typename T>
T good(const Words& words) {
  auto result = parse_arguments(words);
  REQUIRE_MESSAGE(result.ok(), result.error().text);
  REQUIRE(std::holds_alternative<T>(result.value()));
  return std::get<T>(std::move(result).value());
}

/// The complaint; `parts` must be in it.
std::string bad(const Words& words, const Words& parts = {}) {
  const auto result = parse_arguments(words);
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().code == 2);
  for (const auto& part : parts) {
    CHECK_MESSAGE(has(result.error().text, part), result.error().text << " lacks " << part);
  }
  CHECK(has(result.error().text, "--help"));
  return result.error().text;
}

/// `towline run` with a kernel and these.
Words run_with(const Words& more) {
  Words words{"run", "--kernel", "guest.elf"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

/// What a parameter is set to; `given`: by the user.
std::string value_of(const MigrateArguments& migrate, const std::string& name, bool given = true) {
  for (const auto& one : migrate.parameters) {
    if (one.parameter->name == name && (one.given || !given)) {
      return to_string(*one.parameter, one.value);
    }
  }
  return "not set";
}

TEST_CASE("help is shown for each subcommand, with examples") {
  for (const Words& words : {Words{"--help"}, Words{"run", "--help"}, Words{"migrate", "--help"},
                             Words{"qmp", "--help"}, Words{"page-server", "--help"}}) {
    const auto result = parse_arguments(words);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == 0);
    CHECK(has(result.error().text, "xample"));
    CHECK(has(result.error().text, "towline run") ==
          (words.size() == 1 || words[0] == "run" || words[0] == "page-server"));
  }
}

TEST_CASE("a name that would break lines of the log is refused, in one line") {
  for (const std::string name : {"a\nb", "a\rb", "\x1b[31mred", "a\tb", "a\x7f", "a\xc2\x9b"}) {
    const std::string said = bad(run_with({"--name", name}), {"--name", "control characters"});
    CHECK_FALSE(has(said, name));
    bad({"page-server", "--listen", "unix:/a", "--name", name}, {"--name", "control characters"});
  }
  CHECK(has(bad(run_with({"--name", "a\nb"})), "'a\\x0ab'"));
  CHECK(good<RunArguments>(run_with({"--name", "M\xc3\xbcller's vm-1"})).machine.name ==
        "M\xc3\xbcller's vm-1");
}

TEST_CASE("a machine's description is read from the command line") {
  // clang-format off
  const auto run = good<RunArguments>(
      {"run", "--kernel", "k", "--append", "a b", "--initrd", "i", "--memory", "2G", "--vcpus", "3",
       "--cpu", "host,-avx2,-fma", "--serial", "file:/s", "--qmp", "unix:/a",
       "--qmp", "unix:/b,events=off", "--name", "vm1", "--secret", "f", "--allow-unprotected",
       "--paused", "--log-level", "debug"});
  // clang-format on
  CHECK(run.machine.kernel == "k");
  CHECK(run.machine.append == "a b");
  CHECK(run.machine.initrd == "i");
  CHECK(run.machine.memory.value == 2UL << 30U);
  CHECK(run.machine.backing == runtime::Backing::kMemfd);
  CHECK(run.machine.vcpus == 3);
  CHECK(run.machine.hidden_features == Words{"avx2", "fma"});
  CHECK(run.machine.serial == "file:/s");
  CHECK(run.machine.name == "vm1");
  CHECK(run.machine.start_paused);
  CHECK_FALSE(run.machine.incoming);
  CHECK(run.secret_file == "f");
  CHECK(run.allow_unprotected);
  CHECK(run.log_level == base::LogLevel::kDebug);
  REQUIRE(run.qmp.size() == 2);
  CHECK(run.qmp[0].path == "/a");
  CHECK(run.qmp[0].events);
  CHECK(run.qmp[1].path == "/b");
  CHECK_FALSE(run.qmp[1].events);
}

TEST_CASE("a machine that waits for a guest needs no kernel") {
  const auto run = good<RunArguments>({"run", "--incoming", "defer", "--qmp", "unix:/q"});
  CHECK(run.machine.incoming);
  CHECK(run.incoming == "defer");
  CHECK(good<RunArguments>({"run", "--incoming", "tcp:[::1]:0"}).machine.incoming);
}

TEST_CASE("what is missing is named") {
  bad({}, {"subcommand"});
  bad({"run"}, {"--kernel", "--incoming"});
  bad({"run", "--incoming", "defer"}, {"--qmp", "defer"});
  bad({"migrate"}, {"SOURCE_QMP"});
  bad({"migrate", "/a"}, {"TARGET_QMP"});
  bad({"status"}, {"QMP"});
  bad({"qmp", "/a"}, {"COMMAND"});
  bad({"run", "--kernel"}, {"--kernel"});
}

TEST_CASE("what is unknown is named") {
  bad({"fly"}, {"fly"});
  bad(run_with({"--colour", "red"}), {"--colour"});
  bad(run_with({"extra"}), {"extra"});
}

TEST_CASE("guest memory is on huge pages when that is asked for") {
  const auto run =
      good<RunArguments>({"run", "--kernel", "k", "--memory", "2G", "--memory-backing", "hugetlb"});
  CHECK(run.machine.backing == runtime::Backing::kHugetlb);
}

TEST_CASE("a bad value is named with what would be good") {
  bad(run_with({"--memory", "lots"}), {"--memory", "'lots'", "512M"});
  bad(run_with({"--memory", "0"}), {"--memory", "'0'", "4096"});
  bad(run_with({"--memory", "5000"}), {"--memory", "'5000'", "4096"});
  bad(run_with({"--memory", "-1"}), {"--memory"});
  bad(run_with({"--source-loss", "forget"}), {"forget", "wait", "poison", "give-up"});
  bad(run_with({"--source-loss-deadline", "0"}), {"--source-loss-deadline", "1 to"});
  bad({"migrate", "/a", "/b", "--source-loss-deadline", "0"}, {"--source-loss-deadline", "1 to"});
  bad(run_with({"--source-loss-deadline", "4294967295"}), {"--source-loss-deadline", "1 to"});
  bad(run_with({"--memory-path", ""}), {"--memory-path", "tmpfs"});
  bad(run_with({"--memory-backing", "hugetlb", "--memory", "5M"}), {"--memory", "'5M'", "use 6M"});
  bad(run_with({"--memory-backing", "hugetlb", "--memory-path", "/dev/shm"}),
      {"--memory-path", "/dev/shm", "hugetlb"});
  bad(run_with({"--memory-backing", "anonymous"}), {"anonymous", "not built", "memfd"});
  bad(run_with({"--memory-backing", "paper"}), {"paper", "memfd"});
  bad(run_with({"--vcpus", "0"}), {"--vcpus", "'0'"});
  bad(run_with({"--vcpus", "two"}), {"--vcpus", "two"});
  bad(run_with({"--cpu", "qemu64"}), {"--cpu", "'qemu64'", "host"});
  bad(run_with({"--cpu", "host,avx2"}), {"--cpu", "'avx2'", "-FEATURE"});
  bad(run_with({"--serial", "tcp:1"}), {"--serial", "'tcp:1'", "stdio"});
  bad(run_with({"--serial", "file:"}), {"--serial", "file:PATH"});
  bad(run_with({"--qmp", "/a"}), {"--qmp", "'/a'", "unix:PATH"});
  bad(run_with({"--qmp", "unix:"}), {"--qmp", "missing"});
  bad(run_with({"--qmp", "unix:/a,colour=red"}), {"colour=red", "events=off"});
  bad(run_with({"--log-level", "loud"}), {"'loud'", "debug"});
  bad(run_with({"--page-server", "other"}), {"--page-server", "'other'", "unix:PATH", "own"});
  bad(run_with({"--page-server", "unix:"}), {"--page-server", "own", "scope"});
  bad(run_with({"--incoming", ""}), {"--incoming"});
  bad(run_with({"--incoming", "tcp:host"}), {"--incoming", "tcp:HOST:PORT", "tcp:host"});
  bad({"migrate", "/a", "/b", "--switch", "later"}, {"--switch", "'later'", "after-pass"});
  bad({"migrate", "/a", "/b", "--passes", "17"}, {"--passes", "17"});
  bad({"migrate", "/a", "/b", "--alternate", "here"}, {"--alternate", "here"});
  bad({"migrate", "/a", "/b", "--bulk-lanes", "0"}, {"--bulk-lanes", "1 to 16"});
  bad({"migrate", "/a", "/b", "--max-bandwidth", "fast"}, {"--max-bandwidth", "'fast'"});
  bad({"migrate", "/a", "/b", "--via", "ftp:x"}, {"--via", "tcp:HOST:PORT"});
}

TEST_CASE("a page server listens, or serves the one source that it was started by") {
  const auto daemon = good<PageServerArguments>(
      {"page-server", "--listen", "unix:/run/a", "--qmp", "unix:/run/a.qmp", "--name", "vm1"});
  CHECK(daemon.listen == "/run/a");
  CHECK(daemon.socket_fd == -1);
  CHECK(daemon.qmp[0].path == "/run/a.qmp");
  CHECK(daemon.name == "vm1");
  CHECK(good<PageServerArguments>({"page-server", "--socket-fd", "3"}).socket_fd == 3);
  bad({"page-server"}, {"--listen"});
  bad({"page-server", "--listen", "tcp:127.0.0.1:3"},
      {"--listen", "'tcp:127.0.0.1:3'", "unix:PATH"});
  bad({"page-server", "--listen", "unix:/a", "--qmp", "unix:/a"},
      {"--qmp", "'unix:/a'", "--listen"});
  bad({"page-server", "--listen", "unix:/a", "--socket-fd", "3"}, {"--listen"});
}

TEST_CASE("a machine says who holds its memory when it dies in post-copy") {
  using Kind = runtime::PageServerChoice::Kind;
  CHECK(good<RunArguments>(run_with({})).options.page_server.kind == Kind::kNone);
  const auto own = good<RunArguments>(
      run_with({"--page-server", "own", "--page-server-qmp", "unix:/run/pages.qmp"}));
  CHECK(own.options.page_server.kind == Kind::kOwn);
  CHECK(own.page_server_qmp == "/run/pages.qmp");
  bad(run_with({"--page-server-qmp", "pages"}), {"--page-server-qmp", "'pages'", "unix:PATH"});
  bad(run_with({"--qmp", "unix:/a", "--page-server-qmp", "unix:/a"}),
      {"--page-server-qmp", "--qmp"});
  CHECK(good<RunArguments>(run_with({"--page-server", "scope"})).options.page_server.kind ==
        Kind::kScope);
  const auto daemon = good<RunArguments>(run_with({"--page-server", "unix:/run/a"}));
  CHECK(daemon.options.page_server.kind == Kind::kDaemon);
  CHECK(daemon.options.page_server.path == "/run/a");
}

TEST_CASE("QEMU's options for a control socket are understood where they say the same") {
  const auto run = good<RunArguments>(run_with({"--qmp", "unix:/a,server=on,wait=off"}));
  CHECK(run.qmp[0].path == "/a");
  bad(run_with({"--qmp", "unix:/a,wait=on"}), {"wait=on"});
}

TEST_CASE("a move is described by two sockets and how to go about it") {
  const auto plain = good<MigrateArguments>({"migrate", "/a", "unix:/b"});
  CHECK(plain.source == "/a");
  CHECK(plain.target == "/b");
  CHECK(value_of(plain, "x-towline-switch", false) == "after-pass");
  CHECK(value_of(plain, "max-bandwidth", false) == "0");
  CHECK(value_of(plain, "x-towline-passes", false) == "1");
  CHECK(value_of(plain, "x-towline-passes") == "not set");
  CHECK(value_of(plain, "x-towline-source-loss", false) == "not set");
  CHECK_FALSE(plain.json);
  const auto all = good<MigrateArguments>({"migrate",     "/a",
                                           "/b",          "--via",
                                           "tcp:h:0",     "--switch",
                                           "immediate",   "--passes",
                                           "0",           "--bulk-lanes",
                                           "16",          "--max-bandwidth",
                                           "1M",          "--max-postcopy-bandwidth",
                                           "2M",          "--json",
                                           "--alternate", "tcp:h:1",
                                           "--alternate", "unix:/c"});
  CHECK(value_of(all, "x-towline-alternates") == "[tcp:h:1, unix:/c]");
  CHECK(all.via == "tcp:h:0");
  CHECK(value_of(all, "x-towline-switch") == "immediate");
  CHECK(value_of(all, "x-towline-passes") == "0");
  CHECK(value_of(all, "x-towline-bulk-lanes") == "16");
  CHECK(value_of(all, "max-bandwidth") == "1 MiB/s");
  CHECK(value_of(all, "max-postcopy-bandwidth") == "2 MiB/s");
  CHECK(all.json);
}

/// `towline COMMAND` with whatever else it needs, and these.
Words whole_line(const std::string& command, const Words& more) {
  Words words = command == "run" ? run_with({}) : Words{command, "/a", "/b"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST_CASE("every option that stands for a parameter is helped with and kept within its range") {
  using Parameter = runtime::Parameter;
  std::size_t seen = 0;
  for (const Parameter& one : runtime::parameters()) {
    for (const Parameter::On command : {Parameter::On::kRun, Parameter::On::kMigrate}) {
      const std::string name = command == Parameter::On::kRun ? "run" : "migrate";
      const std::string option(one.option);
      const auto help = parse_arguments({name, "--help"});
      const bool takes = one.on == command || one.on == Parameter::On::kRunAndMigrate;
      if (!takes) {
        CHECK_MESSAGE((option.empty() || !has(help.error().text, option + ' ')), option);
        continue;
      }
      ++seen;
      CHECK_MESSAGE(has(help.error().text, option + ' '), option);
      CHECK_MESSAGE(has(help.error().text, std::string(one.help)), option);
      bad(whole_line(name, {option, ""}), {option, "use "});
      bad(whole_line(name, {option, "-"}), {option});
      bad(whole_line(name, {option}), {option});
      if (one.place.type == Parameter::Type::kNumber) {
        CHECK(parse_arguments(whole_line(name, {option, std::to_string(one.least)})).ok());
        CHECK(parse_arguments(whole_line(name, {option, std::to_string(one.most)})).ok());
      }
      if (one.least > 0) {
        bad(whole_line(name, {option, std::to_string(one.least - 1)}), {option, permitted(one)});
      }
      if (one.place.type == Parameter::Type::kNumber && one.most + 1 != 0) {
        bad(whole_line(name, {option, std::to_string(one.most + 1)}), {option, permitted(one)});
      }
      for (const std::string_view choice : one.place.choices) {
        CHECK(parse_arguments(whole_line(name, {option, std::string(choice)})).ok());
        CHECK(has(help.error().text, std::string(choice)));
      }
    }
  }
  CHECK(seen > 0);
}

TEST_CASE("the parameters of a machine begin as its command line says") {
  const auto run = good<RunArguments>(run_with(
      {"--source-loss", "give-up", "--source-loss-deadline", "7", "--page-server", "own"}));
  CHECK(run.options.source_loss == runtime::SourceLoss::kGiveUp);
  CHECK(run.options.source_loss_deadline == std::chrono::seconds(7));
  CHECK(run.options.page_server.kind == runtime::PageServerChoice::Kind::kOwn);
  CHECK(run.options.max_bandwidth == runtime::MigrationOptions{}.max_bandwidth);
}

TEST_CASE("a QMP command takes words or one object") {
  CHECK(good<QmpArguments>({"qmp", "/a", "query-status"}).arguments.is_null());
  CHECK(good<QmpArguments>({"qmp", "/a", "c", "a=1", "b=x", "c=[true]", "d=", "e=1.5G", "f=a=b"})
            .arguments.dump() ==
        R"({"a": 1, "b": "x", "c": [true], "d": "", "e": "1.5G", "f": "a=b"})");
  CHECK(good<QmpArguments>({"qmp", "/a", "c", R"({"uri": "x"})"}).arguments.dump() ==
        R"({"uri": "x"})");
  bad({"qmp", "/a", "c", "{broken"}, {"{broken"});
  bad({"qmp", "/a", "c", "{}", "{}"}, {"one JSON object"});
  bad({"qmp", "/a", "c", "word"}, {"'word'", "NAME=VALUE"});
}

TEST_CASE("sizes are numbers with or without a unit") {
  CHECK(parse_size("0") == 0U);
  CHECK(parse_size("4096") == 4096U);
  CHECK(parse_size("1K") == 1024U);
  CHECK(parse_size("3M") == 3U << 20U);
  CHECK(parse_size("2GiB") == 2UL << 30U);
  CHECK(parse_size("1T") == 1UL << 40U);
  CHECK(parse_size("16777215T") == 16777215UL << 40U);
  for (const std::string text : {"", "G", "-1", "1.5G", "1 G", "12Q", "1GG", "16777216T",
                                 "18446744073709551616", "1000000000000000000000G", "0x10"}) {
    CHECK_FALSE_MESSAGE(parse_size(text), text);
  }
}

}  // namespace
}  // namespace towline::tools
