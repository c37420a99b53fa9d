#include "base/event_loop.h"

#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "base/fd.h"

namespace towline::runtime {
namespace {

std::unique_ptr<base::EventLoop> make_loop() {
  auto made = base::EventLoop::create();
  REQUIRE(made.ok());
  return std::move(made).value();
}

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    reader.reset(ends[0]);
    writer.reset(ends[1]);
  }

  void put(char byte) const { REQUIRE(::write(writer.get(), &byte, 1) == 1); }

  [[nodiscard]] char take() const {
    char byte = 0;
    CHECK(::read(reader.get(), &byte, 1) == 1);
    return byte;
  }

  base::OwnedFd reader;
  base::OwnedFd writer;
};

TEST_CASE("work posted from another thread runs on the loop in the order of the posts") {
  const auto loop = make_loop();
  std::vector<int> seen;
  std::thread other([&] {
    for (int i = 0; i < 1000; ++i) {
      loop->post([&seen, i] { seen.push_back(i); });
    }
    loop->stop();
  });
  loop->run();
  other.join();
  REQUIRE(seen.size() == 1000);
  for (int i = 0; i < 1000; ++i) {
    CHECK(seen[static_cast<std::size_t>(i)] == i);
  }
}

TEST_CASE("a stop asked for before the loop runs is obeyed, and what was posted first still runs") {
  const auto loop = make_loop();
  std::string seen;
  loop->post([&] { seen += "before "; });
  loop->stop();
  loop->post([&] { seen += "after"; });
  loop->run();
  CHECK(seen == "before ");
  SUBCASE("and the loop can run again, with the work that was left") {
    loop->post([&] { loop->stop(); });
    loop->run();
    CHECK(seen == "before after");
  }
}

TEST_CASE("work that posts itself again does not starve a watch") {
  const auto loop = make_loop();
  const Pipe pipe;
  pipe.put('x');
  std::function<void()> again = [&] { loop->post(again); };
  loop->post(again);
  const auto watch = loop->on_readable(pipe.reader.get(), [&] { loop->stop(); });
  loop->run();
  CHECK(pipe.take() == 'x');
}

TEST_CASE("a watch is called again while its descriptor stays readable") {
  const auto loop = make_loop();
  const Pipe pipe;
  pipe.put('a');
  int calls = 0;
  const auto watch = loop->on_readable(pipe.reader.get(), [&] {
    if (++calls == 3) {
      loop->stop();
    }
  });
  loop->run();
  CHECK(calls >= 3);
}

TEST_CASE("a watch may be destroyed inside its own callback, with what the callback holds") {
  const auto loop = make_loop();
  const Pipe pipe;
  pipe.put('a');
  int calls = 0;
  std::unique_ptr<base::EventLoop::Handle> watch;
  auto held = std::make_shared<int>(7);
  watch = loop->on_readable(pipe.reader.get(), [&, held] {
    ++calls;
    watch.reset();
    CHECK(*held == 7);  // ASan would object if the captures were gone.
    loop->stop();
  });
  loop->run();
  CHECK(calls == 1);
  CHECK(held.use_count() == 1);
}

TEST_CASE("a watch destroyed by another callback of the same round is not called") {
  const auto loop = make_loop();
  const Pipe first;
  const Pipe second;
  first.put('1');
  second.put('2');
  int calls = 0;
  std::unique_ptr<base::EventLoop::Handle> one;
  std::unique_ptr<base::EventLoop::Handle> two;
  const auto only_me = [&] {
    ++calls;
    one.reset();
    two.reset();
    loop->stop();
  };
  one = loop->on_readable(first.reader.get(), only_me);
  two = loop->on_readable(second.reader.get(), only_me);
  loop->run();
  CHECK(calls == 1);
}

TEST_CASE("a descriptor may be watched for both directions at once") {
  const auto loop = make_loop();
  const Pipe pipe;
  int wrote = 0;
  std::unique_ptr<base::EventLoop::Handle> writable;
  writable = loop->on_writable(pipe.writer.get(), [&] {
    ++wrote;
    writable.reset();
    pipe.put('w');
  });
  const auto readable = loop->on_readable(pipe.reader.get(), [&] {
    CHECK(pipe.take() == 'w');
    loop->stop();
  });
  loop->run();
  CHECK(wrote == 1);
}

TEST_CASE("a regular file can be watched, because standard input may be one") {
  const auto loop = make_loop();
  std::string name = "/tmp/towline-loop-XXXXXX";
  const base::OwnedFd file(::mkstemp(name.data()));
  REQUIRE(file.valid());
  ::unlink(name.c_str());
  bool called = false;
  const auto watch = loop->on_readable(file.get(), [&] {
    called = true;
    loop->stop();
  });
  loop->run();
  CHECK(called);
}

TEST_CASE("timers run in the order of their delays, and a periodic one again and again") {
  const auto loop = make_loop();
  std::string seen;
  const auto late = loop->after(std::chrono::milliseconds(20), [&] { seen += 'b'; });
  const auto early = loop->after(std::chrono::milliseconds(0), [&] { seen += 'a'; });
  int ticks = 0;
  const auto periodic = loop->after(
      std::chrono::milliseconds(15),
      [&] {
        if (++ticks == 4) {
          loop->stop();
        }
      },
      true);
  loop->run();
  CHECK(seen == "ab");
  CHECK(ticks == 4);
}

TEST_CASE("a signal arrives on the loop's thread as an ordinary callback") {
  const auto loop = make_loop();
  int signals = 0;
  const auto watch = loop->on_signal(SIGUSR2, [&] {
    ++signals;
    loop->stop();
  });
  loop->post([] { ::kill(::getpid(), SIGUSR2); });
  loop->run();
  CHECK(signals == 1);
}

}  // namespace
}  // namespace towline::runtime
