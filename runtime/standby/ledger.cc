#include "runtime/standby/ledger.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include <fmt/format.h>

#include "runtime/machine_state.h"
#include "runtime/standby/record.h"

// The file, in words of eight bytes of this machine: it never leaves the host.
namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail;
using base::fail_errno;
using base::Outcome;

constexpr std::uint64_t kLedgerMagic = 0x3152474c57544c54;  // "TLTWLGR1"

constexpr std::uint64_t kMagicAt = 0;
constexpr std::uint64_t kPhaseAt = 8;
constexpr std::uint64_t kEpochAt = 16;
constexpr std::uint64_t kFilesAt = 24;
constexpr std::uint64_t kRecordBytesAt = 32;
constexpr std::uint64_t kStateBytesAt = 40;
constexpr std::uint64_t kParkedAt = 48;
constexpr std::uint64_t kClockOffsetAt = 56;
constexpr std::uint64_t kClockErrorAt = 64;
constexpr std::uint64_t kSourcePidAt = 72;
constexpr std::uint64_t kSourceStartAt = 80;
// Which of two places holds the address: 0 is none. The other one is written first.
constexpr std::uint64_t kAddressSlotAt = 88;
// Which of two places holds the record: the first, or the one behind everything else, which a file
// has once it was used.
constexpr std::uint64_t kRecordSlotAt = 96;
constexpr std::uint64_t kSecondRecordBytesAt = 104;
constexpr std::uint64_t kAddressesAt = 1024;
constexpr std::uint64_t kAddressBytes = 1024;
constexpr std::uint64_t kRecordAt = 4096;
constexpr std::uint64_t kStateAt = kRecordAt + kMaxRecordBytes;
constexpr std::uint64_t kLedgerBytes = kStateAt + kMaxStateBytes;
constexpr std::uint64_t kSecondRecordAt = kLedgerBytes;
constexpr std::uint64_t kRenewedBytes = kSecondRecordAt + kMaxRecordBytes;

struct RecordPlace {
  std::uint64_t length_at;
  std::uint64_t at;
};

constexpr std::array kRecordPlaces{RecordPlace{kRecordBytesAt, kRecordAt},
                                   RecordPlace{kSecondRecordBytesAt, kSecondRecordAt}};

// The state of a machine with some vCPUs; a larger one costs page faults within the blackout.
constexpr std::uint64_t kReadyStateBytes = 256U << 10U;

base::Err<base::Error> corrupt_ledger(std::string what) {
  return fail(ErrorKind::kCorrupt, "standby ledger", std::move(what));
}

}  // namespace

std::string_view to_string(StandbyPhase phase) {
  switch (phase) {
    case StandbyPhase::kRunning:
      return "running";
    case StandbyPhase::kParked:
      return "parked";
    case StandbyPhase::kOrdered:
      return "ordered";
    case StandbyPhase::kServing:
      return "serving";
    case StandbyPhase::kOver:
      return "over";
  }
  return "unknown";
}

std::optional<Ownership> ownership_left(StandbyPhase phase) {
  switch (phase) {
    case StandbyPhase::kParked:
      return Ownership::kHere;
    case StandbyPhase::kOrdered:
      return Ownership::kOrdered;
    case StandbyPhase::kServing:
      return Ownership::kGone;
    case StandbyPhase::kRunning:
    case StandbyPhase::kOver:
      return std::nullopt;
  }
  __builtin_unreachable();
}

Expected<StandbyLedger> StandbyLedger::create(std::span<const std::byte> record,
                                              std::uint64_t files) {
  base::OwnedFd fd(::memfd_create("towline-ledger", MFD_CLOEXEC));
  if (!fd.valid() || ::ftruncate(fd.get(), static_cast<off_t>(kLedgerBytes)) != 0 ||
      ::fallocate(fd.get(), 0, 0, static_cast<off_t>(kStateAt + kReadyStateBytes)) != 0) {
    return fail_errno(ErrorKind::kFailed, "memfd_create", "no memory for a standby ledger");
  }
  StandbyLedger made(std::move(fd));
  TRY(made.write(kRecordAt, record));
  TRY(made.put(kRecordBytesAt, record.size()));
  TRY(made.put(kFilesAt, files));
  TRY(made.put(kEpochAt, 1));
  TRY(made.set_phase(StandbyPhase::kRunning));
  TRY(made.put(kMagicAt, kLedgerMagic));
  return made;
}

