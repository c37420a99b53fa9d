#include "uffd/userfault.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/ensure.h"
#include "uffd/uapi.h"

namespace towline::uffd {
namespace {

using base::Done;
using base::ErrorKind;
using base::Expected;
using base::fail;
using base::fail_errno;
using base::Outcome;

bool has_bit(std::uint64_t mask, unsigned bit) {
  return (mask >> bit & 1U) != 0;
}

std::uint64_t mode_bits(Mode mode) {
  return (mode.missing ? UFFDIO_REGISTER_MODE_MISSING : 0) |
         (mode.minor ? UFFDIO_REGISTER_MODE_MINOR : 0) |
         (mode.write_protect ? UFFDIO_REGISTER_MODE_WP : 0);
}

Event decode_fault(const uffd_msg& message) {
  const auto& fault = message.arg.pagefault;
  Event event;
  event.kind = Event::Kind::kFault;
  event.address = HostAddress{fault.address};
  event.thread = fault.feat.ptid;
  event.minor = (fault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0;
  event.write = (fault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
  event.write_protected = (fault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0;
  return event;
}

Event decode_event(const uffd_msg& message) {
  Event event;
  switch (message.event) {
    case UFFD_EVENT_PAGEFAULT:
      return decode_fault(message);
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      event.kind = message.event == UFFD_EVENT_REMOVE ? Event::Kind::kRemove : Event::Kind::kUnmap;
      event.address = HostAddress{message.arg.remove.start};
      event.length = Bytes{message.arg.remove.end - message.arg.remove.start};
      return event;
    case UFFD_EVENT_REMAP:
      event.kind = Event::Kind::kRemap;
      event.address = HostAddress{message.arg.remap.from};
      event.moved_to = HostAddress{message.arg.remap.to};
      event.length = Bytes{message.arg.remap.len};
      return event;
    default:
      // Only what was asked for in open() is ever sent.
      ENSURE(false, "userfaultfd sent an event that nobody asked for");
  }
}

}  // namespace

Abilities decode_abilities(std::uint64_t ioctls) {
  return Abilities{.wake = has_bit(ioctls, _UFFDIO_WAKE),
                   .copy = has_bit(ioctls, _UFFDIO_COPY),
                   .zero = has_bit(ioctls, _UFFDIO_ZEROPAGE),
                   .resume = has_bit(ioctls, _UFFDIO_CONTINUE),
                   .write_protect = has_bit(ioctls, _UFFDIO_WRITEPROTECT),
                   .poison = has_bit(ioctls, uapi::kPoisonBit)};
}

bool can_resolve(const Abilities& can, Mode mode) {
  return can.wake && (!mode.missing || can.copy) && (!mode.minor || can.resume) &&
         (!mode.write_protect || can.write_protect);
}

Outcome check_combination(Backing backing, Mode mode) {
  if (mode_bits(mode) == 0) {
    return fail(ErrorKind::kUnsupported, "UFFDIO_REGISTER",
                "a range is registered for missing, minor or write-protect faults, or not at all");
  }
  if (mode.minor && backing == Backing::kAnonymous) {
    return fail(ErrorKind::kUnsupported, "UFFDIO_REGISTER",
                "anonymous memory has no page cache and so no minor faults: register it for "
                "missing faults and install by copy, or use memfd memory");
  }
  return Done{};
}

FeatureSet features_for(Backing backing, Mode mode) {
  FeatureSet needed;
  switch (backing) {
    case Backing::kShmem:
      needed = (mode.missing ? feature::kMissingShmem : FeatureSet{}) |
               (mode.minor ? feature::kMinorShmem : FeatureSet{});
      break;
    case Backing::kHugetlb:
      needed = (mode.missing ? feature::kMissingHugetlb : FeatureSet{}) |
               (mode.minor ? feature::kMinorHugetlb : FeatureSet{});
      break;
    case Backing::kAnonymous:
      break;
  }
  if (mode.write_protect) {
    needed = needed | feature::kPagefaultFlagWp;
    if (backing != Backing::kAnonymous) {
      needed = needed | feature::kWpHugetlbShmem;
    }
  }
  return needed;
}

Expected<Userfault> Userfault::open(FeatureSet needed, const Doors& doors) {
  if (!(needed.without(needed.without(feature::kEventFork))).empty()) {
    return fail(ErrorKind::kRefused, "UFFDIO_API",
                "fork events carry a descriptor that nobody here would own");
  }
  RawDescriptor raw = TRY(open_descriptor(doors));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = needed.bits;
  if (::ioctl(raw.fd.get(), UFFDIO_API, &api) == 0) {
    return Userfault(std::move(raw.fd), needed);
  }
  if (errno != EINVAL) {
    return fail_errno(ErrorKind::kFailed, "UFFDIO_API", to_string(needed));
  }
  const Capabilities can = TRY(probe(doors));
  return fail(ErrorKind::kUnsupported, "UFFDIO_API",
              "this kernel's userfaultfd lacks: " + to_string(needed.without(can.features)));
}

Expected<Abilities> Userfault::register_range(HostAddress start, Bytes length, Mode mode,
                                              Backing backing) const {
  TRY(check_combination(backing, mode));
  uffdio_register request{};
  request.range = {.start = start.value, .len = length.value};
  request.mode = mode_bits(mode);
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &request) != 0) {
    switch (errno) {
      case EINVAL:
        return fail_errno(ErrorKind::kUnsupported, "UFFDIO_REGISTER",
                          "the kernel refuses this range: not mapped, not aligned, or of a kind "
                          "that it does not offer for these faults");
      case EBUSY:
        return fail_errno(ErrorKind::kRefused, "UFFDIO_REGISTER",
                          "another userfaultfd has this range");
      default:
        return fail_errno(ErrorKind::kFailed, "UFFDIO_REGISTER");
    }
  }
  const Abilities can = decode_abilities(request.ioctls);
  if (!can_resolve(can, mode)) {
    (void)unregister(start, length);
    return fail(ErrorKind::kUnsupported, "UFFDIO_REGISTER",
                "the kernel reports faults in this range but cannot resolve all of them");
  }
  return can;
}

Outcome Userfault::unregister(HostAddress start, Bytes length) const {
  uffdio_range range{.start = start.value, .len = length.value};
  if (::ioctl(fd_.get(), UFFDIO_UNREGISTER, &range) != 0) {
    return fail_errno(ErrorKind::kFailed, "UFFDIO_UNREGISTER");
  }
  return Done{};
}

Expected<std::size_t> Userfault::read_events(std::span<Event> batch) const {
  std::array<uffd_msg, kEventBatch> messages;  // NOLINT(*-init-variables): read() fills it.
  const std::size_t room = std::min(batch.size(), messages.size());
  if (room == 0) {
    return std::size_t{0};
  }
  const ssize_t got = ::read(fd_.get(), messages.data(), room * sizeof(uffd_msg));
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) {
      return std::size_t{0};
    }
    return fail_errno(ErrorKind::kFailed, "read userfaultfd");
  }
  const std::size_t count = static_cast<std::size_t>(got) / sizeof(uffd_msg);
  for (std::size_t i = 0; i < count; ++i) {
    batch[i] = decode_event(messages[i]);
  }
  return count;
}

}  // namespace towline::uffd
