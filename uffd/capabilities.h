#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "base/sync.h"

namespace towline::uffd {

/// Optional abilities of userfaultfd, as the UFFDIO_API handshake names them.
struct FeatureSet {
  std::uint64_t bits = 0;

  [[nodiscard]] constexpr bool contains(FeatureSet other) const {
    return (bits & other.bits) == other.bits;
  }

  [[nodiscard]] constexpr FeatureSet without(FeatureSet other) const {
    return FeatureSet{bits & ~other.bits};
  }

  [[nodiscard]] constexpr bool empty() const { return bits == 0; }

  constexpr FeatureSet operator|(FeatureSet other) const { return FeatureSet{bits | other.bits}; }

  bool operator==(const FeatureSet&) const = default;
};

namespace feature {
inline constexpr FeatureSet kPagefaultFlagWp{1ULL << 0U};  // Linux 5.7
inline constexpr FeatureSet kEventFork{1ULL << 1U};        // Linux 4.11
inline constexpr FeatureSet kEventRemap{1ULL << 2U};       // Linux 4.11
inline constexpr FeatureSet kEventRemove{1ULL << 3U};      // Linux 4.11
inline constexpr FeatureSet kMissingHugetlb{1ULL << 4U};   // Linux 4.11
inline constexpr FeatureSet kMissingShmem{1ULL << 5U};     // Linux 4.11
inline constexpr FeatureSet kEventUnmap{1ULL << 6U};       // Linux 4.11
inline constexpr FeatureSet kSigbus{1ULL << 7U};           // Linux 4.14
inline constexpr FeatureSet kThreadId{1ULL << 8U};         // Linux 4.14
inline constexpr FeatureSet kMinorHugetlb{1ULL << 9U};     // Linux 5.13
inline constexpr FeatureSet kMinorShmem{1ULL << 10U};      // Linux 5.14
inline constexpr FeatureSet kExactAddress{1ULL << 11U};    // Linux 5.18
inline constexpr FeatureSet kWpHugetlbShmem{1ULL << 12U};  // Linux 5.19
inline constexpr FeatureSet kWpUnpopulated{1ULL << 13U};   // Linux 6.4
inline constexpr FeatureSet kPoison{1ULL << 14U};          // Linux 6.6
inline constexpr FeatureSet kWpAsync{1ULL << 15U};         // Linux 6.7
inline constexpr FeatureSet kMove{1ULL << 16U};            // Linux 6.8
}  // namespace feature

/// "missing-shmem minor-shmem bit-40": for messages.
std::string to_string(FeatureSet features);

/// How a descriptor is had.
enum class Door : std::uint8_t { kDevice, kSystemCall };

/// The two ways to a userfaultfd, replaceable so that a test can shut them.
struct Doors {
  const char* device = "/dev/userfaultfd";  ///< Linux 6.1.
  /// As userfaultfd(2): a descriptor, or -1 and errno. `flags` never has UFFD_USER_MODE_ONLY.
  int (*system_call)(int flags) = nullptr;  ///< nullptr: the real one.
};

/// A new descriptor before its UFFDIO_API handshake: close-on-exec, non-blocking.
struct RawDescriptor {
  base::OwnedFd fd;
  Door door = Door::kDevice;
};

/// Goes through the device first, then the system call; never for user mode only, because KVM's own
/// faults on guest memory come from kernel mode and would fail with EFAULT.
///
/// Errors: kUnsupported when neither door opens; `detail` names the three ways to be let in, or
///         says that this kernel has no userfaultfd. kOverloaded when there are no descriptors
///         or no memory for one.
/// Source: userfaultfd(2).
base::Expected<RawDescriptor> open_descriptor(const Doors& doors = {});

/// What this kernel can do, asked once at run time.
struct Capabilities {
  FeatureSet features;
  Door door = Door::kDevice;
  bool pagemap_scan = false;  ///< PAGEMAP_SCAN on /proc/self/pagemap answers (Linux 6.7).

  /// Dirty tracking without a fault per write: needs all three of its parts.
  [[nodiscard]] bool tracks_writes() const {
    return pagemap_scan && features.contains(feature::kWpAsync | feature::kWpUnpopulated);
  }
};

/// Asks now. Errors: as open_descriptor().
base::Expected<Capabilities> probe(const Doors& doors = {});

/// Remembers what a kernel can do once it was told. A failure is not remembered: descriptors are
/// closed again, and permissions are given, while the process lives.
///
/// Threads: any.
class CapabilityMemory {
 public:
  /// Errors: as probe(), of this call.
  base::Expected<Capabilities> ask(const Doors& doors = {}) EXCLUDES(mutex_);

 private:
  base::Mutex mutex_;
  std::optional<Capabilities> known_ GUARDED_BY(mutex_);
};

/// As probe(), with the memory of this process. Threads: any.
base::Expected<Capabilities> capabilities();

}  // namespace towline::uffd
