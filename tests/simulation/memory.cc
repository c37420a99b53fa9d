#include "tests/simulation/memory.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"

namespace towline::simulation {
namespace {

using base::Outcome;
using base::PageIndex;
using base::PageRange;
using runtime::PageState;

constexpr std::size_t kPageBytes = base::kSmallPage.value;
constexpr std::size_t kTailOffset = kPageBytes - 8;
constexpr std::size_t kNumberOffset = 2000;

template <typename Each>
void for_each_page(PageRange range, Each each) {
  for (std::uint64_t page = range.first.value; page < range.end().value; ++page) {
    each(PageIndex{page});
  }
}

}  // namespace

void fill_page(Content content, PageIndex page, std::span<std::byte> bytes) {
  const std::uint64_t number = content.zero() ? 0 : page.value + 1;
  std::memset(bytes.data(), 0, kPageBytes);
  std::memcpy(bytes.data(), &content.head, 8);
  std::memcpy(bytes.data() + kNumberOffset, &number, 8);
  std::memcpy(bytes.data() + kTailOffset, &content.tail, 8);
}

std::optional<Content> read_page(std::span<const std::byte> bytes, PageIndex page) {
  Content content;
  std::uint64_t number = 0;
  std::memcpy(&content.head, bytes.data(), 8);
  std::memcpy(&number, bytes.data() + kNumberOffset, 8);
  std::memcpy(&content.tail, bytes.data() + kTailOffset, 8);
  const auto between = [&](std::size_t first, std::size_t end) {
    return base::all_zero(bytes.subspan(first, end - first));
  };
  const bool right = number == (content.zero() ? 0 : page.value + 1) && between(8, kNumberOffset) &&
                     between(kNumberOffset + 8, kTailOffset);
  return right ? std::optional(content) : std::nullopt;
}

// ---- source -------------------------------------------------------------------------------------

SourceGuest::SourceGuest(World& world)
    : world_(world), memory_(world.layout.pages().value), backed_(world.layout.pages().value) {
  for (const auto& entry : world.layout.entries()) {
    log_.emplace_back((entry.count.value + 63) / 64, 0);
  }
  const std::uint64_t holes = world.random.between(2, 6);
  for (std::uint64_t page = 0; page < memory_.size(); ++page) {
    if (!world.random.once_in(holes)) {
      fill(PageIndex{page});
    }
  }
}

void SourceGuest::fill(PageIndex page) {
  const std::uint64_t value = world_.write(page);
  memory_[page.value] = {value, value};
  backed_[page.value] = true;
}

void SourceGuest::mark(PageIndex page) {
  const auto place = world_.layout.locate(page);
  const std::uint64_t bit = place.offset / kPageBytes;
  log_[place.region][bit / 64] |= std::uint64_t{1} << (bit % 64);
}

void SourceGuest::write_something() {
  // A small working set, so that the same page is written again and again.
  const std::uint64_t set = std::max<std::uint64_t>(1, memory_.size() / 3);
  const PageIndex page{world_.random.below(world_.random.once_in(3) ? memory_.size() : set)};
  fill(page);
  mark(page);
}

void SourceGuest::device_writes() {
  const PageIndex page{world_.random.below(memory_.size())};
  fill(page);
  device_.push_back(page);
}

void SourceGuest::device_completes() {
  if (!world_.planted(Plant::kDeviceUnmarked)) {
    mark(device_.front());
  }
  device_.pop_front();
}

Outcome SourceGuest::enable() {
  for (auto& words : log_) {
    std::fill(words.begin(), words.end(), ~std::uint64_t{0});
  }
  return base::Done{};
}

void SourceGuest::disable() {
}

Outcome SourceGuest::read(std::size_t region, std::span<std::uint64_t> bitmap) {
  for (std::size_t i = 0; i < bitmap.size(); ++i) {
    bitmap[i] = log_[region][i];
    world_.guest_cuts_in();
  }
  return base::Done{};
}

Outcome SourceGuest::clear(std::size_t region, std::uint64_t first, std::uint64_t count,
                           std::span<const std::uint64_t> bitmap) {
  for (std::size_t i = 0; i < (count + 63) / 64; ++i) {
    log_[region][first / 64 + i] &= ~bitmap[i];
    world_.guest_cuts_in();
  }
  return base::Done{};
}

// ---- target: what the migration does ------------------------------------------------------------

TargetGuest::TargetGuest(World& world, const runtime::PageMap& map, std::size_t threads)
    : world_(world),
      map_(map),
      file_(world.layout.pages().value),
      mapped_(world.layout.pages().value),
      poisoned_(world.layout.pages().value),
      seen_(world.layout.pages().value),
      threads_(threads) {
}

void TargetGuest::check_claimed(PageRange range, const char* what) {
  for_each_page(range, [&](PageIndex page) {
    if (!is_claimed(map_.state(page))) {
      world_.stop(std::string(what) + " without a claim");
    }
    if (seen_[page.value] || (world_.switched && mapped_[page.value])) {
      world_.fail(std::string(what) + " of a page that the guest has seen or can see");
    }
  });
}

// Whoever was cut in on finds its claim as it left it, or the claim's own end would break.
void TargetGuest::check_still_claimed(PageRange range, const char* what) {
  for_each_page(range, [&](PageIndex page) {
    if (!is_claimed(map_.state(page))) {
      world_.stop(std::string(what) + " lost its claim half-way");
    }
  });
}

/// Before the switch; afterwards there is room.
bool TargetGuest::is_full() {
  if (world_.setup.trouble != Trouble::kNoRoom || world_.switched) {
    return false;
  }
  if (full_for_ == 0 && world_.random.once_in(6)) {
    full_for_ = world_.random.between(1, 20);
  }
  return full_for_ > 0 && full_for_-- > 0;
}

Outcome TargetGuest::write(PageRange range, std::span<const std::byte> bytes) {
  check_claimed(range, "a write");
  if (is_full()) {
    world_.preempt();
    return base::fail(base::ErrorKind::kOverloaded, "pwrite", "no room");
  }
  if (world_.setup.tight_memory && world_.random.once_in(12)) {
    world_.saw("a page could not be written");
    world_.preempt();
    return base::fail(base::ErrorKind::kOverloaded, "pwrite", "no memory");
  }
  for_each_page(range, [&](PageIndex page) {
    const auto own = bytes.subspan((page.value - range.first.value) * kPageBytes, kPageBytes);
    const auto content = read_page(own, page);
    if (!content.has_value()) {
      world_.fail("a page got the bytes of another");
      return;
    }
    // Half of it, and then the rest: in between the guest must not be able to see the page.
    file_[page.value] = Content{content->head, ~content->tail};
    world_.preempt();
    check_still_claimed(range, "a write");
    file_[page.value] = *content;
  });
  return base::Done{};
}

Outcome TargetGuest::punch(PageRange range) {
  check_claimed(range, "a punch");
  world_.preempt();
  if (!world_.planted(Plant::kZeroNotPunched)) {
    for_each_page(range, [&](PageIndex page) {
      file_[page.value].reset();
      mapped_[page.value] = false;
    });
  }
  check_still_claimed(range, "a punch");
  return base::Done{};
}

Outcome TargetGuest::back_with_zeros(PageRange range) {
  if (world_.setup.tight_memory && world_.random.once_in(12)) {
    world_.saw("zeros could not be stored");
    return base::fail(base::ErrorKind::kOverloaded, "fallocate", "no memory");
  }
  for_each_page(range, [&](PageIndex page) {
    if (!is_claimed(map_.state(page))) {
      world_.stop("zeros without a claim");
    }
    if (!file_[page.value].has_value()) {  // As fallocate(): what is there stays.
      file_[page.value] = Content{};
    }
  });
  world_.preempt();
  check_still_claimed(range, "zeros");
  return base::Done{};
}

Outcome TargetGuest::map(PageRange range) {
  const bool claimed = is_claimed(map_.state(range.first));
  for (std::uint64_t i = range.first.value; i < range.end().value; ++i) {
    if (!file_[i].has_value() && registered_) {
      return base::fail(base::ErrorKind::kFailed, "UFFDIO_CONTINUE", "no page in the file");
    }
    mapped_[i] = mapped_[i] || registered_;
    wake({PageIndex{i}, base::PageCount{1}});
    world_.preempt();
  }
  if (claimed) {
    check_still_claimed(range, "a mapping");
  }
  return base::Done{};
}

void TargetGuest::zap(PageRange range) {
  if (world_.switched) {
    world_.fail("a page went stale after the switch");
  }
  if (world_.planted(Plant::kZapForgotten)) {
    return;
  }
  for_each_page(range, [&](PageIndex page) { mapped_[page.value] = false; });
  world_.preempt();
}

Outcome TargetGuest::poison(PageRange range) {
  if (map_.state(range.first) == PageState::kPoisoned) {
    world_.saw("a page was poisoned again");
    return base::Done{};
  }
  check_claimed(range, "a poisoning");
  for_each_page(range, [&](PageIndex page) {
    poisoned_[page.value] = true;
    wake({page, base::PageCount{1}});
    world_.preempt();
  });
  check_still_claimed(range, "a poisoning");
  if (world_.planted(Plant::kPoisonTooMuch) && range.end().value < poisoned_.size()) {
    poisoned_[range.end().value] = true;
  }
  return base::Done{};
}

void TargetGuest::wake(PageRange range) {
  if (world_.planted(Plant::kWakeForgotten) && registered_ &&
      map_.state(range.first) == PageState::kZero) {
    return;
  }
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    if (threads_[i].waits && range.contains(threads_[i].page)) {
      threads_[i].waits = false;
      std::erase(events_, i);
    }
  }
}

