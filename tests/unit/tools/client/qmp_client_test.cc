#include "tools/client/qmp_client.h"

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "tests/unit/vmm/monitor/fakes.h"
#include "vmm/monitor/monitor_server.h"

namespace towline::tools {
namespace {

using monitor::has;
using monitor::Json;

/// A real server over fakes, on a thread of its own.
class Server {
 public:
  Server() {
    REQUIRE(server_.listen(path(), monitor::Speaks::kQmp).ok());
    thread_ = std::thread([this] { desk_.loop->run(); });
  }

  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  ~Server() {
    desk_.loop->stop();
    thread_.join();
  }

  [[nodiscard]] std::string path() const { return folder_.file("qmp"); }

  void tell(const char* event) {
    desk_.loop->post([this, event] { server_.broadcast(event, Json()); });
  }

  /// Calls `ask` while nothing is read here.
  base::Expected<Json> while_it_sleeps(const std::function<base::Expected<Json>()>& ask) {
    // Shared: the loop's thread is still inside set_value() when this one goes on.
    const auto asleep = std::make_shared<std::promise<void>>();
    std::promise<void> awake;
    desk_.loop->post([asleep, until = awake.get_future().share()] {
      asleep->set_value();
      until.wait();
    });
    asleep->get_future().wait();
    auto answer = ask();
    awake.set_value();
    return answer;
  }

  void hang_up() {
    std::promise<void> done;
    desk_.loop->post([this, &done] {
      server_.close();
      done.set_value();
    });
    done.get_future().wait();
  }

 private:
  monitor::Folder folder_;
  monitor::Desk desk_;

  class : public monitor::Quitter {
    base::Outcome quit(bool /*force*/) override { return base::Done{}; }
  } quitter_;

  monitor::CommandContext context_{desk_.guest, desk_.migration, quitter_};
  monitor::MonitorServer server_{*desk_.loop, context_};
  std::thread thread_;
};

TEST_CASE("a client gets the answers to its commands, whatever events come in between") {
  Server server;
  auto client = QmpClient::connect(server.path());
  REQUIRE(client.ok());
  for (int i = 0; i < 20; ++i) {
    server.tell("STOP");
    const auto answer = client.value().execute("query-status");
    REQUIRE(answer.ok());
    CHECK(monitor::text_of(answer.value(), "status") == "running");
  }
}

TEST_CASE("a refusal arrives in the machine's own words") {
  Server server;
  auto client = QmpClient::connect(server.path());
  REQUIRE(client.ok());
  const auto refused = client.value().execute("migrate", Json::object({{"uri", "tcp:host"}}));
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().kind == base::ErrorKind::kRefused);
  CHECK(has(refused.error().detail, "the port is missing"));
  CHECK(client.value().execute("query-status").ok());
}

TEST_CASE("a machine that went away is named by its socket") {
  Server server;
  auto client = QmpClient::connect(server.path());
  REQUIRE(client.ok());
  server.hang_up();
  const auto lost = client.value().execute("query-status");
  REQUIRE_FALSE(lost.ok());
  CHECK(lost.error().kind == base::ErrorKind::kDisconnected);
  CHECK(has(lost.error().detail, server.path()));
}

TEST_CASE("a machine that has all the clients that it takes is not called gone") {
  Server server;
  std::vector<QmpClient> clients;
  for (int i = 0; i < 64; ++i) {
    auto client = QmpClient::connect(server.path());
    REQUIRE(client.ok());
    clients.push_back(std::move(client).value());
  }
  const auto refused = QmpClient::connect(server.path());
  REQUIRE_FALSE(refused.ok());
  CHECK(has(refused.error().detail, server.path()));
  CHECK(has(refused.error().detail, "64"));
}

TEST_CASE("a machine that says nothing in time is silent, and its late answer no other's") {
  Server server;
  auto client = QmpClient::connect(server.path());
  REQUIRE(client.ok());
  client.value().set_patience(std::chrono::seconds(0));
  const auto silent = server.while_it_sleeps([&] { return client.value().execute("query-name"); });
  REQUIRE_FALSE(silent.ok());
  CHECK(silent.error().kind == base::ErrorKind::kOverloaded);
  CHECK(has(silent.error().detail, server.path()));
  client.value().set_patience(std::chrono::seconds(10));
  const auto answer = client.value().execute("query-status");
  REQUIRE(answer.ok());
  CHECK(monitor::text_of(answer.value(), "status") == "running");
}

TEST_CASE("a socket where nobody answers is named, with where it comes from") {
  const auto nobody = QmpClient::connect("/nowhere/qmp");
  REQUIRE_FALSE(nobody.ok());
  CHECK(has(base::to_string(nobody.error()), "'/nowhere/qmp'"));
  CHECK(has(base::to_string(nobody.error()), "No such file"));
  CHECK_FALSE(QmpClient::connect(std::string(300, 'x')).ok());
}

}  // namespace
}  // namespace towline::tools
