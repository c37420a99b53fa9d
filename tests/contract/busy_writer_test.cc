// Why a page of a running guest is copied before it is summed and sent.
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <thread>

#include <doctest/doctest.h>

#include "tests/contract/support.h"
#include "tests/contract/tcp.h"

namespace towline::contract {
namespace {

constexpr std::size_t kFrames = 500;  // At least: a writer that is not scheduled tears nothing.

/// FNV-1a: any change of a byte changes it.
std::uint64_t sum(std::span<const std::byte> bytes) {
  std::uint64_t state = 0xcbf29ce484222325ULL;
  for (const std::byte& byte : bytes) {
    state = (state ^ peek(&byte)) * 0x100000001b3ULL;
  }
  return state;
}

/// Another process writes the page without a pause. As with a guest, no lock is between us.
struct BusyPage {
  BusyPage()
      : fd(make_memfd(kPage)), memory(fd.get(), kPage), writer([this] { write_for_ever(); }) {
    while (peek(memory.data()) == 0) {
      std::this_thread::yield();  // Until the writer, another process, has begun.
    }
  }

  [[noreturn]] void write_for_ever() const {
    for (std::uint8_t value = 1;; value = value == 255 ? 1 : static_cast<std::uint8_t>(value + 1)) {
      for (std::size_t i = 0; i < kPage; i += 8) {
        poke(memory.data() + i, value);
      }
    }
  }

  base::OwnedFd fd;
  Mapping memory;
  Child writer;
};

/// What a receiver gets when the kernel sends `page`: the kernel reads it once more.
std::array<std::byte, kPage> transported(const std::array<int, 2>& pipe,
                                         std::span<const std::byte> page) {
  std::array<std::byte, kPage> received{};
  REQUIRE(::write(pipe[1], page.data(), page.size()) == static_cast<ssize_t>(page.size()));
  REQUIRE(base::read_exactly(pipe[0], received).ok());
  return received;
}

TEST_CASE("a frame summed in place under a busy writer does not match, a copied one always does") {
  const BusyPage page;
  std::array<int, 2> pipe{};
  REQUIRE(::pipe(pipe.data()) == 0);
  const std::span<const std::byte> live(page.memory.data(), kPage);
  std::size_t torn_in_place = 0;
  std::size_t torn_copied = 0;
  std::array<std::byte, kPage> copy{};
  std::size_t frames = 0;
  for (; frames < kFrames || torn_in_place == 0; ++frames) {
    const std::uint64_t in_place = sum(live);
    torn_in_place += sum(transported(pipe, live)) == in_place ? 0U : 1U;

    std::memcpy(copy.data(), live.data(), kPage);
    const std::uint64_t copied = sum(copy);
    torn_copied += sum(transported(pipe, copy)) == copied ? 0U : 1U;
  }
  MESSAGE("torn in place: ", torn_in_place, " of ", frames);
  CHECK(torn_in_place > 0);
  CHECK(torn_copied == 0);
  ::close(pipe[0]);
  ::close(pipe[1]);
}

}  // namespace
}  // namespace towline::contract
