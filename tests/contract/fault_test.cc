// Which faults are raised, when, and what ends them.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <system_error>

#include <doctest/doctest.h>

#include "tests/contract/support.h"

namespace towline::contract {
namespace {

using uffd::Backing;
using uffd::Event;
using uffd::Installer;
using uffd::Mode;
using uffd::RunEnd;

constexpr Bytes kSmall{kPage};
constexpr Mode kBoth{.missing = true, .minor = true, .write_protect = false};
constexpr Mode kMissing{.missing = true, .minor = false, .write_protect = false};
const uffd::FeatureSet kShmem = uffd::features_for(Backing::kShmem, kBoth);

void register_all(const uffd::Userfault& userfault, const Mapping& memory, Mode mode) {
  const auto can =
      userfault.register_range(memory.at(), Bytes{memory.size()}, mode, Backing::kShmem);
  REQUIRE(can.ok());
}

/// Swap space for one test: what the machine has, or a file of its own while the test runs.
class Swap {
 public:
  Swap() {
    std::ifstream swaps("/proc/swaps");
    std::string line;
    std::getline(swaps, line);
    if (!std::getline(swaps, line)) {
      make();
    }
  }

  ~Swap() {
    if (!path_.empty()) {
      ::swapoff(path_.c_str());
      ::unlink(path_.c_str());
    }
  }

  Swap(const Swap&) = delete;
  Swap& operator=(const Swap&) = delete;

  /// Empty: there is some.
  [[nodiscard]] const std::string& missing() const { return missing_; }

 private:
  void make() {
    constexpr std::uint32_t kPages = 4096;  // 16 MiB.
    path_ = "/var/tmp/towline-swap-XXXXXX";
    const base::OwnedFd file(::mkostemp(path_.data(), O_CLOEXEC));
    // The kernel takes no holes. Version 1, the last page, and the name at the end of the first.
    std::array<std::byte, kPage> head{};
    const std::array<std::uint32_t, 3> version{1, kPages - 1, 0};
    std::memcpy(head.data() + 1024, version.data(), sizeof version);
    std::memcpy(head.data() + kPage - 10, "SWAPSPACE2", 10);
    if (!file.valid() || ::posix_fallocate(file.get(), 0, off_t{kPages} * kPage) != 0 ||
        ::pwrite(file.get(), head.data(), head.size(), 0) != static_cast<ssize_t>(kPage) ||
        ::fsync(file.get()) != 0 || ::swapon(path_.c_str(), 0) != 0) {
      missing_ = std::string("this machine has no swap, and none can be added: ") +
                 std::generic_category().message(errno);
    }
  }

  std::string path_;
  std::string missing_;
};

std::size_t count_mapped(const Mapping& memory) {
  std::size_t mapped = 0;
  for (std::size_t offset = 0; offset < memory.size(); offset += kPage) {
    mapped += is_mapped(memory.at(offset)) ? 1U : 0U;
  }
  return mapped;
}

TEST_CASE("registered missing alone, one touch maps stale neighbours behind our back") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(32);
  for (std::size_t page = 0; page < 32; ++page) {
    memory.fill(page, 0x11);
  }
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kMissing);
  CHECK(peek(memory.guest.data() + 5 * kPage) == 0x11);
  CHECK(is_silent(userfault));
  CHECK(count_mapped(memory.guest) > 1);
}

TEST_CASE("registered missing and minor, one touch maps one page and nothing without us") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(32);
  for (std::size_t page = 0; page < 32; ++page) {
    memory.fill(page, 0x11);
  }
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  Toucher toucher([&] { (void)peek(memory.guest.data() + 5 * kPage); });
  const Event event = next_event(userfault);
  CHECK(event.minor);
  CHECK(count_mapped(memory.guest) == 0);
  REQUIRE(Installer(userfault.fd())
              .continue_run(memory.guest.at(5 * kPage), PageCount{1}, kSmall)
              .ok());
  toucher.join();
  CHECK(count_mapped(memory.guest) == 1);
}

TEST_CASE("reading a hole through the alias turns a later missing fault into a minor one") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(2);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  CHECK(peek(memory.alias.bytes().data()) == 0);
  Toucher toucher([&] { (void)peek(memory.guest.data()); });
  CHECK(next_event(userfault).minor);
  CHECK(Installer(userfault.fd()).continue_run(memory.guest.at(), PageCount{1}, kSmall).ok());
}

TEST_CASE("reading a hole with pread leaves it a hole, and its fault stays missing") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(1);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  std::array<std::byte, kPage> page{};
  REQUIRE(::pread(memory.fd.get(), page.data(), page.size(), 0) == kPage);
  Toucher toucher([&] { (void)peek(memory.guest.data()); });
  CHECK_FALSE(next_event(userfault).minor);
  CHECK(Installer(userfault.fd()).zero_run(memory.guest.at(), PageCount{1}, kSmall).ok());
}

