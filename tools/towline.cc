#include <csignal>
#include <cstdio>
#include <variant>

#include "base/last_words.h"
#include "tools/arguments/parse.h"
#include "tools/client/migrate.h"
#include "tools/client/query.h"
#include "tools/page_server.h"
#include "tools/process.h"
#include "tools/run.h"

namespace towline::tools {
namespace {

int start(const RunArguments& arguments) {
  return run(arguments);
}

int start(const MigrateArguments& arguments) {
  return migrate(arguments);
}

int start(const StatusArguments& arguments) {
  return status(arguments);
}

int start(const QmpArguments& arguments) {
  return qmp(arguments);
}

int start(const PageServerArguments& arguments) {
  return page_server(arguments);
}

}  // namespace
}  // namespace towline::tools

// std::visit can only throw over a variant without a value, and there is none.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  using namespace towline::tools;  // NOLINT(google-build-using-namespace): main() is theirs.
  prepare_process();
  std::signal(SIGPIPE, SIG_IGN);  // Who reads what is said may leave; the move goes on.
  towline::base::install_terminate_handler();
  const auto arguments = parse_arguments({argv + 1, argv + argc});
  if (!arguments.ok()) {
    std::fputs(arguments.error().text.c_str(), arguments.error().code == 0 ? stdout : stderr);
    return arguments.error().code;
  }
  return std::visit([](const auto& chosen) { return start(chosen); }, arguments.value());
}
