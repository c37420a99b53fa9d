#include "vmm/device/console.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>

#include <doctest/doctest.h>

namespace towline::vmm {
namespace {

struct Files {
  Files() {
    std::string pattern = (std::filesystem::temp_directory_path() / "towline-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
  }

  ~Files() { std::filesystem::remove_all(path); }

  [[nodiscard]] std::string file(const std::string& name) const { return path / name; }

  std::filesystem::path path;
};

std::unique_ptr<Console> open_console(const std::string& where) {
  auto console = Console::open(where);
  REQUIRE_MESSAGE(console.ok(), (console.ok() ? "" : to_string(console.error())));
  return std::move(console).value();
}

std::string refusal(const std::string& where) {
  const auto console = Console::open(where);
  REQUIRE_FALSE(console.ok());
  CHECK(console.error().kind == base::ErrorKind::kRefused);
  return to_string(console.error());
}

void say(Console& console, const std::string& text) {
  for (const char one : text) {
    console.put(static_cast<std::byte>(one));
  }
}

std::string read_file(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

base::OwnedFd dial(const std::string& path) {
  base::OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  REQUIRE(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  return fd;
}

std::string read_text(const base::OwnedFd& fd, std::size_t size) {
  std::string text(size, '\0');
  REQUIRE(base::read_exactly(fd.get(), std::as_writable_bytes(std::span(text))).ok());
  return text;
}

/// Input as the serial port would take it: up to `space` bytes.
struct Keyboard {
  std::mutex mutex;
  std::string typed;
  std::size_t space = 1000;

  Console::Input input() {
    return {[this] {
              const std::lock_guard lock(mutex);
              return space - std::min(space, typed.size());
            },
            [this](std::span<const std::byte> bytes) {
              const std::lock_guard lock(mutex);
              for (const std::byte one : bytes) {
                typed.push_back(static_cast<char>(one));
              }
            }};
  }

  bool eventually_typed(const std::string& text) {
    for (int i = 0; i < 60000; ++i) {
      {
        const std::lock_guard lock(mutex);
        if (typed == text) {
          return true;
        }
      }
      ::poll(nullptr, 0, 1);
    }
    return false;
  }
};

TEST_CASE_FIXTURE(Files, "what the guest wrote is in the file when the console is gone") {
  {
    const auto console = open_console("file:" + file("out"));
    console->start({});
    say(*console, "last words\n");
  }
  CHECK(read_file(file("out")) == "last words\n");
}

TEST_CASE("a full disk costs output and a count, never the guest") {
  const auto console = open_console("file:/dev/full");
  console->start({});
  say(*console, "lost");
  for (int i = 0; i < 60000 && console->dropped() < 4; ++i) {
    ::poll(nullptr, 0, 1);
  }
  CHECK(console->dropped() == 4);
}

TEST_CASE_FIXTURE(Files, "a client of the socket gets what was said before it came") {
  const auto console = open_console("unix:" + file("tty"));
  console->start({});
  say(*console, "early ");
  const auto client = dial(file("tty"));
  CHECK(read_text(client, 6) == "early ");
  say(*console, "late");
  CHECK(read_text(client, 4) == "late");
}

TEST_CASE_FIXTURE(Files, "the next client is served when one has gone") {
  const auto console = open_console("unix:" + file("tty"));
  Keyboard keyboard;
  console->start(keyboard.input());
  { const auto client = dial(file("tty")); }
  const auto client = dial(file("tty"));
  say(*console, "again");
  CHECK(read_text(client, 5) == "again");
}

TEST_CASE_FIXTURE(Files, "a client that does not read makes the guest lose output, not wait") {
  const auto console = open_console("unix:" + file("tty"));
  console->start({});
  const auto client = dial(file("tty"));
  say(*console, "first");
  CHECK(read_text(client, 5) == "first");
  // Far more than the buffer and the socket's own together hold.
  const std::string block(1U << 20U, 'x');
  for (int i = 0; i < 4; ++i) {
    say(*console, block);
  }
  CHECK(console->dropped() > 0);
  // Once it reads again, it finds a note about what it missed.
  std::string seen;
  for (int i = 0; i < 4096 && seen.find("bytes of serial output were dropped") == std::string::npos;
       ++i) {
    std::string part(4096, '\0');
    const ssize_t got = ::read(client.get(), part.data(), part.size());
    REQUIRE(got > 0);
    seen += part.substr(0, static_cast<std::size_t>(got));
  }
  CHECK(seen.find("bytes of serial output were dropped") != std::string::npos);
}

TEST_CASE_FIXTURE(Files, "while nobody is connected the newest output is kept") {
  const auto console = open_console("unix:" + file("tty"));
  say(*console, "old");
  say(*console, std::string(1U << 20U, 'x'));
  console->start({});
  const auto client = dial(file("tty"));
  // The three oldest had to go for the three newest.
  CHECK(read_text(client, 1) == "x");
}

TEST_CASE_FIXTURE(Files, "what a client types reaches the port, and waits while it has no room") {
  const auto console = open_console("unix:" + file("tty"));
  Keyboard keyboard;
  keyboard.space = 2;
  console->start(keyboard.input());
  const auto client = dial(file("tty"));
  const std::string text = "abcd";
  REQUIRE(base::write_all(client.get(), std::as_bytes(std::span(text))).ok());
  CHECK(keyboard.eventually_typed("ab"));
  {
    const std::lock_guard lock(keyboard.mutex);
    keyboard.space = 4;
  }
  console->poke();
  CHECK(keyboard.eventually_typed("abcd"));
}

TEST_CASE_FIXTURE(Files, "a socket left behind is replaced, one in use is not") {
  const std::string where = "unix:" + file("tty");
  {
    const base::OwnedFd stale(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, file("tty").c_str(), file("tty").size() + 1);
    REQUIRE(::bind(stale.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  }
  const auto console = open_console(where);
  CHECK(refusal(where).find("is it in use") != std::string::npos);
}

TEST_CASE_FIXTURE(Files, "a console that cannot be is refused with what can") {
  CHECK(refusal("tcp:1").find("stdio, file:PATH, unix:PATH or none") != std::string::npos);
  CHECK(refusal("file:" + file("no/such/dir")).find("No such file") != std::string::npos);
  CHECK(refusal("unix:" + std::string(200, 'x')).find("200 bytes") != std::string::npos);
  CHECK(refusal("unix:").find("0 bytes") != std::string::npos);
}

TEST_CASE("a console that is none swallows everything") {
  const auto console = open_console("none");
  console->start({});
  say(*console, "nothing");
  CHECK(console->dropped() == 0);
}

}  // namespace
}  // namespace towline::vmm
