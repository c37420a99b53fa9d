#include "runtime/standby/kept_machine.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <utility>

#include <fmt/format.h>

#include "base/log.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::fail_errno;
using base::Outcome;

constexpr const char* kNoVcpus = "a page server holds memory and state; it has no vCPUs";

/// Nothing writes to this memory any more.
class NoDirtyLog final : public DirtyLog {
 public:
  Outcome enable() override { return fail(ErrorKind::kUnsupported, "dirty log", kNoVcpus); }

  void disable() override {}

  Outcome read(std::size_t /*region*/, std::span<std::uint64_t> /*bitmap*/) override {
    return fail(ErrorKind::kUnsupported, "dirty log", kNoVcpus);
  }

  Outcome clear(std::size_t /*region*/, std::uint64_t /*first*/, std::uint64_t /*count*/,
                std::span<const std::uint64_t> /*bitmap*/) override {
    return fail(ErrorKind::kUnsupported, "dirty log", kNoVcpus);
  }
};

}  // namespace

base::Expected<std::unique_ptr<KeptMachine>> KeptMachine::create(
    const StandbyRecord& record, const std::vector<base::OwnedFd>& files, MachineState state,
    Ownership owner) {
  std::unique_ptr<KeptMachine> made(new KeptMachine(record, std::move(state), owner));
  TRY(made->map(record, files));
  return made;
}

KeptMachine::KeptMachine(const StandbyRecord& record, MachineState state, Ownership owner)
    : shape_(record.shape),
      state_(std::move(state)),
      log_(std::make_unique<NoDirtyLog>()),
      gate_(owner) {
}

KeptMachine::~KeptMachine() {
  for (const Region& region : regions_) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): a mapping is known by its address.
    ::munmap(reinterpret_cast<void*>(region.mapping.value), region.size.value);
  }
}

Outcome KeptMachine::check(const StandbyRecord& record, const std::vector<base::OwnedFd>& files) {
  for (const StandbyRecord::MemoryRegion& one : record.regions) {
    struct stat about {};

    if (::fstat(files[one.file].get(), &about) != 0 || !S_ISREG(about.st_mode) ||
        static_cast<std::uint64_t>(about.st_size) < one.offset + one.size) {
      return fail(ErrorKind::kCorrupt, "guest memory",
                  fmt::format("memory '{}' is not in the file that came with it", one.name));
    }
  }
  return base::Done{};
}

Outcome KeptMachine::map(const StandbyRecord& record, const std::vector<base::OwnedFd>& files) {
  TRY(check(record, files));
  for (const StandbyRecord::MemoryRegion& one : record.regions) {
    const int fd = files[one.file].get();
    void* mapping = ::mmap(nullptr, one.size, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd,
                           static_cast<off_t>(one.offset));
    if (mapping == MAP_FAILED) {
      return fail_errno(
          ErrorKind::kFailed, "mmap",
          fmt::format("memory '{}' of {} MiB cannot be mapped", one.name, one.size >> 20U));
    }
    Region region;
    region.name = one.name;
    region.start = base::GuestAddress{one.start};
    region.size = base::Bytes{one.size};
    region.page_size = base::Bytes{one.page_size};
    region.backing = one.backing;
    region.fd = fd;
    region.fd_offset = one.offset;
    region.mapping = base::HostAddress{reinterpret_cast<std::uintptr_t>(mapping)};
    regions_.push_back(std::move(region));
  }
  return base::Done{};
}

std::vector<std::string> KeptMachine::refusals(const MachineState& /*source*/) const {
  return {kNoVcpus};
}

Outcome KeptMachine::load(const MachineState& /*state*/) {
  return fail(ErrorKind::kUnsupported, "load", kNoVcpus);
}

void KeptMachine::guest_failed(const std::string& reason) {
  base::log(base::LogLevel::kError, "guest.failed reason={}", reason);
}

}  // namespace towline::runtime
