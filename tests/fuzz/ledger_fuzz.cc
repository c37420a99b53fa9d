// A ledger that a source left: a file that another process wrote, and may write still. Input: its
// first bytes; the rest is a hole.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "base/ensure.h"
#include "base/fd.h"
#include "runtime/machine_state.h"
#include "runtime/standby/ledger.h"
#include "runtime/standby/record.h"

namespace base = towline::base;
namespace runtime = towline::runtime;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // As large as a ledger is, so that what it says is looked at.
  static const auto length = [] {
    const auto made = runtime::StandbyLedger::create({}, 1);
    ENSURE(made.ok(), "a ledger can be made");
    return ::lseek(made.value().fd(), 0, SEEK_END);
  }();
  base::OwnedFd file(::memfd_create("fuzz", MFD_CLOEXEC));
  ENSURE(file.valid() && ::ftruncate(file.get(), length) == 0, "a file");
  ENSURE(::pwrite(file.get(), data, size, 0) == static_cast<ssize_t>(size), "its bytes");
  const auto ledger = runtime::StandbyLedger::open(std::move(file));
  if (!ledger.ok()) {
    return 0;
  }
  const auto words = ledger.value().read();
  if (words.ok()) {
    ENSURE(runtime::to_string(words.value().phase) != "unknown", "a phase that there is");
  }
  const auto record = ledger.value().record();
  if (record.ok()) {
    ENSURE(record.value().size() <= runtime::kMaxRecordBytes, "a record within its limit");
    (void)runtime::decode_record(record.value(), 1);
  }
  const auto state = ledger.value().state();
  ENSURE(!state.ok() || state.value().size() <= runtime::kMaxStateBytes,
         "a state within its limit");
  const auto address = ledger.value().address();
  ENSURE(!address.ok() || !address.value().has_value() || address.value()->size() <= 1024,
         "an address within its limit");
  return 0;
}
