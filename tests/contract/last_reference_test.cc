// When the registration of guest memory ends, and that nobody can read zeros by it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include "tests/contract/support.h"
#include "uffd/shards.h"

// Relied on: the kernel ends a registration when the last descriptor goes, and wakes who waits, who
// then reads zeros; and a process's descriptors go only after the last of its threads can run no
// more. Who would break: every guest whose target crashes in post-copy would run on, for a moment,
// with zeros where its memory was, and could write what it made of them to its disks and peers.

#if defined(__SANITIZE_ADDRESS__)
namespace {
/// Set in a child that leaves while threads of its own wait for pages that never come.
bool g_no_leak_check = false;
}  // namespace

/// Asked by LeakSanitizer at exit. It stops every thread with ptrace first, and a thread that waits
/// for a page inside a system call stops only when it is killed: the check would wait for ever.
extern "C" int __lsan_is_turned_off() {
  return g_no_leak_check ? 1 : 0;
}
#endif

namespace towline::contract {
namespace {

constexpr std::size_t kPages = 4096;
constexpr std::size_t kTouchers = 4;
constexpr std::uint64_t kMark = 0x746f776c696e6521;
constexpr std::uint64_t kEnough = 200;  // Pages seen before the end comes: all are hard at it.

/// What the child's threads saw, for the parent. Shared between both, and with the dead.
struct Seen {
  std::atomic<std::uint64_t> right{0};
  std::atomic<std::uint64_t> zeros{0};
  std::atomic<std::uint64_t> other{0};
};

Seen* shared_page() {
  void* at = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return new (at) Seen;
}

/// Guest memory of the child, guarded, with threads that touch it and one that serves.
class Child {
 public:
  explicit Child(Seen& seen) : seen_(seen), memory_(kPages), file_(::memfd_create("seen", 0)) {
    const std::vector<uffd::Range> ranges{
        {.start = memory_.guest.at(), .length = Bytes{memory_.guest.size()}}};
    auto opened = uffd::ShardedUserfault::open(ranges);
    if (!opened.ok()) {
      ::_exit(100);
    }
    guard_ = std::make_unique<uffd::ShardedUserfault>(std::move(opened).value());
  }

  [[nodiscard]] uffd::ShardedUserfault& guard() { return *guard_; }

  /// Closes every descriptor that a destructor would.
  void drop_guard() { guard_.reset(); }

  /// Threads that are never joined: they end with the process.
  void start() {
    for (std::size_t i = 0; i < kTouchers; ++i) {
      std::thread([this, i] { touch(i); }).detach();
    }
    std::thread([this] { serve(); }).detach();
  }

  void await_business() const {
    while (seen_.right < kEnough) {
      std::this_thread::yield();
    }
  }

 private:
  void touch(std::size_t number) {
    for (std::size_t page = number; page < kPages; page += kTouchers) {
      // Half of them as a guest does, the others as the kernel does for one.
      const std::byte* at = memory_.guest.data() + page * kPage;
      note(page % 2 == 0 ? *reinterpret_cast<const volatile std::uint64_t*>(at) : by_kernel(at));
    }
    for (;;) {
      ::pause();
    }
  }

  [[nodiscard]] std::uint64_t by_kernel(const std::byte* at) const {
    std::uint64_t value = kMark;  // If the system call is refused, nothing was seen.
    static thread_local const off_t own = static_cast<off_t>(::gettid()) * 8;
    if (::pwrite(file_.get(), at, sizeof value, own) == sizeof value) {
      (void)::pread(file_.get(), &value, sizeof value, own);
    }
    return value;
  }

  void note(std::uint64_t value) {
    ++(value == kMark ? seen_.right : value == 0 ? seen_.zeros : seen_.other);
  }

  /// The first half of the pages, and never the second. Any order will do: whoever touches a page
  /// that is not there waits until its turn.
  void serve() {
    for (std::size_t page = 0; page < kPages / 2; ++page) {
      std::memcpy(memory_.alias.bytes({page * kPage, sizeof kMark}).data(), &kMark, sizeof kMark);
      (void)guard_->continue_run(memory_.guest.at(page * kPage), PageCount{1});
    }
    idle_ = true;
    for (;;) {
      ::pause();
    }
  }

 public:
  std::atomic<bool> idle_{false};

