#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/standby/handover.h"
#include "runtime/standby/kept_machine.h"
#include "runtime/standby/ledger.h"
#include "runtime/standby/process.h"
#include "runtime/standby/record.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::OwnedFd;

StandbyRecord small_record() {
  StandbyRecord record;
  record.id.fill(std::byte{7});
  record.incarnation = 11;
  record.target_incarnation = 13;
  record.session_secret.assign(32, std::byte{5});
  record.target = Uri::parse("tcp:192.0.2.7:4444").value();
  record.options.alternates = {Uri::parse("unix:/tmp/second").value()};
  record.options.secret = "s3cret";
  record.options.bulk_lanes = 3;
  Section cpu;
  cpu.device = "vcpu";
  cpu.put("apic", 1);
  record.shape.sections.push_back(cpu);
  record.regions.push_back({.name = "ram.low", .start = 0, .size = 8192, .page_size = 4096});
  record.regions.push_back(
      {.name = "ram.high", .start = 1UL << 32U, .size = 4096, .page_size = 4096, .offset = 8192});
  return record;
}

OwnedFd memory_of(std::uint64_t bytes) {
  OwnedFd fd(::memfd_create("standby-test", MFD_CLOEXEC));
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  return fd;
}

std::string complaint_about(const StandbyRecord& record, std::uint64_t files = 1) {
  const auto encoded = encode_record(record);
  REQUIRE(encoded.ok());
  const auto decoded = decode_record(encoded.value(), files);
  return decoded.ok() ? "" : decoded.error().detail;
}

StandbyLedger ledger_with(const StandbyRecord& record) {
  const auto encoded = encode_record(record);
  REQUIRE(encoded.ok());
  auto ledger = StandbyLedger::create(encoded.value(), 1);
  REQUIRE(ledger.ok());
  return std::move(ledger).value();
}

struct Ends {
  OwnedFd near;
  OwnedFd far;
};

Ends connected() {
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) == 0);
  return {OwnedFd(ends[0]), OwnedFd(ends[1])};
}

}  // namespace

TEST_CASE("a standby record comes back as it was") {
  const StandbyRecord record = small_record();
  const auto encoded = encode_record(record);
  REQUIRE(encoded.ok());
  const auto decoded = decode_record(encoded.value(), 1);
  REQUIRE(decoded.ok());
  const StandbyRecord& found = decoded.value();
  CHECK(found.id == record.id);
  CHECK(found.incarnation == 11);
  CHECK(found.target_incarnation == 13);
  CHECK(found.session_secret == record.session_secret);
  CHECK(found.target.to_string() == "tcp:192.0.2.7:4444");
  REQUIRE(found.options.alternates.size() == 1);
  CHECK(found.options.alternates[0].to_string() == "unix:/tmp/second");
  CHECK(found.options.secret == "s3cret");
  CHECK(found.options.bulk_lanes == 3);
  CHECK(found.shape.find("vcpu") != nullptr);
  REQUIRE(found.regions.size() == 2);
  CHECK(found.regions[1].name == "ram.high");
  CHECK(found.regions[1].start == 1UL << 32U);
  CHECK(found.regions[1].offset == 8192);
}

TEST_CASE("a standby record that cannot be is refused, and says why") {
  StandbyRecord record = small_record();
  SUBCASE("a file that did not come along") {
    record.regions[1].file = 1;
    CHECK(complaint_about(record).find("file is 1") != std::string::npos);
  }
  SUBCASE("half a page") {
    record.regions[0].size = 6000;
    CHECK(complaint_about(record).find("whole pages") != std::string::npos);
  }
  SUBCASE("pages of a size that no machine has") {
    record.regions[0].page_size = 512;
    CHECK(complaint_about(record).find("512") != std::string::npos);
  }
  SUBCASE("an end beyond all addresses") {
    record.regions[0].start = ~0ULL - 4096;
    CHECK(complaint_about(record).find("start") != std::string::npos);
  }
  SUBCASE("more memory than can be mapped") {
    record.regions[0].size = kMaxStandbyBytes;
    CHECK(complaint_about(record).find("bytes of memory") != std::string::npos);
  }
  SUBCASE("no memory at all") {
    record.regions.clear();
    CHECK(complaint_about(record).find("0 regions") != std::string::npos);
  }
  SUBCASE("memory that is in no file") {
    record.regions[0].backing = Backing::kAnonymous;
    CHECK(complaint_about(record).find("not in a file") != std::string::npos);
  }
  SUBCASE("no bulk lane") {
    record.options.bulk_lanes = 0;
    CHECK(complaint_about(record).find("bulk-lanes") != std::string::npos);
  }
  SUBCASE("a session secret that is too short") {
    record.session_secret.resize(31);
    CHECK(complaint_about(record).find("session-secret") != std::string::npos);
  }
  SUBCASE("no files") {
    CHECK_FALSE(complaint_about(record, 0).empty());
  }
}

