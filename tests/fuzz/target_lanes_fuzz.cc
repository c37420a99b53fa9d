// A source that lies on the lanes for pages: whatever comes, before the switch or after it, and
// whatever memory has no room for, no claim stays open and nothing is installed twice. Input: one
// byte that says which lane and when, one that says how often memory has no room, then the stream;
// its checksums are set right.
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ensure.h"
#include "base/fd.h"
#include "runtime/target/receivers.h"
#include "tests/fuzz/frames.h"

namespace base = towline::base;
namespace runtime = towline::runtime;
namespace wire = towline::runtime::wire;

namespace {

constexpr std::uint64_t kPages = 96;

/// Guest memory that knows what it was given, and has no room now and then.
class Pages final : public runtime::GuestPages {
 public:
  explicit Pages(unsigned every) : every_(every) {}

  base::Outcome write(base::PageRange range, std::span<const std::byte> bytes) override {
    ENSURE(bytes.size() == range.count.value * base::kSmallPage.value, "whole pages");
    return next(range);
  }

  base::Outcome punch(base::PageRange range) override { return next(range); }

  base::Outcome back_with_zeros(base::PageRange range) override { return next(range); }

  base::Outcome map(base::PageRange range) override {
    TRY(next(range));
    for (std::uint64_t page = range.first.value; page < range.end().value; ++page) {
      ENSURE(!mapped_[page], "a page that the guest may have seen is never mapped again");
      mapped_[page] = true;
    }
    return base::Done{};
  }

  void zap(base::PageRange /*range*/) override {}

  base::Outcome poison(base::PageRange range) override {
    check(range);
    return base::Done{};
  }

  void wake(base::PageRange range) override { check(range); }

 private:
  static void check(base::PageRange range) {
    ENSURE(!range.empty() && range.end().value <= kPages, "pages of the machine");
  }

  base::Outcome next(base::PageRange range) {
    check(range);
    if (every_ != 0 && ++calls_ % every_ == 0) {
      return base::fail(base::ErrorKind::kOverloaded, "fallocate", "no room");
    }
    return base::Done{};
  }

  const unsigned every_;
  unsigned calls_ = 0;  // One lane, one thread.
  std::array<bool, kPages> mapped_{};
};

/// Has room, cannot wait, and replaces nothing.
class Owner final : public runtime::Receivers::Owner {
 public:
  void on_progress() override {}

  void on_lane_ended(runtime::LaneName /*lane*/, std::uint32_t /*attempt*/,
                     const base::Error& reason) override {
    ENSURE(!base::to_string(reason).empty(), "says why");
    ended.set_value();
  }

  void on_lane_replaced(runtime::LaneName /*lane*/, std::uint32_t /*attempt*/) override {}

  [[nodiscard]] base::Outcome room() const override { return base::Done{}; }

  base::Outcome wait_for_room(const base::Error& reason) override {
    return base::Err<base::Error>{reason};
  }

  void found_room() override {}

  std::promise<void> ended;
};

runtime::MemoryLayout two_regions() {
  runtime::Region low;
  low.name = "ram.low";
  low.size = base::Bytes{64 * base::kSmallPage.value};
  runtime::Region high;
  high.name = "ram.high";
  high.start = base::GuestAddress{4ULL << 30U};
  high.size = base::Bytes{(kPages - 64) * base::kSmallPage.value};
  return runtime::MemoryLayout({low, high});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2 || size > 66'000) {
    return 0;
  }
  const bool urgent = (data[0] & 1U) != 0;
  const bool after = (data[0] & 2U) != 0;
  const auto input = std::as_bytes(std::span(data + 2, size - 2));
  std::vector<std::byte> bytes(input.begin(), input.end());
  towline::fuzz::set_checksums(bytes);

  const runtime::MemoryLayout layout = two_regions();
  runtime::PageMap map(layout.pages());
  runtime::RequestTable requests(4);
  Pages pages(data[1]);
  runtime::PageReceiver receiver(layout, pages, map, requests, base::system_clock(), [] {});
  for (const std::uint64_t waited : {3U, 70U}) {
    (void)receiver.on_fault(base::PageIndex{waited});
  }
  Owner owner;
  runtime::Receivers lanes(layout, map, 1, owner);
  auto sender = runtime::RequestSender::start(requests);
  ENSURE(sender.ok(), "there are descriptors");
  lanes.deliver_to(receiver, *sender.value());
  if (after) {
    lanes.open_postcopy();
  }
  std::array<int, 2> ends{};
  ENSURE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0, "a connection");
  base::OwnedFd peer(ends[0]);
  ENSURE(::write(peer.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()),
         "it takes the whole stream");
  ENSURE(::shutdown(peer.get(), SHUT_WR) == 0, "and its end");
  const auto role = urgent ? wire::LaneRole::kUrgent : wire::LaneRole::kBulk;
  lanes.attach({role, 0}, std::make_unique<runtime::Lane>(base::OwnedFd(ends[1]), role,
                                                          wire::Direction::kToTarget));
  owner.ended.get_future().wait();
  lanes.shutdown();
  lanes.join();

  ENSURE(map.claimed().value == 0, "who bears a page settles it, or gives it up");
  ENSURE(receiver.poison_missing().ok(), "what is missing can be given up");
  ENSURE(map.missing().value == 0, "nothing else is left");
  return 0;
}
