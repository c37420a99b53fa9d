#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "uffd/installer.h"
#include "uffd/userfault.h"

namespace towline::uffd {

/// A range of guest memory, one mapping, to be cut into shards.
struct Range {
  HostAddress start;
  Bytes length;  ///< A multiple of page_size.
  Bytes page_size = base::kSmallPage;
  Backing backing = Backing::kShmem;
  Mode mode{.missing = true, .minor = true, .write_protect = false};
};

/// A part of one range with a userfaultfd of its own.
struct Shard {
  HostAddress start;
  Bytes length;
  Bytes page_size;
  std::size_t range = 0;  ///< Index of the range that it was cut from.

  [[nodiscard]] std::uintptr_t end() const { return start.value + length.value; }

  bool operator==(const Shard&) const = default;
};

struct ShardLimits {
  /// A userfaultfd serializes its faults (150 k/s falls to 36 k/s with 256 vCPUs on one).
  Bytes shard_size{1UL << 30U};
  /// Descriptors are limited to 1024 in many shells: shards grow instead.
  std::size_t most_shards = 256;
};

/// Cuts ranges into shards, sorted by address. Pure. No shard spans two ranges, and every cut is
/// at a multiple of the range's page size from its start.
std::vector<Shard> plan_shards(std::span<const Range> ranges, const ShardLimits& limits = {});

/// Index of the shard that contains `at`; nothing if none does. Pure, O(log shards).
std::optional<std::size_t> find_shard(std::span<const Shard> sorted, HostAddress at);

/// Guest memory under several userfaultfds, one per shard, with installs routed to the owner.
///
/// A run may cross shards and ranges that touch: it is cut where they end.
///
/// Threads: any for all calls on an open object; one reader of events per shard.
class ShardedUserfault {
 public:
  /// Opens a descriptor per shard with exactly the features that the ranges need and `extra`, and
  /// registers everything.
  ///
  /// Errors: as Userfault::open() and register_range(): the first one, with nothing left
  /// registered.
  static base::Expected<ShardedUserfault> open(std::span<const Range> ranges, FeatureSet extra = {},
                                               const ShardLimits& limits = {});

  [[nodiscard]] std::span<const Shard> shards() const { return shards_; }

  [[nodiscard]] const Userfault& userfault(std::size_t shard) const {
    return members_[shard].userfault;
  }

  [[nodiscard]] const Abilities& abilities(std::size_t shard) const {
    return members_[shard].abilities;
  }

  /// As Installer's. kGone also for a page that no shard contains.
  [[nodiscard]] base::Expected<RunOutcome> continue_run(HostAddress first, PageCount pages,
                                                        Wake wake = Wake::kNow) const;
  [[nodiscard]] base::Expected<RunOutcome> copy_run(HostAddress first,
                                                    std::span<const std::byte> source,
                                                    Wake wake = Wake::kNow) const;
  /// Errors: also kUnsupported where the kernel has no ZEROPAGE (hugetlb) or no POISON.
  [[nodiscard]] base::Expected<RunOutcome> zero_run(HostAddress first, PageCount pages,
                                                    Wake wake = Wake::kNow) const;
  [[nodiscard]] base::Expected<RunOutcome> poison_run(HostAddress first, PageCount pages,
                                                      Wake wake = Wake::kNow) const;

  /// Wakes through every owner of a part of [start, start + length).
  void wake(HostAddress start, Bytes length) const;

  /// From here on only unregister_all() and the end of the process end the registration. Closing
  /// the last descriptor would wake every waiter, who then reads zeros; with this, whoever closes
  /// one too early (a destructor out of order, a wrong number) leaves them waiting. Once.
  ///
  /// Errors: kFailed: no more descriptors (EMFILE); nothing is kept then.
  /// Source: fs/userfaultfd.c, userfaultfd_release(); tests/contract/last_reference_test.cc.
  base::Outcome keep_registered();

  /// Ends reporting everywhere: see Userfault::unregister(). Goes on after an error and returns the
  /// first.
  base::Outcome unregister_all();

 private:
  struct Member {
    Userfault userfault;
    Abilities abilities;
  };

  ShardedUserfault() = default;

  base::Outcome add(const Shard& shard, const Range& range, FeatureSet extra);

  template <typename Fill>
  base::Expected<RunOutcome> route(HostAddress first, PageCount pages, Fill fill) const;

  std::vector<Shard> shards_;    // Constant after open(), sorted by address.
  std::vector<Member> members_;  // Likewise, parallel to shards_.
  // Duplicates of the members' descriptors. Not closed with this: that is what they are for.
  std::vector<int> kept_;
};

}  // namespace towline::uffd