TEST_CASE("a ledger keeps what was written last, for whoever holds it") {
  const StandbyLedger ledger = ledger_with(small_record());
  auto other = StandbyLedger::open(OwnedFd(::dup(ledger.fd())));
  REQUIRE(other.ok());
  CHECK(other.value().read().value().phase == StandbyPhase::kRunning);
  CHECK(other.value().read().value().epoch == 1);
  CHECK_FALSE(other.value().address().value().has_value());

  const std::vector<std::byte> state(1000, std::byte{9});
  REQUIRE(ledger.park({state, 5, -7, 3}).ok());
  REQUIRE(ledger.set_epoch(4).ok());
  const auto words = other.value().read();
  REQUIRE(words.ok());
  CHECK(words.value().phase == StandbyPhase::kParked);
  CHECK(words.value().epoch == 4);
  CHECK(words.value().parked_at_ns == 5);
  CHECK(words.value().clock_offset_ns == -7);
  CHECK(other.value().state().value() == state);
  for (const char* address : {"tcp:192.0.2.8:1", "unix:/a/longer/one", "tcp:[::1]:2"}) {
    REQUIRE(ledger.set_address(address).ok());
    CHECK(other.value().address().value() == address);
  }
}

TEST_CASE("a parked guest's ledger goes on with another migration, and with another one") {
  const StandbyLedger ledger = ledger_with(small_record());
  const std::vector<std::byte> state(1000, std::byte{9});
  const std::vector<std::byte> larger(50'000, std::byte{3});
  const std::vector<std::byte> small(10, std::byte{4});
  REQUIRE(ledger.set_epoch(4).ok());
  CHECK(ledger.renew(larger).error().kind == ErrorKind::kFailed);
  REQUIRE(ledger.park({state, 5, -7, 3}).ok());
  for (const auto& record : {larger, small, larger}) {
    REQUIRE(ledger.set_address("tcp:192.0.2.8:1").ok());
    REQUIRE(ledger.set_epoch(4).ok());
    REQUIRE(ledger.renew(record).ok());
    REQUIRE(ledger.set_times({{}, 6, -8, 2}).ok());
    const auto other = StandbyLedger::open(OwnedFd(::dup(ledger.fd())));
    REQUIRE(other.ok());
    CHECK(other.value().record().value() == record);
    CHECK(other.value().state().value() == state);
    CHECK(other.value().read().value().phase == StandbyPhase::kParked);
    CHECK(other.value().read().value().epoch == 1);
    CHECK(other.value().read().value().files == 1);
    CHECK(other.value().read().value().parked_at_ns == 6);
    CHECK_FALSE(other.value().address().value().has_value());
  }
  REQUIRE(ledger.set_phase(StandbyPhase::kOrdered).ok());
  CHECK(ledger.renew(small).error().kind == ErrorKind::kFailed);
  CHECK(ledger.record().value() == larger);
}

TEST_CASE("a phase says what an heir begins with, or that there is nothing to inherit") {
  CHECK(ownership_left(StandbyPhase::kRunning) == std::nullopt);
  CHECK(ownership_left(StandbyPhase::kParked) == Ownership::kHere);
  CHECK(ownership_left(StandbyPhase::kOrdered) == Ownership::kOrdered);
  CHECK(ownership_left(StandbyPhase::kServing) == Ownership::kGone);
  CHECK(ownership_left(StandbyPhase::kOver) == std::nullopt);
}

TEST_CASE("a file that is no ledger is not opened as one") {
  CHECK(StandbyLedger::open(memory_of(4096)).error().kind == ErrorKind::kCorrupt);
  const StandbyLedger ledger = ledger_with(small_record());
  REQUIRE(::ftruncate(ledger.fd(), 100) == 0);
  CHECK(StandbyLedger::open(OwnedFd(::dup(ledger.fd()))).error().kind == ErrorKind::kCorrupt);
}

TEST_CASE("a ledger whose words cannot be is refused") {
  const StandbyLedger ledger = ledger_with(small_record());
  const auto put = [&ledger](off_t at, std::uint64_t value) {
    REQUIRE(::pwrite(ledger.fd(), &value, sizeof value, at) == sizeof value);
  };
  SUBCASE("an unknown phase") {
    put(8, 6);
    CHECK(ledger.read().error().kind == ErrorKind::kCorrupt);
  }
  SUBCASE("a record that is longer than its place") {
    put(32, kMaxRecordBytes + 1);
    CHECK(ledger.record().error().kind == ErrorKind::kCorrupt);
  }
  SUBCASE("a third record") {
    put(96, 2);
    CHECK(ledger.record().error().kind == ErrorKind::kCorrupt);
  }
  SUBCASE("a state that is longer than its place") {
    put(40, ~0ULL);
    CHECK(ledger.state().error().kind == ErrorKind::kCorrupt);
  }
  SUBCASE("a third address") {
    put(88, 3);
    CHECK(ledger.address().error().kind == ErrorKind::kCorrupt);
  }
}

TEST_CASE("one process at a time acts on a ledger") {
  const StandbyLedger ledger = ledger_with(small_record());
  auto other = StandbyLedger::open(OwnedFd(::dup(ledger.fd())));
  REQUIRE(other.ok());
  {
    const auto claim = ledger.claim();
    REQUIRE(claim.ok());
    CHECK(other.value().claim().error().kind == ErrorKind::kRefused);
  }
  CHECK(other.value().claim().ok());
}

TEST_CASE("what is handed over arrives with its files, and is answered") {
  const Ends ends = connected();
  const StandbyLedger ledger = ledger_with(small_record());
  const OwnedFd memory = memory_of(12288);
  REQUIRE(send_handover(ends.near.get(), ledger.fd(), {memory.get()}).ok());
  auto received = receive_handover(ends.far.get());
  REQUIRE(received.ok());
  REQUIRE(received.value().has_value());
  Handover handover = *std::move(received).value();
  CHECK(handover.files.size() == 1);
  CHECK(StandbyLedger::open(std::move(handover.ledger)).ok());
  CHECK(trusted_peer(ends.far.get()).value().pid == ::getpid());
  REQUIRE(send_reply(ends.far.get(), {false, 17, "no\x1b room"}).ok());
  const auto reply = receive_reply(ends.near.get());
  REQUIRE(reply.ok());
  CHECK_FALSE(reply.value().accepted);
  CHECK(reply.value().pid == 17);
  CHECK(reply.value().reason == "no? room");
}

TEST_CASE("a server that can answers pings, and one of an older version is not asked") {
  const Ends ends = connected();
  REQUIRE(send_reply(ends.far.get(), HandoverReply{true, 7, "", false}).ok());
  const auto reply = receive_reply(ends.near.get());
  REQUIRE(reply.ok());
  CHECK(reply.value().answers_pings);
  CHECK(reply.value().reason.empty());

  // Magic, accepted, pid: all that an older server says.
  constexpr std::array<std::uint64_t, 3> kOlder{0x3156484c57544c54, 1, 7};
  REQUIRE(::send(ends.far.get(), kOlder.data(), sizeof kOlder, 0) == sizeof kOlder);
  const auto older = receive_reply(ends.near.get());
  REQUIRE(older.ok());
  CHECK(older.value().accepted);
  CHECK_FALSE(older.value().answers_pings);

  REQUIRE(send_reply(ends.far.get(), HandoverReply{false, 7, "no", false}).ok());
  const auto refused = receive_reply(ends.near.get());
  REQUIRE(refused.ok());
  CHECK(refused.value().reason == "no");
  CHECK_FALSE(refused.value().answers_pings);
}

TEST_CASE("a ping comes with its number; anything else is none") {
  Ends ends = connected();
  CHECK(receive_ping(ends.far.get()).error().errno_value == EAGAIN);
  REQUIRE(send_ping(ends.near.get(), 41).ok());
  CHECK(receive_ping(ends.far.get()).value() == 41U);
  REQUIRE(::send(ends.near.get(), "seventeen bytes, and no ping", 17, 0) == 17);
  CHECK(receive_ping(ends.far.get()).error().kind == ErrorKind::kCorrupt);
  REQUIRE(::send(ends.near.get(), "short", 5, 0) == 5);
  CHECK(receive_ping(ends.far.get()).error().kind == ErrorKind::kCorrupt);
  ends.near.reset();
  CHECK(receive_ping(ends.far.get()).value() == std::nullopt);
}

TEST_CASE("what is no handover is refused, and none of its descriptors stays open") {
  const Ends ends = connected();
  const std::string garbage(500, 'x');
  REQUIRE(::send(ends.near.get(), garbage.data(), garbage.size(), 0) > 0);
  CHECK(receive_handover(ends.far.get()).error().kind == ErrorKind::kCorrupt);
}

TEST_CASE("a kept machine has the memory that was written, and never runs") {
  const StandbyRecord record = small_record();
  OwnedFd memory = memory_of(12288);
  REQUIRE(::pwrite(memory.get(), "high", 4, 8192) == 4);
  std::vector<OwnedFd> files;
  files.push_back(std::move(memory));
  auto machine = KeptMachine::create(record, files, {}, Ownership::kOrdered);
  REQUIRE(machine.ok());
  const Region& high = machine.value()->regions()[1];
  // NOLINTNEXTLINE(performance-no-int-to-ptr): a mapping is known by its address.
  CHECK(std::memcmp(reinterpret_cast<const void*>(high.mapping.value), "high", 4) == 0);
  CHECK_FALSE(machine.value()->gate().may_run());
  CHECK_FALSE(machine.value()->load({}).ok());
  CHECK_FALSE(machine.value()->dirty_log().enable().ok());
}

TEST_CASE("a file that is shorter than its memory is not mapped") {
  std::vector<OwnedFd> files;
  files.push_back(memory_of(8192));
  const auto machine = KeptMachine::create(small_record(), files, {}, Ownership::kHere);
  CHECK(machine.error().kind == ErrorKind::kCorrupt);
}

TEST_CASE("a process is told from a later one of its number, and its end is seen") {
  const auto start = start_of_process(::getpid());
  REQUIRE(start.ok());
  const auto watch = watch_process(::getpid(), start.value());
  REQUIRE(watch.ok());
  CHECK_FALSE(process_has_ended(watch.value().get()));
  CHECK(watch_process(::getpid(), start.value() + 1).error().kind == ErrorKind::kDisconnected);
}

TEST_CASE("a program that cannot be executed, or fails at once, is told") {
  const Ends ends = connected();
  CHECK_FALSE(start_process({"/nonexistent/towline"}, ends.near.get()).ok());
  CHECK_FALSE(start_process({"/bin/false"}, ends.near.get()).ok());
  CHECK(start_process({"/bin/true"}, ends.near.get()).ok());
}

TEST_CASE("a program that is started does not hear what a service manager said to this one") {
  // NOLINTBEGIN(concurrency-mt-unsafe): no other thread is here.
  constexpr std::array kOfManager{"NOTIFY_SOCKET", "FDSTORE", "LISTEN_FDS", "SYSTEMD_EXEC_PID"};
  for (const char* one : kOfManager) {
    ::setenv(one, "/its/own", 1);
  }
  ::setenv("TOWLINE_TEST_KEPT", "yes", 1);
  const OwnedFd file = memory_of(4096);
  const char* const script =
      "test -z \"$NOTIFY_SOCKET$FDSTORE$LISTEN_FDS$SYSTEMD_EXEC_PID\" && "
      "test \"$TOWLINE_TEST_KEPT\" = yes";
  CHECK(start_process({"/bin/sh", "-c", script}, file.get()).ok());
  for (const char* one : kOfManager) {
    ::unsetenv(one);
  }
  ::unsetenv("TOWLINE_TEST_KEPT");
  // NOLINTEND(concurrency-mt-unsafe)
}

TEST_CASE("a program's answer is read, and one that does not end is ended") {
  auto answers = start_reading({"/bin/sh", "-c", "echo seven"});
  REQUIRE(answers.ok());
  std::array<char, 16> said{};
  REQUIRE(::read(answers.value().output.get(), said.data(), said.size()) == 6);
  CHECK(std::string(said.data()) == "seven\n");
  REQUIRE(::read(answers.value().output.get(), said.data(), said.size()) == 0);
  CHECK(end_reading(std::move(answers).value()));

  auto stays = start_reading({"/bin/sh", "-c", "exec sleep 1000"});
  REQUIRE(stays.ok());
  CHECK_FALSE(end_reading(std::move(stays).value()));
  CHECK_FALSE(start_reading({"/no/such/program"}).ok());
}

}  // namespace towline::runtime