// ---- target: the guest and the kernel -----------------------------------------------------------

void TargetGuest::touch(PageIndex page, bool writes) {
  Content& content = *file_[page.value];
  const std::uint64_t expected = world_.latest[page.value];
  if (content != Content{expected, expected}) {
    world_.fail("a stale read: page " + std::to_string(page.value) + " holds " +
                std::to_string(content.head) + "/" + std::to_string(content.tail) + ", not " +
                std::to_string(expected));
  }
  seen_[page.value] = true;
  if (writes) {
    const std::uint64_t value = world_.write(page);
    content = {value, value};
  }
}

bool TargetGuest::access(std::size_t thread, PageIndex page, bool writes) {
  if (!mapped_[page.value] && !registered_) {
    if (!file_[page.value].has_value()) {
      file_[page.value] = Content{};
    }
    mapped_[page.value] = true;
  }
  if (poisoned_[page.value]) {
    world_.saw("the guest touched a poisoned page");
    if (map_.state(page) != PageState::kPoisoned && !is_claimed(map_.state(page))) {
      world_.fail("a page is poisoned that was not missing");
    }
    return true;
  }
  if (mapped_[page.value]) {
    touch(page, writes);
    return true;
  }
  threads_[thread] = {true, page};
  events_.push_back(thread);
  return false;
}

