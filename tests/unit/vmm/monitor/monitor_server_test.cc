#include "vmm/monitor/monitor_server.h"

#include <sys/stat.h>
#include <unistd.h>

#include <list>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/unit/vmm/monitor/fakes.h"

namespace towline::monitor {
namespace {

/// A server over fakes.
struct Served {
  Served() { REQUIRE(server.listen(folder.file("qmp"), Speaks::kQmp).ok()); }

  Client client() { return {*desk.loop, folder.file("qmp")}; }

  Folder folder;
  Desk desk;

  class : public Quitter {
    base::Outcome quit(bool /*force*/) override { return base::Done{}; }
  } quitter;

  CommandContext context{desk.guest, desk.migration, quitter};
  MonitorServer server{*desk.loop, context};
};

constexpr const char* kStatus = R"({"execute": "query-status"})";

TEST_CASE("clients of one socket talk side by side") {
  Served served;
  std::list<Client> clients;
  for (int i = 0; i < 10; ++i) {
    clients.emplace_back(*served.desk.loop, served.folder.file("qmp")).ready();
  }
  for (auto& client : clients) {
    CHECK(client.ask(kStatus).find("return") != nullptr);
  }
}

TEST_CASE("several sockets serve at once, one of them without events") {
  Served served;
  REQUIRE(served.server.listen(served.folder.file("quiet"), Speaks::kQmpWithoutEvents).ok());
  Client loud = served.client();
  Client quiet(*served.desk.loop, served.folder.file("quiet"));
  loud.ready();
  quiet.ready();
  served.server.broadcast("STOP", Json());
  CHECK(loud.heard() == std::vector<std::string>{"STOP"});
  CHECK(quiet.heard().empty());
}

TEST_CASE("a client that closes, in whatever state, harms no other") {
  Served served;
  Client stays = served.client();
  stays.ready();
  for (const std::string last : {"", "{\"execu", "garbage", R"({"execute": "query-status"})"}) {
    Client goes = served.client();
    goes.send(last);
    goes.close();
    CHECK(stays.ask(kStatus).find("return") != nullptr);
  }
}

TEST_CASE("a client that has ended its side still gets all its answers") {
  Served served;
  Client client = served.client();
  client.send(std::string(R"({"execute": "qmp_capabilities"})") + kStatus);
  ::shutdown(client.fd(), SHUT_WR);
  int lines = 0;
  while (client.line()) {
    ++lines;
  }
  CHECK(lines == 3);
}

TEST_CASE("what a client sent before it went is obeyed, though no answer reaches it") {
  Served served;
  Client goes = served.client();
  goes.ready();
  goes.send(kStatus);
  ::shutdown(goes.fd(), SHUT_RD);
  run_posted(*served.desk.loop);
  Client::turn(*served.desk.loop);  // The answer cannot be sent.
  goes.send(R"({"execute": "stop"})");
  goes.close();
  Client::turn(*served.desk.loop);
  Client stays = served.client();
  stays.ready();
  CHECK(served.desk.guest.orders == std::vector<std::string>{"stop"});
}

TEST_CASE("a client that does not read is dropped, and no other waits for it") {
  Served served;
  Client deaf = served.client();
  Client other = served.client();
  other.ready();
  deaf.send(R"({"execute": "qmp_capabilities"})");
  std::string many;
  for (int i = 0; i < 100; ++i) {
    many += R"({"execute": "query-commands"})";
  }
  bool dropped = false;
  // Each batch asks for 100 KB; the socket holds some of it, the queue one mebibyte.
  for (int batch = 0; batch < 1000 && !dropped; ++batch) {
    dropped = ::send(deaf.fd(), many.data(), many.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 &&
              errno != EAGAIN;
    CHECK(other.ask(kStatus).find("return") != nullptr);
  }
  CHECK(dropped);
}

TEST_CASE("a client that is merely slow gets every answer") {
  Served served;
  Client slow = served.client();
  slow.ready();
  std::string many;
  for (int i = 0; i < 300; ++i) {
    many += R"({"execute": "query-commands"})";
  }
  slow.send(many);  // More than a socket holds, less than what is queued.
  for (int i = 0; i < 50; ++i) {
    Client::turn(*served.desk.loop);
  }
  for (int i = 0; i < 300; ++i) {
    CHECK(slow.read().find("return") != nullptr);
  }
}

TEST_CASE("only so many clients are served at a time, and one that goes makes room") {
  Served served;
  std::list<Client> clients;
  for (std::size_t i = 0; i < kMaxClients; ++i) {
    clients.emplace_back(*served.desk.loop, served.folder.file("qmp")).ready();
  }
  Client late = served.client();
  CHECK_FALSE(late.line());
  clients.pop_front();
  CHECK(clients.back().ask(kStatus).find("return") != nullptr);
  Client next = served.client();
  CHECK(next.read().find("QMP") != nullptr);
}

TEST_CASE("the socket belongs to its user alone and goes with the server") {
  Folder folder;
  Desk desk;

  class : public Quitter {
    base::Outcome quit(bool /*force*/) override { return base::Done{}; }
  } quitter;

  CommandContext context{desk.guest, desk.migration, quitter};
  const std::string path = folder.file("qmp");
  {
    MonitorServer server(*desk.loop, context);
    REQUIRE(server.listen(path, Speaks::kQmp).ok());

    struct stat there {};

    REQUIRE(::stat(path.c_str(), &there) == 0);
    CHECK((there.st_mode & 0777U) == 0600U);
  }
  CHECK(::access(path.c_str(), F_OK) != 0);
}

TEST_CASE("a socket in use is not taken over, one left behind is") {
  Served served;
  MonitorServer second(*served.desk.loop, served.context);
  const auto taken = second.listen(served.folder.file("qmp"), Speaks::kQmp);
  REQUIRE_FALSE(taken.ok());
  CHECK(has(taken.error().detail, served.folder.file("qmp")));
  CHECK(has(taken.error().detail, "in use"));
  Client client = served.client();
  CHECK(client.read().find("QMP") != nullptr);

  {
    const Folder& folder = served.folder;
    const base::OwnedFd left(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = folder.file("left");
    std::copy(path.begin(), path.end(), std::begin(address.sun_path));
    REQUIRE(::bind(left.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  }
  CHECK(second.listen(served.folder.file("left"), Speaks::kQmp).ok());
}

TEST_CASE("a place where no socket can be is named") {
  Served served;
  const auto nowhere = served.server.listen("/nowhere/qmp", Speaks::kQmp);
  REQUIRE_FALSE(nowhere.ok());
  CHECK(has(base::to_string(nowhere.error()), "'/nowhere/qmp'"));
  CHECK(has(base::to_string(nowhere.error()), "No such file"));
  CHECK_FALSE(served.server.listen(std::string(200, 'x'), Speaks::kQmp).ok());
  CHECK_FALSE(served.server.listen("", Speaks::kQmp).ok());
}

}  // namespace
}  // namespace towline::monitor