TEST_CASE("collapsing installed pages makes them raise minor faults again") {
  SKIP_IF(no_userfaultfd(kShmem));
  const auto fd = make_memfd(kHuge);
  const Mapping guest(fd.get(), kHuge, kHuge);
  const Mapping other(fd.get(), kHuge, kHuge);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, guest, kBoth);
  for (std::size_t offset = 0; offset < kHuge; offset += kPage) {
    poke(other.data() + offset, 0x42);
  }
  const Installer installer(userfault.fd());
  REQUIRE(installer.continue_run(guest.at(), PageCount{kHuge / kPage}, kSmall).ok());
  REQUIRE(is_mapped(guest.at()));

  const auto collapsed = uffd::collapse(other.at(), Bytes{kHuge});
  REQUIRE(collapsed.ok());
  SKIP_IF(collapsed.value() == uffd::Collapse::kDone ? std::string()
                                                     : std::string("no huge page for a collapse"));
  std::uint8_t seen = 0;
  Toucher toucher([&] { seen = peek(guest.data()); });
  CHECK(next_event(userfault).minor);
  REQUIRE(installer.continue_run(guest.at(), PageCount{1}, kSmall).ok());
  toucher.join();
  CHECK(seen == 0x42);
}

TEST_CASE("swapping an installed page out makes it raise a minor fault again") {
  SKIP_IF(no_userfaultfd(kShmem));
  const Swap swap;
  SKIP_IF(swap.missing());
  const TwoMappings memory(1);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  memory.fill(0, 0x42);
  REQUIRE(memory.alias.release({0, kPage}, kSmall).ok());
  const Installer installer(userfault.fd());
  REQUIRE(installer.continue_run(memory.guest.at(), PageCount{1}, kSmall).ok());
  REQUIRE(::madvise(memory.guest.data(), kPage, MADV_PAGEOUT) == 0);
  SKIP_IF(is_mapped(memory.guest.at()) ? std::string("the page was not swapped out")
                                       : std::string());
  std::uint8_t seen = 0;
  Toucher toucher([&] { seen = peek(memory.guest.data()); });
  CHECK(next_event(userfault).minor);
  REQUIRE(installer.continue_run(memory.guest.at(), PageCount{1}, kSmall).ok());
  toucher.join();
  CHECK(seen == 0x42);
}

TEST_CASE("several waiters of one page send an event each and one install wakes them all") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(1);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  Toucher first([&] { (void)peek(memory.guest.data()); });
  Toucher later([&] { (void)peek(memory.guest.data() + 100); });
  CHECK(next_event(userfault).address == memory.guest.at());
  CHECK(next_event(userfault).address == memory.guest.at());
  CHECK(waiters(userfault) == 2);
  memory.fill(0, 1);
  REQUIRE(Installer(userfault.fd()).continue_run(memory.guest.at(), PageCount{1}, kSmall).ok());
  CHECK(waiters(userfault) == 0);
}

TEST_CASE("one read takes all events that wait, up to the batch") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(8);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  std::array<std::unique_ptr<Toucher>, 8> touchers;
  for (std::size_t page = 0; page < 8; ++page) {
    touchers[page] = std::make_unique<Toucher>(
        [&memory, page] { (void)peek(memory.guest.data() + page * kPage); });
  }
  while (waiters(userfault) < 8) {
    std::this_thread::yield();  // The kernel tells of the first waiter, not of the eighth.
  }
  std::array<Event, 16> batch{};
  const auto got = userfault.read_events(std::span(batch).first(5));
  REQUIRE(got.ok());
  CHECK(got.value() == 5);
  const auto rest = userfault.read_events(batch);
  REQUIRE(rest.ok());
  CHECK(rest.value() == 3);
  const auto none = userfault.read_events(batch);
  REQUIRE(none.ok());
  CHECK(none.value() == 0);
  CHECK(Installer(userfault.fd()).zero_run(memory.guest.at(), PageCount{8}, kSmall).ok());
}

TEST_CASE("an event names the thread that waits when that is asked for, and the kind of access") {
  SKIP_IF(no_userfaultfd(kShmem | uffd::feature::kThreadId));
  const TwoMappings memory(1);
  const auto userfault = open_userfault(kShmem | uffd::feature::kThreadId);
  register_all(userfault, memory.guest, kBoth);
  std::atomic<pid_t> thread = 0;
  Toucher toucher([&] {
    thread = ::gettid();
    poke(memory.guest.data(), 1);
  });
  const Event event = next_event(userfault);
  CHECK(event.thread == static_cast<std::uint32_t>(thread.load()));
  CHECK(event.write);
  CHECK(Installer(userfault.fd()).zero_run(memory.guest.at(), PageCount{1}, kSmall).ok());
}

