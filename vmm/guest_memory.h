#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/units.h"
#include "runtime/ports.h"

namespace towline::vmm {

/// Guest memory up to this address is "ram.low"; the rest begins at 4 GiB as "ram.high". Between
/// them lie the interrupt controllers and the devices.
inline constexpr base::GuestAddress kLowMemoryEnd{3UL << 30U};
inline constexpr base::GuestAddress kHighMemoryStart{4UL << 30U};

/// What guest memory is made of.
struct MemoryKind {
  runtime::Backing backing = runtime::Backing::kMemfd;  ///< kMemfd or kHugetlb.

  /// Empty: a memfd. Otherwise that file, or one without a name in that folder, on a tmpfs. Not
  /// with kHugetlb.
  std::string path;

  /// Where room is limited (huge pages, a file system with a size), all is taken at once, so that
  /// the guest cannot die of a page that there is no room for. A target takes pages as they come.
  bool reserve = false;
};

/// The guest's memory: one sparse file, mapped once. A page that was never touched costs nothing,
/// unless it was reserved.
///
/// Constant after construction; threads: any. The addresses handed out live as long as it does.
class GuestMemory {
 public:
  /// `address_bits`: how far guest physical addresses reach on this host.
  ///
  /// Errors: kRefused when `size` is zero, not a multiple of the page (4096, 2 MiB on huge pages),
  /// or larger than can be mapped or taken; and for a path that is in use or on another kind of
  /// file system. Names the values. kUnsupported: this kernel has no huge pages of 2 MiB.
  static base::Expected<GuestMemory> create(base::Bytes size, unsigned address_bits,
                                            const MemoryKind& kind = {});

  GuestMemory(GuestMemory&& other) noexcept;
  GuestMemory& operator=(GuestMemory&& other) = delete;
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;
  ~GuestMemory();

  [[nodiscard]] const std::vector<runtime::Region>& regions() const { return regions_; }

  /// The bytes of [at, at + size), if guest memory holds all of them in one region.
  [[nodiscard]] std::optional<std::span<std::byte>> slice(base::GuestAddress at,
                                                          base::Bytes size) const;

  /// The page of `at` in the machine's flat page space.
  [[nodiscard]] std::optional<base::PageIndex> page_of(base::GuestAddress at) const;

 private:
  GuestMemory(base::OwnedFd fd, void* mapping, base::Bytes size, runtime::Backing backing);

  base::OwnedFd fd_;
  void* mapping_;
  base::Bytes size_;
  std::vector<runtime::Region> regions_;
};

}  // namespace towline::vmm