std::vector<PageIndex> TargetGuest::read_faults(std::size_t most) {
  std::vector<PageIndex> pages;
  while (!events_.empty() && pages.size() < most) {
    pages.push_back(threads_[events_.front()].page);
    events_.pop_front();
  }
  return pages;
}

bool TargetGuest::unread(std::size_t thread) const {
  return std::find(events_.begin(), events_.end(), thread) != events_.end();
}

bool TargetGuest::forgotten(std::size_t thread) const {
  const Thread& one = threads_[thread];
  return one.waits && !unread(thread) && map_.state(one.page) != PageState::kMissing;
}

void TargetGuest::reclaim(PageIndex page) {
  if (mapped_[page.value] && map_.state(page) == PageState::kInstalled) {
    mapped_[page.value] = false;
    world_.saw("an installed page lost its entry");
  }
}

void TargetGuest::release() {
  for (std::uint64_t i = 0; i < file_.size(); ++i) {
    const PageState state = map_.state(PageIndex{i});
    if (state == PageState::kZero && file_[i].has_value()) {
      world_.fail("residue shows through a zero page after the end");
    }
    if (state == PageState::kMissing) {
      world_.fail("the memory is released while a page is missing");
    }
  }
  registered_ = false;
  wake({PageIndex{0}, world_.layout.pages()});
}

Content TargetGuest::in_file(PageIndex page) const {
  return file_[page.value].value_or(Content{});
}

}  // namespace towline::simulation
