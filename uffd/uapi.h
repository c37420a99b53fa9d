#pragma once

// What the running kernel may know and the headers of the build machine (Linux 6.1) do not. All of
// it is asked for at run time (uffd/capabilities.h): a header says what was compiled against, never
// what runs. The names are our own, so that a newer header cannot collide with them.

#include <linux/ioctl.h>
#include <linux/userfaultfd.h>

#include <cstdint>

namespace towline::uffd::uapi {

// ---- userfaultfd: UFFDIO_POISON, Linux 6.6 ------------------------------------------------------
struct Poison {
  uffdio_range range;
  std::uint64_t mode;
  std::int64_t updated;  // Out: bytes poisoned, or a negative errno.
};

inline constexpr unsigned kPoisonBit = 0x08;  // In the mask that UFFDIO_REGISTER returns.
inline constexpr unsigned long kPoison = _IOWR(UFFDIO, kPoisonBit, Poison);
inline constexpr std::uint64_t kPoisonDontWake = 1ULL << 0U;
static_assert(kPoison == 0xc020aa08);

// ---- /proc/PID/pagemap: PAGEMAP_SCAN, Linux 6.7 -------------------------------------------------
struct PageRegion {
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t categories;
};

struct PagemapScan {
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t walk_end;  // Out: where the walk stopped.
  std::uint64_t vec;
  std::uint64_t vec_len;
  std::uint64_t max_pages;
  std::uint64_t category_inverted;
  std::uint64_t category_mask;
  std::uint64_t category_anyof_mask;
  std::uint64_t return_mask;
};

inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScan);
static_assert(kPagemapScan == 0xc0606610);
inline constexpr std::uint64_t kScanWriteProtectMatching = 1ULL << 0U;
inline constexpr std::uint64_t kScanCheckWpAsync = 1ULL << 1U;
inline constexpr std::uint64_t kPageIsWritten = 1ULL << 1U;

// ---- /proc/PID/pagemap: the 64-bit entry (Documentation/admin-guide/mm/pagemap.rst) -------------
inline constexpr std::uint64_t kPagemapPresent = 1ULL << 63U;

// ---- madvise(2) ---------------------------------------------------------------------------------
inline constexpr int kMadvCollapse = 25;  // Linux 6.1; glibc 2.36 does not name it.

}  // namespace towline::uffd::uapi
