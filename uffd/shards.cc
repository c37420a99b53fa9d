#include "uffd/shards.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/ensure.h"

namespace towline::uffd {
namespace {

using base::Done;
using base::ErrorKind;
using base::Expected;
using base::fail;
using base::Outcome;

std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

std::uint64_t shards_at(std::span<const Range> ranges, std::uint64_t size) {
  std::uint64_t count = 0;
  for (const Range& range : ranges) {
    count += round_up(range.length.value, size) / size;
  }
  return count;
}

/// The smallest doubling of the wanted size that keeps the number of shards in its limit.
std::uint64_t fitting_size(std::span<const Range> ranges, const ShardLimits& limits) {
  const std::size_t most = std::max(limits.most_shards, ranges.size());
  std::uint64_t size = limits.shard_size.value;
  ENSURE(size > 0, "a shard has a size");
  while (shards_at(ranges, size) > most) {
    size *= 2;
  }
  return size;
}

/// A run over several shards is one run: adds what the next shard did.
void append(RunOutcome& total, const RunOutcome& part) {
  total.installed.value += part.installed.value;
  total.already.value += part.already.value;
  total.end = part.end;
}

}  // namespace

std::vector<Shard> plan_shards(std::span<const Range> ranges, const ShardLimits& limits) {
  const std::uint64_t wanted = fitting_size(ranges, limits);
  std::vector<Shard> shards;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const Range& range = ranges[i];
    ENSURE(range.length.value % range.page_size.value == 0, "a range is whole pages");
    const std::uint64_t size = round_up(wanted, range.page_size.value);
    for (std::uint64_t done = 0; done < range.length.value; done += size) {
      const std::uint64_t length = std::min(size, range.length.value - done);
      shards.push_back({HostAddress{range.start.value + done}, Bytes{length}, range.page_size, i});
    }
  }
  std::sort(shards.begin(), shards.end(),
            [](const Shard& a, const Shard& b) { return a.start.value < b.start.value; });
  return shards;
}

std::optional<std::size_t> find_shard(std::span<const Shard> sorted, HostAddress at) {
  const auto behind = std::upper_bound(
      sorted.begin(), sorted.end(), at,
      [](HostAddress value, const Shard& shard) { return value.value < shard.start.value; });
  if (behind == sorted.begin()) {
    return std::nullopt;
  }
  const auto found = behind - 1;
  if (at.value >= found->end()) {
    return std::nullopt;
  }
  return static_cast<std::size_t>(found - sorted.begin());
}

Expected<ShardedUserfault> ShardedUserfault::open(std::span<const Range> ranges, FeatureSet extra,
                                                  const ShardLimits& limits) {
  // Known before anything is opened, so that the answer does not depend on permissions.
  for (const Range& range : ranges) {
    TRY(check_combination(range.backing, range.mode));
  }
  ShardedUserfault all;
  for (const Shard& shard : plan_shards(ranges, limits)) {
    TRY(all.add(shard, ranges[shard.range], extra));
  }
  return all;
}

Outcome ShardedUserfault::add(const Shard& shard, const Range& range, FeatureSet extra) {
  Userfault userfault = TRY(Userfault::open(features_for(range.backing, range.mode) | extra));
  const Abilities abilities =
      TRY(userfault.register_range(shard.start, shard.length, range.mode, range.backing));
  shards_.push_back(shard);
  members_.push_back({std::move(userfault), abilities});
  return Done{};
}

template <typename Fill>
Expected<RunOutcome> ShardedUserfault::route(HostAddress first, PageCount pages, Fill fill) const {
  RunOutcome total;
  const auto owner = find_shard(shards_, first);
  while (total.examined().value < pages.value) {
    const std::uint64_t left = pages.value - total.examined().value;
    const auto here = find_shard(shards_, first);
    // A run counts in one page size: it ends where a range of another one begins.
    if (!here || shards_[*here].page_size != shards_[*owner].page_size) {
      total.end = RunEnd::kGone;
      return total;
    }
    const Shard& shard = shards_[*here];
    const std::uint64_t room = (shard.end() - first.value) / shard.page_size.value;
    const PageCount count{std::min(left, room)};
    const RunOutcome part = TRY(fill(*here, first, count, total.examined()));
    append(total, part);
    if (part.end != RunEnd::kComplete) {
      return total;
    }
    first.value += count.value * shard.page_size.value;
  }
  return total;
}

