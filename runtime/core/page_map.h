#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "base/units.h"

namespace towline::runtime {

/// What the target knows of one page. Four bits a page: 128 KiB per GiB of guest memory.
enum class PageState : std::uint8_t {
  kMissing = 0,       ///< Not here. The next touch must fetch it.
  kInstalled = 1,     ///< Here; the guest may have seen it, so the migration never writes it again.
  kZero = 2,          ///< Holds zeros, as a verified hole; the next touch is answered locally.
  kPoisoned = 3,      ///< Lost with its source: every touch is an error. Final.
  kClaimed = 4,       ///< Somebody is bringing it: only they may write its bytes or map it.
  kClaimedStale = 5,  ///< As kClaimed, but what they bring was written over at the source.
  kClaimedZero = 6,   ///< As kClaimed, taken of a verified hole: the source has nothing to add.
};

/// The calls that change it.
enum class PageEvent : std::uint8_t {
  kClaim,            ///< claim_run()
  kClaimZero,        ///< claim_zero()
  kFinishInstalled,  ///< finish_installed()
  kFinishZero,       ///< finish_zero()
  kFinishPoisoned,   ///< finish_poisoned()
  kAbandon,          ///< abandon()
  kMarkStale,        ///< mark_stale()
};

struct PageRule {
  PageState from;
  PageEvent on;
  PageState to;
};

/// Every change of a page. What is not listed leaves it as it is; to end a claim that has no rule
/// here breaks an invariant.
// clang-format off
inline constexpr std::array kPageRules{
    PageRule{PageState::kMissing,      PageEvent::kClaim,           PageState::kClaimed},
    PageRule{PageState::kZero,         PageEvent::kClaimZero,       PageState::kClaimedZero},
    PageRule{PageState::kClaimed,      PageEvent::kFinishInstalled, PageState::kInstalled},
    PageRule{PageState::kClaimed,      PageEvent::kFinishZero,      PageState::kZero},
    PageRule{PageState::kClaimed,      PageEvent::kFinishPoisoned,  PageState::kPoisoned},
    PageRule{PageState::kClaimed,      PageEvent::kAbandon,         PageState::kMissing},
    PageRule{PageState::kClaimed,      PageEvent::kMarkStale,       PageState::kClaimedStale},
    PageRule{PageState::kClaimedZero,  PageEvent::kFinishInstalled, PageState::kInstalled},
    PageRule{PageState::kClaimedZero,  PageEvent::kFinishZero,      PageState::kZero},
    PageRule{PageState::kClaimedZero,  PageEvent::kAbandon,         PageState::kZero},
    PageRule{PageState::kClaimedZero,  PageEvent::kMarkStale,       PageState::kClaimedStale},
    PageRule{PageState::kClaimedStale, PageEvent::kFinishInstalled, PageState::kMissing},
    PageRule{PageState::kClaimedStale, PageEvent::kFinishZero,      PageState::kMissing},
    PageRule{PageState::kClaimedStale, PageEvent::kAbandon,         PageState::kMissing},
    PageRule{PageState::kInstalled,    PageEvent::kMarkStale,       PageState::kMissing},
    PageRule{PageState::kZero,         PageEvent::kMarkStale,       PageState::kMissing},
};
// clang-format on

std::string_view to_string(PageState state);

/// Somebody has the claim, of whatever kind.
constexpr bool is_claimed(PageState state) {
  return state == PageState::kClaimed || state == PageState::kClaimedStale ||
         state == PageState::kClaimedZero;
}

/// The only code that changes a page's state at the target.
///
/// Life of a page: missing → claimed → installed; or claimed → zero; or claimed → missing again
/// when its bearer gives up. The claim is taken before the first byte may land in the alias and
/// held until the page is mapped. Marking stale takes installed and zero pages back to missing
/// while the guest still runs at the source; a claimed page it makes claimed-stale, and whoever
/// holds the claim finds that when the claim ends.
///
/// Threads: any; lock-free. All orders are sequentially consistent, because the fault thread and
/// the claim's holder each write one structure and read the other (request_table.h).
class PageMap {
 public:
  explicit PageMap(base::PageCount pages);

  [[nodiscard]] base::PageCount pages() const { return pages_; }

  [[nodiscard]] PageState state(base::PageIndex page) const;

  /// Claims the longest head of `range` whose pages are missing. 0: the first one is not.
  [[nodiscard]] base::PageCount claim_run(base::PageRange range);

  /// zero → claimed, to put a page of zeros there for a waiting access. False: not zero.
  [[nodiscard]] bool claim_zero(base::PageIndex page);

  /// Ends the claim of `range`: every page is mapped (installed) or a punched hole (zero). Pages
  /// that went stale meanwhile become missing and are appended to `went_stale`: the caller zaps
  /// them. Breaks an invariant if a page of `range` is not claimed.
  void finish_installed(base::PageRange range, std::vector<base::PageIndex>& went_stale);
  void finish_zero(base::PageRange range, std::vector<base::PageIndex>& went_stale);

  /// Ends the claim of `range` without a page: missing again, or zero again where the claim was
  /// taken by claim_zero() and nothing made the page stale.
  void abandon(base::PageRange range);

  /// Ends the claim of `range` for ever: its content is lost, and nothing may be put there any
  /// more. For pages that were claimed as missing and cannot go stale.
  void finish_poisoned(base::PageRange range);

  /// Takes back what the target has of `range`. `zap` is called for each maximal run of pages that
  /// were installed until now, after their state says missing.
  void mark_stale(base::PageRange range, const std::function<void(base::PageRange)>& zap);

  /// The first run of missing pages at or after `from`, at most `limit` long.
  [[nodiscard]] std::optional<base::PageRange> next_missing(base::PageIndex from,
                                                            base::PageCount limit) const;

  /// Pages that only the source has: missing, or claimed (but not those claimed by claim_zero(),
  /// so that this never grows after the switch). Like claimed(), never smaller than the truth,
  /// and larger only while a call is under way: 0 is final once nothing can go stale.
  [[nodiscard]] base::PageCount missing() const;
  [[nodiscard]] base::PageCount claimed() const;  ///< Open claims.
  [[nodiscard]] base::PageCount zero() const;     ///< Verified holes that nobody has claimed.
  [[nodiscard]] base::PageCount poisoned() const;

 private:
  using Word = std::atomic<std::uint64_t>;  // The states of 16 pages, 4 bits each.

  void check(base::PageRange range) const;
  std::uint64_t claim_head(std::uint64_t index, std::uint64_t lows);
  template <PageEvent event>
  void finish(base::PageRange range, std::vector<base::PageIndex>& went_stale);

  base::PageCount pages_;
  std::unique_ptr<Word[]> words_;
  std::atomic<std::uint64_t> missing_;
  std::atomic<std::uint64_t> claimed_{0};
  std::atomic<std::uint64_t> zero_{0};
  std::atomic<std::uint64_t> poisoned_{0};
};

}  // namespace towline::runtime
