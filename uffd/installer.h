#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/units.h"

namespace towline::uffd {

using base::Bytes;
using base::HostAddress;
using base::PageCount;

/// Whether threads that wait in the installed pages go on at once.
enum class Wake : std::uint8_t {
  kNow,
  kLater,  ///< The caller wakes the whole run itself, after its last install.
};

/// Why a run ended. All of them are normal in a live migration.
enum class RunEnd : std::uint8_t {
  kComplete,        ///< Every page was dealt with.
  kLayoutChanging,  ///< EAGAIN again and again: mappings are moving. Read the events, try again.
  kGone,            ///< ENOENT, ESRCH: not registered any more, or across two mappings. It means
                    ///< gone only if the caller's own table of ranges says so too.
  kNoPage,          ///< CONTINUE only: the page cache has no page there.
  kNoMemory,        ///< ENOMEM, ENOSPC: no page could be had. Pause and try again later.
};

/// What became of a run of pages. Pages [0, examined()) are settled; page examined() is the one
/// that `end` is about.
struct RunOutcome {
  PageCount installed;  ///< Made visible by this call.
  /// EEXIST, each woken here. From CONTINUE and POISON: it was mapped. From COPY and ZEROPAGE on
  /// anonymous memory likewise; on a file it is no success: the page cache has a page, which may be
  /// stale and need not be mapped, or (hugetlb) no page was free. A CONTINUE tells which.
  PageCount already;
  RunEnd end = RunEnd::kComplete;

  [[nodiscard]] PageCount examined() const { return PageCount{installed.value + already.value}; }

  bool operator==(const RunOutcome&) const = default;
};

/// The ioctls that fill pages.
enum class Fill : std::uint8_t { kContinue, kCopy, kZero, kPoison };

/// The kernel's answer to one of them, as it came.
struct FillAnswer {
  int result = 0;         ///< Of ioctl().
  int errno_value = 0;    ///< Meaningful if result is not 0.
  std::int64_t done = 0;  ///< The request's output field: bytes, or a negative errno, or untouched.
};

/// What to do after one answer.
struct FillStep {
  enum class Action : std::uint8_t {
    kAdvance,  ///< `pages` were installed; go on behind them.
    kSkip,     ///< One page was there already: wake it, go on behind it.
    kRetry,    ///< Nothing happened; the same request may succeed.
    kEnd,      ///< The run ends here with `end`.
    kBug,      ///< EINVAL and its like: our fault.
  };
  Action action = Action::kAdvance;
  PageCount pages;
  RunEnd end = RunEnd::kComplete;

  bool operator==(const FillStep&) const = default;
};

/// Reads the answer to a request over `length` bytes. Pure.
FillStep decode_fill(Fill fill, const FillAnswer& answer, Bytes length, Bytes page_size);

/// Makes pages visible to the guest through one userfaultfd: the one that owns their range. Another
/// one's descriptor would be obeyed too, and would wake nobody.
///
/// A run lies in one registered range and one mapping. `page_size` is the range's: 4096, or 2 MiB
/// on hugetlb. Nothing here allocates, locks, or touches guest memory.
///
/// Threads: any, also several on the same pages: the first wins, the rest see `already`.
/// Errors:  kFailed: EINVAL, EFAULT of COPY, EIO: a bug of ours or broken memory.
/// Source:  ioctl_userfaultfd(2); tests/contract/install_test.cc.
class Installer {
 public:
  explicit Installer(int fd) : fd_(fd) {}

  /// Maps the pages that the page cache holds. 0.56 µs a page singly, 0.27 µs in runs of 8 and more
  /// (docs/kernel-contract.md).
  ///
  /// Its success says nothing about the bytes: a page that was only allocated continues as zeros.
  [[nodiscard]] base::Expected<RunOutcome> continue_run(HostAddress first, PageCount pages,
                                                        Bytes page_size,
                                                        Wake wake = Wake::kNow) const;

  /// Fills the pages from `source`, whole pages of `page_size`, and maps them.
  [[nodiscard]] base::Expected<RunOutcome> copy_run(HostAddress first,
                                                    std::span<const std::byte> source,
                                                    Bytes page_size, Wake wake = Wake::kNow) const;

  /// Maps zeros. Not on hugetlb (EINVAL): see Abilities::zero.
  [[nodiscard]] base::Expected<RunOutcome> zero_run(HostAddress first, PageCount pages,
                                                    Bytes page_size, Wake wake = Wake::kNow) const;

  /// Makes every later access a SIGBUS (KVM_RUN: EFAULT). Linux 6.6, Abilities::poison.
  [[nodiscard]] base::Expected<RunOutcome> poison_run(HostAddress first, PageCount pages,
                                                      Bytes page_size,
                                                      Wake wake = Wake::kNow) const;

  /// Lets every thread that waits in [start, start + length) look again. Multiples of 4096.
  void wake(HostAddress start, Bytes length) const;

 private:
  template <typename Issue>
  base::Expected<RunOutcome> run(Fill fill, HostAddress first, PageCount pages, Bytes page_size,
                                 Issue issue) const;

  int fd_ = -1;  // Borrowed from a Userfault, which outlives every Installer.
};

}  // namespace towline::uffd