Expected<StandbyLedger> StandbyLedger::open(base::OwnedFd fd) {
  struct stat about {};

  if (::fstat(fd.get(), &about) != 0 || !S_ISREG(about.st_mode) ||
      (about.st_size != static_cast<off_t>(kLedgerBytes) &&
       about.st_size != static_cast<off_t>(kRenewedBytes))) {
    return corrupt_ledger("the first file that came is no ledger");
  }
  StandbyLedger opened(std::move(fd));
  if (TRY(opened.get(kMagicAt)) != kLedgerMagic) {
    return corrupt_ledger("the first file that came is no ledger of this version");
  }
  return opened;
}

Expected<StandbyLedger::Words> StandbyLedger::read() const {
  Words words;
  const std::uint64_t phase = TRY(get(kPhaseAt));
  words.phase = static_cast<StandbyPhase>(phase);
  if (to_string(words.phase) == "unknown") {
    return corrupt_ledger(fmt::format("phase {} is unknown", phase));
  }
  words.epoch = TRY(get(kEpochAt));
  words.files = TRY(get(kFilesAt));
  words.parked_at_ns = TRY(get(kParkedAt));
  words.clock_offset_ns = static_cast<std::int64_t>(TRY(get(kClockOffsetAt)));
  words.clock_error_ns = TRY(get(kClockErrorAt));
  words.source_pid = TRY(get(kSourcePidAt));
  words.source_start = TRY(get(kSourceStartAt));
  return words;
}

Expected<std::vector<std::byte>> StandbyLedger::record() const {
  const std::uint64_t slot = TRY(get(kRecordSlotAt));
  if (slot >= kRecordPlaces.size()) {
    return corrupt_ledger(fmt::format("record {} of two", slot));
  }
  return part(kRecordPlaces[slot].length_at, kRecordPlaces[slot].at, kMaxRecordBytes);
}

Expected<std::vector<std::byte>> StandbyLedger::state() const {
  return part(kStateBytesAt, kStateAt, kMaxStateBytes);
}

