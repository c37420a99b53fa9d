#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "tests/contract/kvm_support.h"
#include "tests/support/huge_pages.h"
#include "uffd/capabilities.h"
#include "uffd/mapping.h"
#include "uffd/shards.h"

// Who may order what, when; and that nobody waits for a vCPU.

namespace towline::vmm {
namespace {

using Entries = std::vector<std::string>;

bool refused(const base::Outcome& outcome, const std::string& why) {
  return !outcome.ok() && outcome.error().kind == base::ErrorKind::kRefused &&
         mentions(outcome.error().detail, why);
}

TEST_CASE_FIXTURE(Fixture, "a PVH kernel boots, writes to the serial port and counts") {
  const auto guest = machine(false);
  CHECK(guest->run_state() == RunState::kPrelaunch);
  guest->start();
  CHECK(guest->run_state() == RunState::kRunning);
  CHECK(eventually([&] { return counter(*guest) > 100; }));
  CHECK(eventually([&] { return std::filesystem::file_size(scratch.file("out.txt")) == 1; }));
  std::ifstream output(scratch.file("out.txt"));
  CHECK(output.get() == 'B');
}

TEST_CASE_FIXTURE(Fixture, "stop and cont stop and continue, and are told in order") {
  const auto guest = machine(false);
  guest->start();
  REQUIRE(eventually([&] { return counter(*guest) > 100; }));
  REQUIRE(guest->stop().ok());
  CHECK(guest->run_state() == RunState::kPaused);
  REQUIRE(eventually([&] { return diary.has("stop"); }));
  const auto stopped = counter(*guest);
  CHECK(guest->save().ok());  // Would not be, if a vCPU were still inside.
  CHECK(counter(*guest) == stopped);
  REQUIRE(guest->cont().ok());
  CHECK(eventually([&] { return counter(*guest) > stopped + 100; }));
  CHECK(diary.entries() == Entries{"resume", "stop", "resume"});
}

TEST_CASE_FIXTURE(Fixture, "a stop and a cont at once are both told") {
  const auto guest = machine(false);
  guest->start();
  REQUIRE(eventually([&] { return counter(*guest) > 100; }));
  for (int i = 0; i < 50; ++i) {
    REQUIRE(guest->stop().ok());
    REQUIRE(guest->cont().ok());
  }
  const auto before = counter(*guest);
  CHECK(eventually([&] { return counter(*guest) > before + 100; }));
  const Entries entries = diary.entries();
  REQUIRE(entries.size() == 101);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    CHECK(entries[i] == (i % 2 == 0 ? "resume" : "stop"));
  }
}

TEST_CASE_FIXTURE(Fixture, "a machine that starts paused waits for cont") {
  const auto guest = machine(false, 1, [](MachineConfig& config) { config.start_paused = true; });
  guest->start();
  CHECK(guest->run_state() == RunState::kPaused);
  CHECK(guest->save().ok());
  CHECK(counter(*guest) == 0);
  REQUIRE(guest->cont().ok());
  CHECK(eventually([&] { return counter(*guest) > 100; }));
}

TEST_CASE_FIXTURE(Fixture, "a reset boots the kernel again") {
  const auto guest = machine(false, 2);
  guest->start();
  REQUIRE(eventually([&] { return counter(*guest) > 100; }));
  REQUIRE(guest->system_reset().ok());
  REQUIRE(eventually([&] { return diary.has("reset"); }));
  CHECK(eventually([&] { return std::filesystem::file_size(scratch.file("out.txt")) == 2; }));
  CHECK(eventually([&] {
    return diary.entries() == Entries{"resume", "stop", "reset", "resume"};
  }));
}

TEST_CASE_FIXTURE(Fixture, "a paused machine that is reset stays paused, at the beginning") {
  const auto guest = machine(false);
  guest->start();
  REQUIRE(eventually([&] { return counter(*guest) > 100; }));
  REQUIRE(guest->stop().ok());
  REQUIRE(guest->system_reset().ok());
  REQUIRE(eventually([&] { return diary.has("reset"); }));
  CHECK(guest->run_state() == RunState::kPaused);
  const auto saved = guest->save();
  REQUIRE(saved.ok());
  CHECK(saved.value().find("vcpu")->get("rip").value() == 0x100000);
}

TEST_CASE_FIXTURE(Fixture, "a guest that resets itself boots again") {
  TinyGuest::write(scratch.file("kernel"), TinyGuest::Then::kReset);
  const auto guest = machine(false);
  guest->start();
  CHECK(eventually([&] { return std::filesystem::file_size(scratch.file("out.txt")) >= 3; }));
  CHECK(diary.has("reset"));
}

TEST_CASE_FIXTURE(Fixture, "a guest that faults three times over boots again") {
  TinyGuest::write(scratch.file("kernel"), TinyGuest::Then::kTripleFault);
  const auto guest = machine(false);
  guest->start();
  CHECK(eventually([&] { return std::filesystem::file_size(scratch.file("out.txt")) >= 2; }));
}

TEST_CASE_FIXTURE(Fixture, "a guest that switches itself off is shut down, and stays so") {
  TinyGuest::write(scratch.file("kernel"), TinyGuest::Then::kPowerOff);
  const auto guest = machine(false);
  guest->start();
  REQUIRE(eventually([&] { return diary.has("shutdown"); }));
  CHECK(eventually([&] { return diary.has("stop"); }));
  CHECK(guest->run_state() == RunState::kShutdown);
  CHECK(refused(guest->cont(), "reset the machine first"));
}

TEST_CASE_FIXTURE(Fixture, "a guest that resets itself where there is no kernel is shut down") {
  TinyGuest::write(scratch.file("kernel"), TinyGuest::Then::kReset);
  const auto source = machine(false, 1, [](MachineConfig& config) { config.start_paused = true; });
  source->start();
  REQUIRE(source->gate().step(OwnershipEvent::kHold).ok());
  park_and_wait(*source);
  MachineState state = saved_and_sent(*source);
  const auto target = machine(true);
  hand_over(*source, *target, state);
  CHECK(refused(target->system_reset(), "no kernel"));
  REQUIRE(target->cont().ok());
  CHECK(eventually([&] { return diary.has("shutdown by reset"); }));
  CHECK(target->run_state() == RunState::kShutdown);
}

TEST_CASE_FIXTURE(Fixture, "a guest that was moved here is reset with the kernel given here") {
  const auto source = parked_source();
  const MachineState state = saved_and_sent(*source);
  const auto target =
      machine(true, 1, [&](MachineConfig& config) { config.kernel = scratch.file("kernel"); });
  target->start();
  hand_over(*source, *target, state);
  CHECK(std::filesystem::file_size(scratch.file("in.txt")) == 0);
  REQUIRE(target->system_reset().ok());
  CHECK(eventually([&] { return std::filesystem::file_size(scratch.file("in.txt")) == 1; }));
}

TEST_CASE_FIXTURE(Fixture, "a source whose switch failed before the order runs on") {
  const auto source = parked_source();
  CHECK(source->run_state() == RunState::kFinishMigrate);
  CHECK(refused(source->cont(), "handing the guest over"));
  REQUIRE(source->save().ok());
  const auto before = counter(*source);
  REQUIRE(source->gate().step(OwnershipEvent::kRelease).ok());
  source->unpark();
  CHECK(source->run_state() == RunState::kRunning);
  CHECK(eventually([&] { return counter(*source) > before + 100; }));
}

TEST_CASE_FIXTURE(Fixture, "after the order no vCPU enters again, whatever is asked for") {
  const auto source = parked_source(2);
  REQUIRE(source->save().ok());
  const auto before = counter(*source);
  REQUIRE(source->gate().step(OwnershipEvent::kOrder).ok());
  CHECK(refused(source->cont(), "two of it"));
  CHECK(refused(source->stop(), "two of it"));
  CHECK(refused(source->system_reset(), "two of it"));
  source->unpark();
  source->start();
  source->start_here([] {});
  REQUIRE(source->save().ok());  // Only a machine whose vCPUs are all out is saved.
  REQUIRE(source->gate().step(OwnershipEvent::kTargetRuns).ok());
  CHECK(refused(source->cont(), "give the order there"));
  source->unpark();
  REQUIRE(source->save().ok());
  CHECK(counter(*source) == before);
  CHECK(source->run_state() == RunState::kFinishMigrate);
  source->migrated_away();
  CHECK(source->run_state() == RunState::kPostmigrate);
}

TEST_CASE_FIXTURE(Fixture, "a gate closed under running vCPUs stops them at their next entry") {
  const auto source = machine(false, 2);
  source->start();
  REQUIRE(eventually([&] { return counter(*source) > 100; }));
  for (int i = 0; i < 20; ++i) {
    REQUIRE(source->gate().step(OwnershipEvent::kHold).ok());
    park_and_wait(*source);
    const auto before = counter(*source);
    REQUIRE(source->save().ok());
    CHECK(counter(*source) == before);
    REQUIRE(source->gate().step(OwnershipEvent::kRelease).ok());
    source->unpark();
    REQUIRE(eventually([&] { return counter(*source) > before; }));
  }
}

TEST_CASE_FIXTURE(Fixture, "a parked machine is parked again at once") {
  const auto source = parked_source();
  bool told = false;
  source->park([&] { told = true; });
  CHECK(told);
}

TEST_CASE_FIXTURE(Fixture, "an incoming machine waits, touches no memory, and cont only notes") {
  const auto target = machine(true, 2, [&](MachineConfig& config) {
    config.kernel = scratch.file("kernel");
    config.start_paused = true;
  });
  target->start();
  CHECK(target->run_state() == RunState::kInmigrate);
  REQUIRE(target->cont().ok());
  CHECK(target->run_state() == RunState::kInmigrate);
  CHECK(refused(target->system_reset(), "not here yet"));

  struct stat about {};

  REQUIRE(::fstat(target->regions()[0].fd, &about) == 0);
  CHECK(about.st_blocks == 0);
  CHECK(diary.entries().empty());
}

TEST_CASE_FIXTURE(Fixture,
                  "a target whose user said stop before the guest came does not start it") {
  const auto source = parked_source();
  const MachineState state = saved_and_sent(*source);
  const auto target = machine(true);
  target->start();
  REQUIRE(target->stop().ok());
  hand_over(*source, *target, state);
  CHECK(target->run_state() == RunState::kPaused);
}

TEST_CASE_FIXTURE(Fixture, "a failure of the guest's memory stops the machine with its reason") {
  const auto guest = machine(false);
  guest->start();
  guest->guest_failed("page 7 is poisoned");
  CHECK(guest->run_state() == RunState::kInternalError);
  CHECK(guest->failure() == "page 7 is poisoned");
  CHECK(refused(guest->cont(), "page 7 is poisoned"));
  CHECK(eventually([&] { return diary.has("stop"); }));
  CHECK(diary.has("failure: page 7 is poisoned"));
}

TEST_CASE_FIXTURE(Fixture,
                  "a guest that touches a poisoned page is stopped, and the page is named") {
  const auto can = uffd::capabilities();
  if (!can.ok() || !can.value().features.contains(uffd::feature::kPoison)) {
    MESSAGE("SKIP: this kernel or this user cannot poison pages");
    return;
  }
  const auto guest = machine(false);
  guest->start();
  REQUIRE(eventually([&] { return counter(*guest) > 100; }));
  guest->pages_lost(1);
  const uffd::Mode both{.missing = true, .minor = true, .write_protect = false};
  const base::HostAddress at{guest->regions().front().mapping.value + tests::kCounterAt};
  const std::vector<uffd::Range> ranges{{.start = at, .length = base::kSmallPage, .mode = both}};
  const auto guard = uffd::ShardedUserfault::open(ranges);
  REQUIRE(guard.ok());
  REQUIRE(uffd::zap(at, base::kSmallPage, base::kSmallPage).ok());
  REQUIRE(guard.value().poison_run(at, base::PageCount{1}).ok());
  // A fault that began before the mark may sleep after it: the kernel takes the mark for a page
  // that is not there when it looks again. Who reads the fault's event wakes it, as this does.
  CHECK(eventually([&] {
    guard.value().wake(at, base::kSmallPage);
    return guest->run_state() == RunState::kInternalError;
  }));
  CHECK(mentions(guest->failure(), "guest address 0x20000"));
  CHECK(mentions(guest->failure(), "poisoned"));
  CHECK(refused(guest->cont(), "poisoned"));
  CHECK(refused(guest->system_reset(), "poisoned"));
}

void check_dirty_log(KvmMachine* source) {
  source->start();
  REQUIRE(eventually([&] { return counter(*source) > 100; }));
  runtime::DirtyLog& log = source->dirty_log();
  constexpr std::size_t kPages = (16U << 20U) / 4096;
  std::vector<std::uint64_t> bitmap(kPages / 64);
  const auto is_dirty = [&](std::size_t page) {
    return (bitmap[page / 64] >> page % 64 & 1U) != 0;
  };
  REQUIRE(log.enable().ok());
  REQUIRE(log.read(0, bitmap).ok());
  CHECK(
      std::all_of(bitmap.begin(), bitmap.end(), [](std::uint64_t word) { return word + 1 == 0; }));
  REQUIRE(log.clear(0, 0, kPages, bitmap).ok());
  const auto before = counter(*source);
  REQUIRE(eventually([&] { return counter(*source) > before + 10; }));
  REQUIRE(log.read(0, bitmap).ok());
  CHECK(is_dirty(tests::kCounterAt / 4096));
  CHECK_FALSE(is_dirty(0x300));
  // Read, not cleared: it stays.
  REQUIRE(log.read(0, bitmap).ok());
  CHECK(is_dirty(tests::kCounterAt / 4096));
  CHECK_FALSE(log.read(0, std::span(bitmap).first(1)).ok());
  CHECK_FALSE(log.read(1, bitmap).ok());
  CHECK_FALSE(log.clear(0, 1, 64, bitmap).ok());
  CHECK_FALSE(log.clear(0, 0, kPages + 64, bitmap).ok());
  log.disable();
  CHECK_FALSE(log.read(0, bitmap).ok());
}

TEST_CASE_FIXTURE(Fixture, "the dirty log names the pages that the guest writes, and no others") {
  check_dirty_log(machine(false).get());
}

// DirtyRounds makes one page of 512 bits: KVM gives up large mappings while it logs.
TEST_CASE_FIXTURE(Fixture, "on huge pages the dirty log counts 4 KiB all the same") {
  const tests::HugePages pages(8);
  if (!pages.missing().empty()) {
    MESSAGE("SKIP: " << pages.missing());
    return;
  }
  check_dirty_log(machine(false, 1, [](MachineConfig& config) {
                    config.backing = runtime::Backing::kHugetlb;
                  }).get());
}

TEST_CASE_FIXTURE(Fixture,
                  "the dirty log names the pages that a reset writes, which KVM cannot see") {
  const auto source = machine(false);
  source->start();
  REQUIRE(eventually([&] { return counter(*source) > 100; }));
  runtime::DirtyLog& log = source->dirty_log();
  constexpr std::size_t kPages = (16U << 20U) / 4096;
  std::vector<std::uint64_t> bitmap(kPages / 64);
  const auto is_dirty = [&](std::size_t page) {
    return (bitmap[page / 64] >> page % 64 & 1U) != 0;
  };
  REQUIRE(log.enable().ok());
  REQUIRE(log.read(0, bitmap).ok());
  REQUIRE(log.clear(0, 0, kPages, bitmap).ok());
  REQUIRE(source->stop().ok());
  REQUIRE(source->system_reset().ok());
  REQUIRE(eventually([&] { return diary.has("reset"); }));
  REQUIRE(log.read(0, bitmap).ok());
  CHECK(is_dirty(0x100000 / 4096));  // The kernel's code.
  CHECK(is_dirty(0x6));              // The boot data.
  CHECK_FALSE(is_dirty(0x300));
  REQUIRE(log.clear(0, 0, kPages, bitmap).ok());
  REQUIRE(log.read(0, bitmap).ok());
  CHECK_FALSE(is_dirty(0x100000 / 4096));
}

/// Guest memory whose pages come only when asked for: as on a target in post-copy.
class Supply {
 public:
  explicit Supply(const runtime::Region& region) : region_(region) {
    const base::OwnedFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
    REQUIRE(device.valid());
    fd_.reset(::ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
    REQUIRE(fd_.valid());
    uffdio_api api{};
    api.api = UFFD_API;
    REQUIRE(::ioctl(fd_.get(), UFFDIO_API, &api) == 0);
    uffdio_register range{};
    range.range = {region.mapping.value, region.size.value};
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    REQUIRE(::ioctl(fd_.get(), UFFDIO_REGISTER, &range) == 0);
  }

  /// Somebody waits for a page.
  [[nodiscard]] bool is_asked() const {
    pollfd watched{fd_.get(), POLLIN, 0};
    return ::poll(&watched, 1, 0) == 1;
  }

  /// Opens: all pages of `from` are here from now on.
  void deliver(const runtime::Region& from) {
    for (std::uint64_t at = 0; at < region_.size.value; at += 4096) {
      uffdio_copy copy{};
      copy.dst = region_.mapping.value + at;
      copy.src = from.mapping.value + at;
      copy.len = 4096;
      REQUIRE(::ioctl(fd_.get(), UFFDIO_COPY, &copy) == 0);
    }
  }

 private:
  runtime::Region region_;
  base::OwnedFd fd_;
};

TEST_CASE_FIXTURE(Fixture, "every order is answered while each vCPU waits for a page") {
  const auto source = parked_source(2);
  const MachineState state = saved_and_sent(*source);
  const auto target = machine(true, 2);
  target->start();
  Supply supply(target->regions()[0]);
  REQUIRE(target->load(state).ok());
  REQUIRE(source->gate().step(OwnershipEvent::kOrder).ok());
  REQUIRE(target->gate().step(OwnershipEvent::kTake).ok());
  target->start_here([] {});
  REQUIRE(eventually([&] { return supply.is_asked(); }));

  // The supply is shut until all of these have answered.
  CHECK(target->run_state() == RunState::kRunning);
  CHECK(target->stop().ok());
  CHECK(target->run_state() == RunState::kPaused);
  CHECK(target->cont().ok());
  CHECK(target->stop().ok());
  CHECK(refused(target->system_reset(), "no kernel"));
  CHECK(target->wants_to_run() == false);
  std::atomic<bool> parked{false};
  target->park([&] { parked = true; });

  supply.deliver(source->regions()[0]);
  CHECK(eventually([&] { return parked.load(); }));
  target->unpark();
  REQUIRE(target->cont().ok());
  const auto before = counter(*source);
  CHECK(eventually([&] { return counter(*target) > before + 100; }));
}

TEST_CASE_FIXTURE(Fixture, "a guest that is stopped before it could enter counts as started") {
  const auto source = parked_source();
  const MachineState state = saved_and_sent(*source);
  const auto target = machine(true);
  target->start();
  std::atomic<int> entered{0};
  copy_memory(*source, *target);
  REQUIRE(target->load(state).ok());
  REQUIRE(target->gate().step(OwnershipEvent::kTake).ok());
  for (int times = 1; times <= 20; ++times) {
    target->start_here([&] { ++entered; });
    REQUIRE(target->stop().ok());  // Its thread has hardly been woken.
    CHECK(eventually([&] { return entered == times; }));
    REQUIRE(target->cont().ok());
    const auto before = counter(*target);
    CHECK(eventually([&] { return counter(*target) > before; }));
  }
}

TEST_CASE_FIXTURE(Fixture, "vCPU threads end when told, once and again") {
  const auto guest = machine(false, 2);
  guest->start();
  REQUIRE(eventually([&] { return counter(*guest) > 100; }));
  const auto soon = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  CHECK(guest->end_vcpus(soon));
  const auto before = counter(*guest);
  CHECK(guest->end_vcpus(soon));
  REQUIRE(guest->cont().ok());
  CHECK(counter(*guest) == before);
}

std::string creation_error(const MachineConfig& config) {
  const auto made = KvmMachine::create(config);
  REQUIRE_FALSE(made.ok());
  return to_string(made.error());
}

TEST_CASE_FIXTURE(Fixture, "a machine that cannot be made says why and what to do") {
  const auto with = [&](const Change& change) {
    MachineConfig config = config_of(false);
    change(config);
    return creation_error(config);
  };
  CHECK(mentions(with([](auto& config) { config.kernel = "/nothing"; }), "kernel '/nothing'"));
  CHECK(mentions(with([](auto& config) { config.kernel.clear(); }), "--kernel"));
  CHECK(mentions(with([](auto& config) { config.vcpus = 0; }), "0 vCPUs"));
  CHECK(mentions(with([](auto& config) { config.vcpus = 100000; }), "--vcpus"));
  CHECK(mentions(with([](auto& config) { config.memory.value = 1UL << 60U; }),
                 "larger than can be mapped"));
  CHECK(mentions(with([](auto& config) { config.memory.value = 4096; }), "--memory"));
  CHECK(mentions(with([](auto& config) { config.serial = "pigeon"; }), "stdio, file:PATH"));
  CHECK(mentions(with([](auto& config) { config.hidden_features = {"warp"}; }), "'warp'"));
}

}  // namespace
}  // namespace towline::vmm
