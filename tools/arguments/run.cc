#include "tools/arguments/run.h"

#include <fmt/format.h>

#include "base/units.h"
#include "runtime/options.h"
#include "tools/arguments/checks.h"

#include <CLI/CLI.hpp>

namespace towline::tools {
namespace {

constexpr const char* kRunFooter = R"(Examples:
  towline run --kernel guest.elf --append 'pattern=random' --memory 512M --vcpus 2
  towline run --incoming tcp:127.0.0.1:4444 --memory 512M --vcpus 2 --qmp unix:/tmp/b.qmp
  towline run --incoming tcp:0.0.0.0:4444 --secret /etc/towline/secret --memory 512M

Exit status:
  0  the guest powered off, or 'quit' or a signal was obeyed
  1  it could not start, or an incoming migration failed
  2  wrong command line
  3  the guest was given up because the source of its memory was lost

SIGINT, SIGTERM and SIGHUP are refused while ending would lose a guest, however many come. To end the
process then, use 'quit' with "x-force": true.)";

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

}  // namespace

void declare_run(CLI::App& app, RunArguments& run, RunTexts& texts) {
  app.add_option("--kernel", run.machine.kernel,
                 "PVH ELF to boot. With --incoming only system_reset boots it.")
      ->type_name("FILE");
  app.add_option("--append", run.machine.append, "Kernel command line")->type_name("TEXT");
  app.add_option("--initrd", run.machine.initrd, "Initial RAM disk")->type_name("FILE");
  app.add_option("--memory", texts.memory, "Guest memory, such as 512M or 2G. Default: 256M.")
      ->type_name("SIZE");
  app.add_option("--memory-backing", texts.backing,
                 "memfd, or hugetlb (huge pages of 2 MiB). Default: memfd.")
      ->type_name("KIND");
  app.add_option(
         "--memory-path", run.machine.memory_path,
         "Put guest memory into this file, or into a nameless file in this folder, on a tmpfs")
      ->check([](const std::string& path) {
        return path.empty() ? std::string("'' is no path; use a file or a folder on a tmpfs")
                            : std::string();
      })
      ->type_name("PATH");
  app.add_option("--vcpus", run.machine.vcpus, "Virtual CPUs. Default: 1.")->type_name("N");
  app.add_option(
         "--cpu", texts.cpu,
         "host, or host,-FEATURE,… to hide features that another host lacks. Default: host.")
      ->type_name("MODEL");
  app.add_option("--serial", run.machine.serial,
                 "Where COM1 goes: stdio, file:PATH, unix:PATH or none. Default: stdio.")
      ->type_name("WHERE");
  app.add_option("--qmp", texts.qmp,
                 "Control socket unix:PATH[,events=off]; may be given several times")
      ->type_name("SOCKET");
  app.add_option("--monitor", texts.monitors,
                 "Socket unix:PATH where people type QEMU's commands (info migrate, help); may be "
                 "given several times")
      ->type_name("SOCKET");
  app.add_option("--incoming", run.incoming,
                 "Wait for a guest at tcp:HOST:PORT or unix:PATH, or, with defer, at the address "
                 "that migrate-incoming gives")
      ->type_name("URI");
  app.add_option("--secret", run.secret_file,
                 "File with the secret that both ends of a migration prove to each other")
      ->type_name("FILE");
  texts.parameters.declare(app);
  app.add_option(
         "--page-server-qmp", run.page_server_qmp,
         "Control socket unix:PATH of the page server that this process starts. Default: the "
         "first --qmp path with .pages appended.")
      ->type_name("SOCKET");
  app.add_flag("--allow-unprotected", run.allow_unprotected,
               "Listen beyond this host without a secret");
  app.add_flag("--paused", run.machine.start_paused, "Do not run the guest until 'cont'");
  app.add_option("--name", run.machine.name, "Name of the machine. Default: towline.")
      ->type_name("NAME");
  app.add_option("--log-level", texts.level, "debug, info, warning or error. Default: info.")
      ->type_name("LEVEL");
  app.footer(kRunFooter);
}

void finish_run(RunArguments& run, const RunTexts& texts, bool incoming) {
  run.machine.incoming = incoming;
  check_name(run.machine.name);
  check_memory(run, texts.memory, texts.backing);
  check_serial(run.machine.serial);
  run.machine.hidden_features = hidden_features(texts.cpu);
  for (const auto& text : texts.qmp) {
    run.qmp.push_back(parse_qmp(text));
  }
  for (const auto& text : texts.monitors) {
    run.monitors.push_back(unix_path("--monitor", text));
  }
  for (const auto& setting : texts.parameters.settings()) {
    static_cast<void>(set_parameter(run.options, *setting.parameter, setting.value));  // Checked.
  }
  run.page_server_qmp = unix_path("--page-server-qmp", run.page_server_qmp);
  for (const QmpSocket& socket : run.qmp) {
    if (socket.path == run.page_server_qmp) {
      complain("--page-server-qmp", run.page_server_qmp, "--qmp is there; use another path");
    }
  }
  if (run.machine.vcpus == 0) {
    complain("--vcpus", "0", "a machine has at least one");
  }
  if (run.machine.incoming && run.incoming != "defer") {
    check_uri("--incoming", run.incoming);
  }
  if (!run.machine.incoming && run.machine.kernel.empty()) {
    throw CLI::RequiredError("--kernel FILE (what to boot) or --incoming URI (wait for a guest)");
  }
  if (run.incoming == "defer" && run.qmp.empty() && run.monitors.empty()) {
    throw CLI::RequiredError(
        "--qmp unix:PATH or --monitor unix:PATH, because --incoming defer waits for "
        "migrate-incoming");
  }
  run.log_level = log_level(texts.level);
}

}  // namespace towline::tools