Expected<std::optional<std::string>> StandbyLedger::address() const {
  const std::uint64_t slot = TRY(get(kAddressSlotAt));
  if (slot == 0) {
    return std::optional<std::string>();
  }
  if (slot > 2) {
    return corrupt_ledger(fmt::format("address {} of two", slot));
  }
  const std::uint64_t at = kAddressesAt + (slot - 1) * kAddressBytes;
  const auto bytes = TRY(part(at, at + sizeof(std::uint64_t), kAddressBytes - sizeof at));
  return std::optional(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

Outcome StandbyLedger::set_phase(StandbyPhase phase) const {
  return put(kPhaseAt, static_cast<std::uint64_t>(phase));
}

Outcome StandbyLedger::set_epoch(std::uint64_t epoch) const {
  return put(kEpochAt, epoch);
}

Outcome StandbyLedger::set_source(std::uint64_t pid, std::uint64_t start) const {
  TRY(put(kSourcePidAt, pid));
  return put(kSourceStartAt, start);
}

Outcome StandbyLedger::set_address(std::string_view uri) const {
  if (uri.size() > kAddressBytes - sizeof(std::uint64_t)) {
    return corrupt_ledger(fmt::format("an address of {} bytes", uri.size()));
  }
  const std::uint64_t slot = TRY(get(kAddressSlotAt)) == 1 ? 2 : 1;
  const std::uint64_t at = kAddressesAt + (slot - 1) * kAddressBytes;
  TRY(write(at + sizeof(std::uint64_t), std::as_bytes(std::span(uri))));
  TRY(put(at, uri.size()));
  return put(kAddressSlotAt, slot);
}

Outcome StandbyLedger::park(const Parked& parked) const {
  TRY(write(kStateAt, parked.state));
  TRY(put(kStateBytesAt, parked.state.size()));
  TRY(set_times(parked));
  return set_phase(StandbyPhase::kParked);
}

Outcome StandbyLedger::set_times(const Parked& parked) const {
  TRY(put(kParkedAt, parked.at_ns));
  TRY(put(kClockOffsetAt, static_cast<std::uint64_t>(parked.clock_offset_ns)));
  return put(kClockErrorAt, parked.clock_error_ns);
}

Outcome StandbyLedger::renew(std::span<const std::byte> record) const {
  if (const Words words = TRY(read()); words.phase != StandbyPhase::kParked) {
    return fail(
        ErrorKind::kFailed, "standby ledger",
        fmt::format("a guest that is '{}' cannot begin another migration", to_string(words.phase)));
  }
  if (record.size() > kMaxRecordBytes ||
      ::ftruncate(fd_.get(), static_cast<off_t>(kRenewedBytes)) != 0) {
    return fail(ErrorKind::kFailed, "standby ledger", "no room for a further record");
  }
  const std::uint64_t slot = TRY(get(kRecordSlotAt)) == 0 ? 1 : 0;
  TRY(write(kRecordPlaces[slot].at, record));
  TRY(put(kRecordPlaces[slot].length_at, record.size()));
  TRY(put(kEpochAt, 1));
  TRY(put(kAddressSlotAt, 0));
  return put(kRecordSlotAt, slot);
}

Expected<base::OwnedFd> StandbyLedger::claim() const {
  // Descriptors that were handed over share one lock; one that is opened anew has its own.
  base::OwnedFd mine(
      ::open(fmt::format("/proc/self/fd/{}", fd_.get()).c_str(), O_RDWR | O_CLOEXEC));
  if (!mine.valid()) {
    return fail_errno(ErrorKind::kFailed, "open", "the standby ledger cannot be opened again");
  }
  if (::flock(mine.get(), LOCK_EX | LOCK_NB) != 0) {
    return fail_errno(ErrorKind::kRefused, "flock",
                      "another page server has taken this migration over");
  }
  return mine;
}

Outcome StandbyLedger::write(std::uint64_t at, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (put > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(put));
      at += static_cast<std::uint64_t>(put);
    } else if (put == 0 || errno != EINTR) {
      return fail_errno(ErrorKind::kFailed, "pwrite", "the standby ledger cannot be written");
    }
  }
  return base::Done{};
}

Outcome StandbyLedger::read(std::uint64_t at, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t got = ::pread(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (got > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(got));
      at += static_cast<std::uint64_t>(got);
    } else if (got == 0) {
      return corrupt_ledger(fmt::format("the ledger ends at {} bytes", at));
    } else if (errno != EINTR) {
      return fail_errno(ErrorKind::kFailed, "pread", "the standby ledger cannot be read");
    }
  }
  return base::Done{};
}

Outcome StandbyLedger::put(std::uint64_t at, std::uint64_t value) const {
  return write(at, std::as_bytes(std::span(&value, 1)));
}

Expected<std::uint64_t> StandbyLedger::get(std::uint64_t at) const {
  std::uint64_t value = 0;
  TRY(read(at, std::as_writable_bytes(std::span(&value, 1))));
  return value;
}

Expected<std::vector<std::byte>> StandbyLedger::part(std::uint64_t length_at, std::uint64_t from,
                                                     std::uint64_t most) const {
  const std::uint64_t length = TRY(get(length_at));
  if (length > most) {
    return corrupt_ledger(fmt::format("a part of {} bytes; at most {} can be", length, most));
  }
  std::vector<std::byte> bytes(length);
  TRY(read(from, bytes));
  return bytes;
}

}  // namespace towline::runtime
