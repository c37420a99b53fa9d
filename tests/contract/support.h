#pragma once

#include <linux/memfd.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <ostream>
#include <span>
#include <string>
#include <thread>

#include "base/fd.h"
#include "tests/support/huge_pages.h"
#include "uffd/installer.h"
#include "uffd/mapping.h"
#include "uffd/userfault.h"

/// What the contract tests share. They exercise the kernel through thin wrappers of ours: when one
/// fails, the kernel is not the one that we wrote for, and no other result can be trusted.
namespace towline::contract {

using base::Bytes;
using base::HostAddress;
using base::PageCount;

inline constexpr std::size_t kPage = 4096;
inline constexpr std::size_t kHuge = 2UL << 20U;
inline constexpr unsigned kHugeMemfd = MFD_HUGETLB | MFD_HUGE_2MB;

/// Prints "SKIP: reason" and counts it; the total is printed as "SKIPPED: n" at the end of the run.
void note_skip(const std::string& reason);

/// Why userfaultfd cannot be used here; empty if it can.
std::string no_userfaultfd(uffd::FeatureSet needed = {});

/// A memfd of `length` bytes, on small pages or on 2 MiB hugetlb.
base::OwnedFd make_memfd(std::size_t length, unsigned flags = 0);

/// A mapping that ends with its scope.
class Mapping {
 public:
  Mapping() = default;
  /// Shared mapping of `fd`, or anonymous private memory if `fd` is -1.
  Mapping(int fd, std::size_t length, std::size_t alignment = kPage);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&&) = delete;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  [[nodiscard]] std::byte* data() const { return start_; }

  [[nodiscard]] std::size_t size() const { return length_; }

  [[nodiscard]] HostAddress at(std::size_t offset = 0) const {
    return HostAddress{reinterpret_cast<std::uintptr_t>(start_) + offset};
  }

 private:
  std::byte* start_ = nullptr;
  std::size_t length_ = 0;
};

/// Guest memory as the product has it: a memfd with a guest mapping and an alias.
struct TwoMappings {
  explicit TwoMappings(std::size_t pages);

  base::OwnedFd fd;
  Mapping guest;
  uffd::Alias alias;

  /// Fills page `page` through the alias.
  void fill(std::size_t page, std::uint8_t value) const;
};

/// Reads one byte through a volatile access: never folded, never moved.
std::uint8_t peek(const std::byte* at);
void poke(std::byte* at, std::uint8_t value);

/// Whether every byte of the page at `at` is `value`.
bool all_bytes(const std::byte* at, std::size_t length, std::uint8_t value);

/// Opens a userfaultfd; fails the test if that is refused.
uffd::Userfault open_userfault(uffd::FeatureSet needed = {});

/// Waits in poll() until an event is there, however long it takes, and leaves it there.
void await_event(const uffd::Userfault& userfault);

/// As await_event(), and reads it.
uffd::Event next_event(const uffd::Userfault& userfault);

/// Whether no event waits.
bool is_silent(const uffd::Userfault& userfault);

/// Waiters of the descriptor, as /proc/self/fdinfo says: `total` counts those whose event was read
/// too. A wake takes a waiter off before its ioctl returns, so this needs no time to pass.
std::size_t waiters(const uffd::Userfault& userfault);
std::size_t waiters_of(int userfault_fd);

/// Whether a page-table entry is there.
bool is_mapped(HostAddress at);

/// The VmFlags of the mapping that begins at `start`, as /proc/self/smaps has them.
std::string flags_of(HostAddress start);

/// Runs `body` on a thread that is joined at the end of the scope.
class Toucher {
 public:
  explicit Toucher(std::function<void()> body) : thread_(std::move(body)) {}

  Toucher(const Toucher&) = delete;
  Toucher& operator=(const Toucher&) = delete;

  ~Toucher() { join(); }

  void join() {
    if (thread_.joinable()) {
      thread_.join();
    }
  }

 private:
  std::thread thread_;
};

using tests::HugePages;

}  // namespace towline::contract

namespace towline::uffd {

/// For doctest's messages.
std::ostream& operator<<(std::ostream& out, const RunOutcome& outcome);

}  // namespace towline::uffd

/// Ends the test case, counted as skipped, if `reason` is not empty.
#define SKIP_IF(reason)                                                    \
  do {                                                                     \
    if (const std::string& skip_reason = (reason); !skip_reason.empty()) { \
      ::towline::contract::note_skip(skip_reason);                         \
      return;                                                              \
    }                                                                      \
  } while (false)