Expected<RunOutcome> ShardedUserfault::continue_run(HostAddress first, PageCount pages,
                                                    Wake wake) const {
  return route(first, pages,
               [&](std::size_t shard, HostAddress at, PageCount count, PageCount /*before*/) {
                 return Installer(userfault(shard).fd())
                     .continue_run(at, count, shards_[shard].page_size, wake);
               });
}

Expected<RunOutcome> ShardedUserfault::copy_run(HostAddress first,
                                                std::span<const std::byte> source,
                                                Wake wake) const {
  const auto owner = find_shard(shards_, first);
  if (!owner) {
    return RunOutcome{{}, {}, RunEnd::kGone};
  }
  const std::uint64_t unit = shards_[*owner].page_size.value;
  ENSURE(source.size() % unit == 0, "whole pages are copied");
  return route(first, PageCount{source.size() / unit},
               [&](std::size_t shard, HostAddress at, PageCount count, PageCount before) {
                 return Installer(userfault(shard).fd())
                     .copy_run(at, source.subspan(before.value * unit, count.value * unit),
                               shards_[shard].page_size, wake);
               });
}

Expected<RunOutcome> ShardedUserfault::zero_run(HostAddress first, PageCount pages,
                                                Wake wake) const {
  return route(
      first, pages,
      [&](std::size_t shard, HostAddress at, PageCount count,
          PageCount /*before*/) -> Expected<RunOutcome> {
        if (!abilities(shard).zero) {
          return fail(ErrorKind::kUnsupported, "UFFDIO_ZEROPAGE",
                      "not offered for this memory (hugetlb): clear the page and continue");
        }
        return Installer(userfault(shard).fd()).zero_run(at, count, shards_[shard].page_size, wake);
      });
}

Expected<RunOutcome> ShardedUserfault::poison_run(HostAddress first, PageCount pages,
                                                  Wake wake) const {
  return route(first, pages,
               [&](std::size_t shard, HostAddress at, PageCount count,
                   PageCount /*before*/) -> Expected<RunOutcome> {
                 if (!abilities(shard).poison) {
                   return fail(ErrorKind::kUnsupported, "UFFDIO_POISON", "needs Linux 6.6");
                 }
                 return Installer(userfault(shard).fd())
                     .poison_run(at, count, shards_[shard].page_size, wake);
               });
}

void ShardedUserfault::wake(HostAddress start, Bytes length) const {
  const std::uintptr_t end = start.value + length.value;
  for (std::size_t i = find_shard(shards_, start).value_or(0); i < shards_.size(); ++i) {
    const std::uintptr_t from = std::max(start.value, shards_[i].start.value);
    const std::uintptr_t to = std::min(end, shards_[i].end());
    if (shards_[i].start.value >= end) {
      return;
    }
    if (from < to) {
      Installer(userfault(i).fd()).wake(HostAddress{from}, Bytes{to - from});
    }
  }
}

Outcome ShardedUserfault::keep_registered() {
  ENSURE(kept_.empty(), "a registration is kept once");
  std::vector<base::OwnedFd> kept;
  for (const Member& member : members_) {
    kept.emplace_back(::fcntl(member.userfault.fd(), F_DUPFD_CLOEXEC, 0));
    if (!kept.back().valid()) {
      return base::fail_errno(ErrorKind::kFailed, "fcntl",
                              "no descriptors are left (ulimit -n) to keep guest memory guarded");
    }
  }
  for (base::OwnedFd& fd : kept) {
    kept_.push_back(fd.release());
  }
  return Done{};
}

Outcome ShardedUserfault::unregister_all() {
  Outcome first_error = Done{};
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    Outcome outcome = userfault(i).unregister(shards_[i].start, shards_[i].length);
    if (!outcome.ok() && first_error.ok()) {
      first_error = std::move(outcome);
    }
  }
  if (first_error.ok()) {
    for (const int fd : std::exchange(kept_, {})) {
      ::close(fd);
    }
  }
  return first_error;
}

}  // namespace towline::uffd