TEST_CASE("with remove events a zapping thread is stuck until somebody reads the event") {
  SKIP_IF(no_userfaultfd(kShmem | uffd::feature::kEventRemove));
  const TwoMappings memory(2);
  const auto userfault = open_userfault(kShmem | uffd::feature::kEventRemove);
  register_all(userfault, memory.guest, kBoth);
  memory.fill(0, 1);
  memory.fill(1, 1);
  const Installer installer(userfault.fd());
  REQUIRE(installer.continue_run(memory.guest.at(), PageCount{1}, kSmall).ok());
  std::atomic<bool> zapped = false;
  Toucher zapper([&] { zapped = uffd::zap(memory.guest.at(), kSmall, kSmall).ok(); });
  await_event(userfault);
  // Until the event is read the layout counts as changing, for every install of this descriptor.
  const auto during = installer.continue_run(memory.guest.at(kPage), PageCount{1}, kSmall);
  REQUIRE(during.ok());
  CHECK(during.value().end == RunEnd::kLayoutChanging);
  CHECK_FALSE(zapped);

  const Event event = next_event(userfault);
  CHECK(event.kind == Event::Kind::kRemove);
  CHECK(event.address == memory.guest.at());
  CHECK(event.length == kSmall);
  zapper.join();
  CHECK(zapped);
  const auto after = installer.continue_run(memory.guest.at(), PageCount{2}, kSmall);
  REQUIRE(after.ok());
  CHECK(after.value().installed == PageCount{2});
}

TEST_CASE("without remove events a zap returns although nobody reads") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(1);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  memory.fill(0, 1);
  REQUIRE(Installer(userfault.fd()).continue_run(memory.guest.at(), PageCount{1}, kSmall).ok());
  REQUIRE(uffd::zap(memory.guest.at(), kSmall, kSmall).ok());
  CHECK(is_silent(userfault));
  CHECK_FALSE(is_mapped(memory.guest.at()));
}

TEST_CASE("after unregistering, the guest reads whatever the page cache still holds") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(2);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  memory.fill(0, 0x33);  // Never installed: stale, or discarded.
  memory.fill(1, 0x33);
  REQUIRE(uffd::punch(memory.fd.get(), {kPage, kPage}, kSmall).ok());
  REQUIRE(userfault.unregister(memory.guest.at(), Bytes{2 * kPage}).ok());
  CHECK(peek(memory.guest.data()) == 0x33);
  CHECK(peek(memory.guest.data() + kPage) == 0);
}

TEST_CASE("unregistering wakes the waiters of its range, who go on with what is there") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(1);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  std::uint8_t seen = 0xff;
  Toucher toucher([&] { seen = peek(memory.guest.data()); });
  (void)next_event(userfault);
  REQUIRE(userfault.unregister(memory.guest.at(), kSmall).ok());
  toucher.join();
  CHECK(seen == 0);
}

TEST_CASE("closing the last reference lets every waiter read zeros") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(1);
  std::optional<uffd::Userfault> userfault = open_userfault(kShmem);
  register_all(*userfault, memory.guest, kBoth);
  std::uint8_t seen = 0xff;
  Toucher toucher([&] { seen = peek(memory.guest.data()); });
  (void)next_event(*userfault);
  userfault.reset();
  toucher.join();
  CHECK(seen == 0);
}

TEST_CASE("an install before the event was read takes the event away: poll is only a hint") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(1);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  Toucher toucher([&] { (void)peek(memory.guest.data()); });
  await_event(userfault);
  CHECK(Installer(userfault.fd()).zero_run(memory.guest.at(), PageCount{1}, kSmall).ok());
  std::array<Event, 1> one{};
  const auto got = userfault.read_events(one);
  REQUIRE(got.ok());
  CHECK(got.value() == 0);
}

TEST_CASE("a fault that was woken without its page comes back as a new event") {
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(1);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  Toucher toucher([&] { (void)peek(memory.guest.data()); });
  (void)next_event(userfault);
  const Installer installer(userfault.fd());
  installer.wake(memory.guest.at(), kSmall);
  CHECK(next_event(userfault).address == memory.guest.at());
  CHECK(installer.zero_run(memory.guest.at(), PageCount{1}, kSmall).ok());
}

TEST_CASE("a system call that touches a missing page waits as a thread does") {
  // KVM and the devices fault in kernel mode: a descriptor for user mode only would give EFAULT.
  SKIP_IF(no_userfaultfd(kShmem));
  const TwoMappings memory(1);
  const auto userfault = open_userfault(kShmem);
  register_all(userfault, memory.guest, kBoth);
  std::array<int, 2> ends{};
  REQUIRE(::pipe(ends.data()) == 0);
  ssize_t written = 0;
  Toucher toucher([&] { written = ::write(ends[1], memory.guest.data(), kPage); });
  CHECK(next_event(userfault).address == memory.guest.at());
  memory.fill(0, 0x66);
  CHECK(Installer(userfault.fd()).continue_run(memory.guest.at(), PageCount{1}, kSmall).ok());
  toucher.join();
  CHECK(written == kPage);
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace towline::contract
