#include "uffd/capabilities.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/resource.h>

#include <cerrno>
#include <string>

#include <doctest/doctest.h>

#include "uffd/userfault.h"

namespace towline::uffd {
namespace {

int last_flags = -1;

int refuse(int flags) {
  last_flags = flags;
  errno = EPERM;
  return -1;
}

int not_built(int /*flags*/) {
  errno = ENOSYS;
  return -1;
}

int too_many(int /*flags*/) {
  errno = EMFILE;
  return -1;
}

int some_file(int /*flags*/) {
  return ::open("/dev/null", O_RDWR | O_CLOEXEC);
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("who may not handle faults is told the three ways to be let in") {
  const auto refused = open_descriptor({.device = "/nowhere/userfaultfd", .system_call = refuse});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().kind == base::ErrorKind::kUnsupported);
  CHECK(refused.error().errno_value == EPERM);
  CHECK(contains(refused.error().detail, "root"));
  CHECK(contains(refused.error().detail, "CAP_SYS_PTRACE"));
  CHECK(contains(refused.error().detail, "access to /nowhere/userfaultfd"));
  CHECK(contains(refused.error().detail, "vm.unprivileged_userfaultfd=1"));
}

TEST_CASE("faults of the kernel itself are always asked for") {
  (void)open_descriptor({.device = "/nowhere/userfaultfd", .system_call = refuse});
  CHECK((last_flags & UFFD_USER_MODE_ONLY) == 0);
  CHECK((last_flags & O_NONBLOCK) != 0);
  CHECK((last_flags & O_CLOEXEC) != 0);
}

TEST_CASE("a kernel built without userfaultfd is told apart from a missing permission") {
  const auto absent = probe({.device = "/nowhere/userfaultfd", .system_call = not_built});
  REQUIRE_FALSE(absent.ok());
  CHECK(contains(absent.error().detail, "no userfaultfd"));
}

TEST_CASE("running out of descriptors is not reported as a missing permission") {
  const auto full = open_descriptor({.device = "/nowhere/userfaultfd", .system_call = too_many});
  REQUIRE_FALSE(full.ok());
  CHECK(full.error().kind == base::ErrorKind::kOverloaded);
}

TEST_CASE("running out of descriptors at the device is no missing permission either") {
  // The device cannot be opened for want of a descriptor; the call is refused for another reason.
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  const rlimit none{.rlim_cur = 0, .rlim_max = before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  const auto full = open_descriptor({.device = "/dev/null", .system_call = refuse});
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE_FALSE(full.ok());
  CHECK(full.error().kind == base::ErrorKind::kOverloaded);
}

TEST_CASE("a failure is not remembered: what ran out is free again, and permissions are given") {
  CapabilityMemory memory;
  const Doors full{.device = "/nowhere/userfaultfd", .system_call = too_many};
  const Doors shut{.device = "/nowhere/userfaultfd", .system_call = refuse};
  CHECK(memory.ask(full).error().kind == base::ErrorKind::kOverloaded);
  CHECK(memory.ask(shut).error().kind == base::ErrorKind::kUnsupported);
  CHECK(memory.ask(full).error().kind == base::ErrorKind::kOverloaded);
  const auto now = memory.ask();
  if (now.ok()) {  // Permitted here. Otherwise the contract suite says that it is not.
    const auto later = memory.ask(full);
    REQUIRE(later.ok());
    CHECK(later.value().features == now.value().features);
  }
}

TEST_CASE("what could not be asked for want of a descriptor is no answer of the kernel") {
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  CapabilityMemory memory;
  const rlimit none{.rlim_cur = 0, .rlim_max = before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  const auto full = memory.ask();
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE_FALSE(full.ok());
  const auto can = probe();
  const auto again = memory.ask();
  REQUIRE(again.ok() == can.ok());
  if (can.ok()) {
    CHECK(again.value().pagemap_scan == can.value().pagemap_scan);
  }
}

TEST_CASE("the system call is the second door") {
  const auto second = open_descriptor({.device = "/nowhere/userfaultfd", .system_call = some_file});
  REQUIRE(second.ok());
  CHECK(second.value().door == Door::kSystemCall);
}

TEST_CASE("a device that is no userfaultfd is passed by") {
  const auto passed = open_descriptor({.device = "/dev/null", .system_call = refuse});
  REQUIRE_FALSE(passed.ok());
  CHECK(passed.error().kind == base::ErrorKind::kUnsupported);
}

TEST_CASE("a descriptor that fails the handshake is an error of the probe") {
  const auto wrong = probe({.device = "/nowhere/userfaultfd", .system_call = some_file});
  REQUIRE_FALSE(wrong.ok());
  CHECK(wrong.error().operation == std::string("UFFDIO_API"));
}

TEST_CASE("features are named, and those without a name by their bit") {
  CHECK(to_string(feature::kMissingShmem | feature::kMinorShmem) == "missing-shmem minor-shmem");
  CHECK(to_string(FeatureSet{1ULL << 40U}) == "bit-40");
  CHECK(to_string(FeatureSet{}).empty());
}

TEST_CASE("writes are tracked only where the kernel has all parts of it") {
  Capabilities can;
  can.features = feature::kWpAsync | feature::kWpUnpopulated;
  CHECK_FALSE(can.tracks_writes());
  can.pagemap_scan = true;
  CHECK(can.tracks_writes());
  can.features = feature::kWpAsync;
  CHECK_FALSE(can.tracks_writes());
}

TEST_CASE("fork events are refused: their descriptor would have no owner") {
  const auto refused = Userfault::open(feature::kEventFork | feature::kMissingShmem,
                                       {.device = "/nowhere", .system_call = refuse});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().kind == base::ErrorKind::kRefused);
}

TEST_CASE("minor faults on anonymous memory are refused before the kernel is asked") {
  const Mode minor{.missing = true, .minor = true, .write_protect = false};
  const auto refused = check_combination(Backing::kAnonymous, minor);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().kind == base::ErrorKind::kUnsupported);
  CHECK(contains(refused.error().detail, "anonymous"));
  CHECK(check_combination(Backing::kShmem, minor).ok());
  CHECK(check_combination(Backing::kHugetlb, minor).ok());
}

TEST_CASE("a range registered for nothing is refused") {
  CHECK_FALSE(check_combination(Backing::kShmem, Mode{}).ok());
}

TEST_CASE("exactly the features that a registration relies on are asked for") {
  const Mode both{.missing = true, .minor = true, .write_protect = false};
  const Mode protect{.missing = false, .minor = false, .write_protect = true};
  CHECK(features_for(Backing::kShmem, both) == (feature::kMissingShmem | feature::kMinorShmem));
  CHECK(features_for(Backing::kHugetlb, both) ==
        (feature::kMissingHugetlb | feature::kMinorHugetlb));
  CHECK(features_for(Backing::kAnonymous, {.missing = true}).empty());
  CHECK(features_for(Backing::kAnonymous, protect) == feature::kPagefaultFlagWp);
  CHECK(features_for(Backing::kShmem, protect) ==
        (feature::kPagefaultFlagWp | feature::kWpHugetlbShmem));
}

TEST_CASE("the mask of a registration is read bit by bit") {
  const Abilities none = decode_abilities(0);
  CHECK_FALSE(none.copy);
  CHECK_FALSE(none.resume);
  const Abilities some = decode_abilities((1ULL << 0x02U) | (1ULL << 0x07U));
  CHECK(some.wake);
  CHECK(some.resume);
  CHECK_FALSE(some.zero);
  CHECK(decode_abilities(1ULL << 0x08U).poison);
  CHECK(decode_abilities(1ULL << 0x04U).zero);
}

TEST_CASE("a registration that could report a fault nobody can resolve is told from a good one") {
  const Mode both{.missing = true, .minor = true, .write_protect = false};
  Abilities can;
  can.wake = true;
  can.copy = true;
  CHECK_FALSE(can_resolve(can, both));
  CHECK(can_resolve(can, {.missing = true}));
  can.resume = true;
  CHECK(can_resolve(can, both));
  CHECK_FALSE(can_resolve(can, {.write_protect = true}));
  can.wake = false;
  CHECK_FALSE(can_resolve(can, both));
}

}  // namespace
}  // namespace towline::uffd
