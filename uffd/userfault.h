#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/fd.h"
#include "base/units.h"
#include "uffd/capabilities.h"

namespace towline::uffd {

using base::Bytes;
using base::HostAddress;
using base::PageCount;

/// What lies behind a mapping. It decides which faults and which installs the kernel offers.
enum class Backing : std::uint8_t { kShmem, kHugetlb, kAnonymous };

/// Which faults are reported.
struct Mode {
  bool missing = false;        ///< Neither mapped nor in the page cache.
  bool minor = false;          ///< In the page cache, not mapped. Shmem and hugetlb.
  bool write_protect = false;  ///< Written while write protected.
};

/// The ways in which a registered range may be resolved: bits of the mask that the kernel returned.
struct Abilities {
  bool wake = false;
  bool copy = false;
  bool zero = false;
  bool resume = false;  ///< UFFDIO_CONTINUE.
  bool write_protect = false;
  bool poison = false;
};

/// Decodes the mask of UFFDIO_REGISTER.
Abilities decode_abilities(std::uint64_t ioctls);

/// Whether every fault that `mode` reports can be resolved in at least one way.
bool can_resolve(const Abilities& can, Mode mode);

/// Whether Linux offers the combination at all, whatever its version.
///
/// Errors: kUnsupported, naming what to register instead.
/// Source: vma_can_userfault() since Linux 5.14; tests/contract/register_test.cc.
base::Outcome check_combination(Backing backing, Mode mode);

/// Exactly the features that registering `backing` for `mode` relies on: what open() is given.
FeatureSet features_for(Backing backing, Mode mode);

/// One message of the kernel.
struct Event {
  enum class Kind : std::uint8_t {
    kFault,   ///< A thread waits at `address`.
    kRemove,  ///< [address, address + length) was zapped (MADV_DONTNEED, MADV_REMOVE).
    kUnmap,   ///< [address, address + length) is no longer mapped.
    kRemap,   ///< `length` bytes moved from `address` to `moved_to`.
  };
  Kind kind = Kind::kFault;
  HostAddress
      address;   ///< kFault: as the kernel gave it; align down to the page size of the range.
  Bytes length;  ///< All but kFault.
  HostAddress moved_to;          ///< kRemap.
  std::uint32_t thread = 0;      ///< kFault with feature::kThreadId: who waits. With KVM and an
                                 ///< in-kernel APIC it may be a kworker instead of the vCPU.
  bool minor = false;            ///< kFault: the page cache has a page. A hint only, see below.
  bool write = false;            ///< kFault: the access was a write.
  bool write_protected = false;  ///< kFault: the page is mapped, but write protected.
};

/// Most messages that one read_events() takes from the kernel.
inline constexpr std::size_t kEventBatch = 64;

/// One userfaultfd descriptor: one shard of guest memory, its waiters and its events.
///
/// `Event::minor` is a hint, never a decision: collapse and swap-out make an installed page raise a
/// minor fault, and a read of a hole through another mapping turns a later missing fault into one.
///
/// Closing the last reference wakes every waiter, who then reads zeros: stop the guest first.
///
/// Threads: any, all calls; one reader of events.
class Userfault {
 public:
  /// Does the handshake with exactly `needed` and nothing more: an event feature that nobody serves
  /// blocks threads, for example each MADV_DONTNEED with feature::kEventRemove.
  ///
  /// Errors: kUnsupported: no permission (the three ways are named), or features that this kernel
  ///         lacks (they are named). kRefused for kEventFork, whose descriptor nobody would own.
  static base::Expected<Userfault> open(FeatureSet needed, const Doors& doors = {});

  /// Reports faults in [start, start + length), both multiples of the page size. Guest memory is
  /// registered missing and minor together: missing alone lets the kernel's fault-around map up to
  /// 16 cached, perhaps stale neighbours with each touch.
  ///
  /// Errors: kUnsupported when the kernel does not offer the combination, or offers fewer ways to
  ///         resolve it than the mode needs; nothing stays registered then. kRefused when another
  ///         userfaultfd has the range (EBUSY). kFailed otherwise.
  base::Expected<Abilities> register_range(HostAddress start, Bytes length, Mode mode,
                                           Backing backing) const;

  /// Ends reporting and wakes the range's waiters. From then on the kernel maps whatever the page
  /// cache holds: every page is installed or a verified hole before.
  base::Outcome unregister(HostAddress start, Bytes length) const;

  /// Takes what is there, at most `batch.size()` and kEventBatch messages, in one system call; 0
  /// if nothing is. Never blocks, never allocates.
  ///
  /// Errors: kFailed: the descriptor is broken.
  base::Expected<std::size_t> read_events(std::span<Event> batch) const;

  /// For poll(): readable when events wait. Borrowed.
  [[nodiscard]] int fd() const { return fd_.get(); }

  [[nodiscard]] FeatureSet features() const { return features_; }

 private:
  Userfault(base::OwnedFd fd, FeatureSet features) : fd_(std::move(fd)), features_(features) {}

  base::OwnedFd fd_;
  FeatureSet features_;
};

}  // namespace towline::uffd
