#include "runtime/target/missing_sweep.h"

#include "runtime/wire/format.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;

// Requests under way. Guess: enough to keep a link of 1 ms busy with 64 KiB answers, and little to
// hold. A demanded page waits behind as much, so that of huge pages there are two.
constexpr std::uint64_t kWindow = RequestSender::kMostSweeps;
constexpr std::uint64_t kWindowOfHugePages = 2;

}  // namespace

void MissingSweep::begin() {
  const base::Lock lock(mutex_);
  rewind();
  ask();
}

void MissingSweep::on_answer() {
  const base::Lock lock(mutex_);
  outstanding_ -= outstanding_ > 0 ? 1 : 0;
  ask();
}

void MissingSweep::more() {
  const base::Lock lock(mutex_);
  ask();
}

void MissingSweep::forget() {
  const base::Lock lock(mutex_);
  rewind();
  outstanding_ = 0;
  sender_->forget_sweeps();
}

void MissingSweep::rewind() {
  at_ = PageIndex{0};
  found_ = false;
}

void MissingSweep::ask() {
  const std::uint64_t size = layout_.largest_page().value;
  const std::uint64_t window = size == base::kSmallPage.value ? kWindow : kWindowOfHugePages;
  const PageCount most{wire::pages_in_frame(size, wire::kMaxPagesPerRequest)};
  while (outstanding_ < window) {
    const auto run = next(most);
    if (!run.has_value()) {
      return;
    }
    const PageRange part = layout_.clip(*run);
    at_ = part.end();
    ++outstanding_;
    sender_->sweep(part);
  }
}

// Memory is looked through once, however many answers come after that; and once more when the last
// of them was heard, for pages that somebody was bringing when their turn came and then gave up.
std::optional<PageRange> MissingSweep::next(PageCount most) {
  while (true) {
    if (const auto run = map_.next_missing(at_, most)) {
      found_ = true;
      return run;
    }
    at_ = PageIndex{map_.pages().value};
    if (outstanding_ != 0 || !found_) {
      return std::nullopt;
    }
    rewind();
  }
}

}  // namespace towline::runtime