 private:
  Seen& seen_;
  TwoMappings memory_;
  base::OwnedFd file_;
  std::unique_ptr<uffd::ShardedUserfault> guard_;
};

/// Runs `body` in a child process, and returns how that ended.
int in_child(const std::function<void()>& body) {
  std::cout.flush();  // Not once more by a child that leaves by exit().
  std::fflush(nullptr);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    // doctest's own handlers would report a failure of the parent's.
    for (const int signal : {SIGSEGV, SIGABRT, SIGTERM, SIGINT, SIGBUS}) {
      ::signal(signal, SIG_DFL);
    }
#if defined(__SANITIZE_ADDRESS__)
    g_no_leak_check = true;
#endif
    body();
    ::_exit(99);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

struct Ending {
  const char* name;
  std::function<void()> happen;
};

const std::array kEndings{
    Ending{"SIGKILL", [] { ::kill(::getpid(), SIGKILL); }},
    Ending{"SIGSEGV in another thread", [] { std::thread([] { ::raise(SIGSEGV); }).join(); }},
    Ending{"abort", [] { std::abort(); }},
    Ending{"exit() in another thread", [] { std::thread([] { std::exit(0); }).join(); }},
    Ending{"_exit", [] { ::_exit(0); }},
};

TEST_CASE("a process that ends in whatever way shows nobody zeros where pages are missing") {
  SKIP_IF(
      no_userfaultfd(uffd::features_for(uffd::Backing::kShmem, {.missing = true, .minor = true})));
  for (const Ending& ending : kEndings) {
    CAPTURE(ending.name);
    for (int round = 0; round < 10; ++round) {
      Seen* seen = shared_page();
      const int status = in_child([&] {
        auto* child = new Child(*seen);  // Nobody destroys it: as a process that crashes.
        child->start();
        child->await_business();
        ending.happen();
        for (;;) {
          ::pause();
        }
      });
      CHECK((WIFSIGNALED(status) || WEXITSTATUS(status) == 0));
      CHECK(seen->right >= kEnough);
      CHECK(seen->zeros == 0);
      CHECK(seen->other == 0);
      ::munmap(seen, kPage);
    }
  }
}

TEST_CASE("without another reference, closing the last descriptor shows zeros to who waits") {
  SKIP_IF(
      no_userfaultfd(uffd::features_for(uffd::Backing::kShmem, {.missing = true, .minor = true})));
  Seen* seen = shared_page();
  const int status = in_child([&] {
    auto* child = new Child(*seen);
    child->start();
    child->await_business();
    while (!child->idle_) {
      std::this_thread::yield();
    }
    child->drop_guard();
    while (seen->zeros == 0) {
      std::this_thread::yield();
    }
    ::_exit(0);
  });
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(seen->zeros > 0);
  ::munmap(seen, kPage);
}

TEST_CASE("with the reference that is kept, closing every other descriptor wakes nobody") {
  SKIP_IF(
      no_userfaultfd(uffd::features_for(uffd::Backing::kShmem, {.missing = true, .minor = true})));
  Seen* seen = shared_page();
  const int status = in_child([&] {
    auto* child = new Child(*seen);
    if (!child->guard().keep_registered().ok()) {
      ::_exit(98);
    }
    child->start();
    child->await_business();
    while (!child->idle_) {
      std::this_thread::yield();
    }
    child->drop_guard();
    ::kill(::getpid(), SIGKILL);
  });
  CHECK(WIFSIGNALED(status));
  CHECK(seen->zeros == 0);
  ::munmap(seen, kPage);
}

TEST_CASE("who waits for a missing page waits on when the descriptor is closed and one is kept") {
  SKIP_IF(
      no_userfaultfd(uffd::features_for(uffd::Backing::kShmem, {.missing = true, .minor = true})));
  const TwoMappings memory(2);
  const std::vector<uffd::Range> ranges{
      {.start = memory.guest.at(), .length = Bytes{memory.guest.size()}}};
  auto opened = uffd::ShardedUserfault::open(ranges);
  REQUIRE(opened.ok());
  auto guard = std::make_unique<uffd::ShardedUserfault>(std::move(opened).value());
  // As keep_registered() does, with a number that the test knows.
  const base::OwnedFd kept(::fcntl(guard->userfault(0).fd(), F_DUPFD_CLOEXEC, 0));
  REQUIRE(kept.valid());
  std::atomic<int> value{-1};
  Toucher toucher([&] { value = peek(memory.guest.data()); });
  await_event(guard->userfault(0));
  guard.reset();
  CHECK(waiters_of(kept.get()) == 1);
  CHECK(value == -1);
  memory.fill(0, 0x2a);
  const auto continued =
      uffd::Installer(kept.get()).continue_run(memory.guest.at(), PageCount{1}, Bytes{kPage});
  REQUIRE(continued.ok());
  toucher.join();
  CHECK(value == 0x2a);
}

}  // namespace
}  // namespace towline::contract
