#include "runtime/options.h"

#include <string>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

Uri parsed(const std::string& text) {
  auto uri = Uri::parse(text);
  REQUIRE_MESSAGE(uri.ok(), text);
  return std::move(uri).value();
}

std::string refusal(const std::string& text) {
  const auto uri = Uri::parse(text);
  REQUIRE_FALSE_MESSAGE(uri.ok(), text);
  CHECK(uri.error().kind == base::ErrorKind::kRefused);
  return uri.error().detail;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("the three forms of an address are read and written back unchanged") {
  for (const std::string text :
       {"tcp:127.0.0.1:4444", "tcp:host.example:0", "tcp:[::1]:65535", "tcp:[fe80::1%eth0]:1",
        "unix:/run/vm one.sock", "unix:relative.sock"}) {
    CHECK(parsed(text).to_string() == text);
  }
  CHECK(parsed("tcp:[::1]:5").host == "::1");
  CHECK(parsed("tcp:[::1]:5").port == 5);
  CHECK(parsed("unix:/a:b").path == "/a:b");
}

TEST_CASE("an empty host means every address, as in QEMU") {
  CHECK(parsed("tcp::4444").to_string() == "tcp:0.0.0.0:4444");
}

TEST_CASE("a bad address is refused with its value and the forms that work") {
  for (const std::string text : {"",
                                 "tcp",
                                 "tcp:",
                                 "tcp:host",
                                 "tcp:host:",
                                 "tcp:host:x",
                                 "tcp:host:-1",
                                 "tcp:host:65536",
                                 "tcp:host:1x",
                                 "tcp:host: 1",
                                 "tcp:::1:5",
                                 "tcp:[::1]",
                                 "tcp:[::1:5",
                                 "tcp:[host]:5",
                                 "tcp:a b:5",
                                 "tcp:a\nb:5",
                                 "tcp:host:5,ipv4=on",
                                 "unix:",
                                 "exec:cat",
                                 "TCP:host:1",
                                 "fd:3"}) {
    const std::string said = refusal(text);
    CHECK_MESSAGE(has(said, "tcp:HOST:PORT"), said);
    CHECK_MESSAGE(has(said, "unix:PATH"), said);
  }
  CHECK(has(refusal("tcp:host:65536"), "'65536'"));
  CHECK(has(refusal("exec:cat"), "unknown migration protocol: exec:cat"));
  CHECK(has(refusal("tcp:host"), "the port is missing"));
  CHECK(has(refusal("tcp:::1:5"), "brackets"));
}

TEST_CASE("lengths are limited to what a resolver and a socket can hold") {
  CHECK(parsed("tcp:" + std::string(255, 'h') + ":1").host.size() == 255);
  CHECK(has(refusal("tcp:" + std::string(256, 'h') + ":1"), "255"));
  CHECK(parsed("unix:" + std::string(107, 'p')).path.size() == 107);
  CHECK(has(refusal("unix:" + std::string(108, 'p')), "107"));
}

TEST_CASE("a path with a control character is refused, and not shown") {
  for (const std::string& path : {std::string("a\0b", 3), std::string("a\nb"),
                                  std::string("a\x1b[2Jb"), std::string("a\x7f")}) {
    const std::string said = refusal("unix:" + path);
    CHECK(has(said, "control character"));
    CHECK_FALSE(has(said, path));
    const auto server = PageServerChoice::parse("unix:" + path);
    REQUIRE_FALSE(server.ok());
    CHECK(has(server.error().detail, "control character"));
    CHECK_FALSE(has(server.error().detail, path));
  }
  CHECK(parsed("unix:/with a space, \xc3\xbc").path == "/with a space, \xc3\xbc");
}

TEST_CASE("only what nobody beyond this host can reach is local") {
  for (const std::string text : {"tcp:127.0.0.1:1", "tcp:127.255.0.9:1", "tcp:[::1]:1",
                                 "tcp:[::ffff:127.0.0.1]:1", "tcp:localhost:1", "unix:/x"}) {
    CHECK_MESSAGE(parsed(text).is_local(), text);
  }
  for (const std::string text :
       {"tcp::1", "tcp:0.0.0.0:1", "tcp:[::]:1", "tcp:128.0.0.1:1", "tcp:127.evil.example:1",
        "tcp:localhost.example:1", "tcp:[::ffff:10.0.0.1]:1", "tcp:[::2]:1", "tcp:0:1"}) {
    CHECK_MESSAGE(!parsed(text).is_local(), text);
  }
}

}  // namespace
}  // namespace towline::runtime
