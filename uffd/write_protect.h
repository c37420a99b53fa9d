#pragma once

#include <cstddef>
#include <span>

#include "base/error.h"
#include "base/fd.h"
#include "base/units.h"
#include "uffd/capabilities.h"
#include "uffd/userfault.h"

namespace towline::uffd {

/// Bytes [start, start + length) that were written since they were last collected.
struct WrittenRun {
  HostAddress start;
  Bytes length;

  bool operator==(const WrittenRun&) const = default;
};

/// Which pages of a mapping were written, whoever wrote them: vCPUs, devices, system calls. The
/// kernel resolves the write faults by itself (WP_ASYNC); nobody waits for us.
///
/// One mapping has one userfaultfd: it cannot be tracked while faults in it are served.
///
/// Cost: 3.9–8 µs per page first written by a vCPU; arming 39–108 ms per GiB of 4 KiB pages;
/// collecting 24–50 ms per GiB all written, 0.1–0.5 ms if nothing was (docs/kernel-contract.md).
/// Threads: any; collect() of one part by one thread at a time.
/// Source:  Documentation/admin-guide/mm/pagemap.rst; tests/contract/write_protect_test.cc.
class WriteTracker {
 public:
  /// Begins: every page of [start, start + length) counts as not written from here on.
  ///
  /// Errors: kUnsupported before Linux 6.7, or without permission (see open_descriptor()).
  static base::Expected<WriteTracker> start(HostAddress start, Bytes length, Backing backing);

  /// Forgets what was written in [start, start + length).
  base::Outcome arm(HostAddress start, Bytes length) const;

  struct Collected {
    std::size_t runs = 0;  ///< Filled in `into`.
    HostAddress next;      ///< Where to go on; `end` if all was looked at.
  };

  /// Finds the written pages of [from, end), in order, and re-arms each as it is reported, without
  /// a gap in which a write could be lost. Stops when `into` is full.
  base::Expected<Collected> collect(HostAddress from, HostAddress end,
                                    std::span<WrittenRun> into) const;

 private:
  WriteTracker(Userfault userfault, base::OwnedFd pagemap)
      : userfault_(std::move(userfault)), pagemap_(std::move(pagemap)) {}

  Userfault userfault_;
  base::OwnedFd pagemap_;
};

}  // namespace towline::uffd
