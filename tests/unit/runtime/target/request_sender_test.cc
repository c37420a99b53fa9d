#include "runtime/target/request_sender.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "base/clock.h"
#include "runtime/core/page_receiver.h"
#include "runtime/target/receivers.h"
#include "tests/support/allocations.h"

namespace towline::runtime {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using tests::count_allocations_of;
using tests::counted_allocations;
using wire::Direction;
using wire::FrameHeader;
using wire::FrameType;
using wire::LaneRole;

constexpr std::uint64_t kPages = 4096;

/// Memory of which nothing is kept; everything succeeds.
class NoMemory final : public GuestPages {
 public:
  base::Outcome write(PageRange /*range*/, std::span<const std::byte> /*bytes*/) override {
    return base::Done{};
  }

  base::Outcome punch(PageRange /*range*/) override { return base::Done{}; }

  base::Outcome back_with_zeros(PageRange /*range*/) override { return base::Done{}; }

  base::Outcome map(PageRange /*range*/) override { return base::Done{}; }

  void zap(PageRange /*range*/) override {}

  base::Outcome poison(PageRange /*range*/) override { return base::Done{}; }

  void wake(PageRange range) override { woken += range.count.value; }

  std::atomic<std::uint64_t> woken{0};
};

MemoryLayout small_pages() {
  Region region;
  region.name = "ram";
  region.size = base::Bytes{kPages * base::kSmallPage.value};
  return MemoryLayout({region});
}

/// What a target has, but for userfaultfd.
struct Target {
  Target() {
    auto started = RequestSender::start(requests);
    REQUIRE(started.ok());
    sender = std::move(started).value();
    receiver = std::make_unique<PageReceiver>(layout, pages, map, requests, base::system_clock(),
                                              [this] { sender->ask(); });
  }

  /// As tl-fault does.
  void fault(std::uint64_t page) const {
    if (receiver->on_fault(PageIndex{page})) {
      sender->ask();
    }
  }

  /// Every second page holds zeros.
  void make_zeros() const {
    for (std::uint64_t page = 0; page < kPages; page += 2) {
      REQUIRE(receiver->on_zeros({PageIndex{page}, PageCount{1}}).ok());
    }
  }

  /// They are counted when the socket has taken them: who reads them may be faster.
  void wait_until_sent(std::uint64_t count) const {
    while (sender->sent() < count) {
      std::this_thread::yield();
    }
    CHECK(sender->sent() == count);
  }

  MemoryLayout layout = small_pages();
  NoMemory pages;
  PageMap map{PageCount{kPages}};
  RequestTable requests{1U << 16U};
  std::unique_ptr<RequestSender> sender;
  std::unique_ptr<PageReceiver> receiver;
};

struct Ends {
  std::unique_ptr<Lane> target;
  std::unique_ptr<Lane> source;
};

/// Both sockets take a few frames and no more.
Ends narrow_lane() {
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  constexpr int kFewBytes = 2500;
  for (const int end : ends) {
    REQUIRE(::setsockopt(end, SOL_SOCKET, SO_SNDBUF, &kFewBytes, sizeof kFewBytes) == 0);
  }
  return {std::make_unique<Lane>(base::OwnedFd(ends[0]), LaneRole::kUrgent, Direction::kToTarget),
          std::make_unique<Lane>(base::OwnedFd(ends[1]), LaneRole::kUrgent, Direction::kToSource)};
}

std::optional<FrameHeader> next_request(Lane& source) {
  auto header = source.receive_header();
  return header.ok() ? header.value() : std::nullopt;
}

TEST_CASE("zeros and what is here are answered while the source takes no request") {
  const Target target;
  target.make_zeros();
  Ends ends = narrow_lane();
  target.sender->use(std::move(ends.target));
  for (std::uint64_t page = 0; page < kPages; ++page) {
    target.fault(page);
  }
  CHECK(target.pages.woken == kPages / 2);
  CHECK(target.requests.size() == kPages / 2);
  for (std::uint64_t page = 0; page < kPages; page += 2) {
    target.fault(page);  // Its page is here by now.
  }
  CHECK(target.pages.woken == kPages);
  CHECK(target.sender->sent() < kPages / 2);

  // And when it does take them, each comes once, the first one first.
  for (std::uint64_t page = 1; page < kPages; page += 2) {
    const auto request = next_request(*ends.source);
    REQUIRE(request.has_value());
    REQUIRE(request->first == page);
  }
  target.wait_until_sent(kPages / 2);
}

TEST_CASE("a page that comes before its request could be sent is not asked for") {
  const Target target;
  Ends ends = narrow_lane();
  for (std::uint64_t page = 0; page < 10; ++page) {
    target.fault(page);
  }
  REQUIRE(target.receiver->on_zeros({PageIndex{2}, PageCount{7}}).ok());
  target.sender->use(std::move(ends.target));
  for (const std::uint64_t page : {0U, 1U, 9U}) {
    const auto request = next_request(*ends.source);
    REQUIRE(request.has_value());
    CHECK(request->first == page);
  }
}

TEST_CASE("what was sent on one lane is sent again on the next one") {
  const Target target;
  Ends first = narrow_lane();
  target.sender->use(std::move(first.target));
  target.fault(7);
  target.fault(5);
  REQUIRE(next_request(*first.source)->first == 7);
  REQUIRE(next_request(*first.source)->first == 5);
  first.source->shutdown();
  target.fault(6);  // Finds the lane broken.
  Ends second = narrow_lane();
  CHECK(target.sender->use(std::move(second.target)) == 3);
  CHECK(next_request(*second.source)->first == 7);
  CHECK(next_request(*second.source)->first == 5);
  CHECK(next_request(*second.source)->first == 6);
}

TEST_CASE("a sweep waits behind who waits, and is forgotten with its lane") {
  const Target target;
  Ends ends = narrow_lane();
  target.sender->sweep({PageIndex{100}, PageCount{16}});
  target.fault(1);
  target.sender->use(std::move(ends.target));
  const auto demanded = next_request(*ends.source);
  CHECK(demanded->first == 1);
  CHECK((demanded->flags & wire::kFlagSweep) == 0);
  const auto swept = next_request(*ends.source);
  CHECK(swept->first == 100);
  CHECK(swept->count == 16);
  CHECK((swept->flags & wire::kFlagSweep) != 0);

  target.sender->use(nullptr);
  for (std::uint64_t i = 0; i < RequestSender::kMostSweeps; ++i) {
    target.sender->sweep({PageIndex{200 + i}, PageCount{1}});
  }
  target.sender->forget_sweeps();
  Ends next = narrow_lane();
  target.sender->use(std::move(next.target));
  CHECK(next_request(*next.source)->first == 1);
  target.sender->sweep({PageIndex{300}, PageCount{1}});
  CHECK(next_request(*next.source)->first == 300);
}

TEST_CASE("many threads that ask at once lose no request and send none twice") {
  const Target target;
  Ends ends = narrow_lane();
  target.sender->use(std::move(ends.target));
  std::vector<std::thread> askers;
  for (std::uint64_t first = 0; first < 4; ++first) {
    askers.emplace_back([&target, first] {
      for (std::uint64_t page = first; page < kPages; page += 4) {
        target.fault(page);
      }
    });
  }
  std::set<std::uint64_t> asked;
  for (std::uint64_t i = 0; i < kPages; ++i) {
    const auto request = next_request(*ends.source);
    REQUIRE(request.has_value());
    REQUIRE(asked.insert(request->first).second);
  }
  for (std::thread& asker : askers) {
    asker.join();
  }
  target.wait_until_sent(kPages);
}

TEST_CASE("what tl-fault does for a page allocates nothing") {
  Target target;
  target.make_zeros();
  Ends ends = narrow_lane();
  target.sender->use(std::move(ends.target));
  REQUIRE(target.map.claim_run({PageIndex{1}, PageCount{1}}).value == 1);
  count_allocations_of(::gettid());
  for (int times = 0; times < 2; ++times) {  // The second time: joined, or installed.
    for (std::uint64_t page = 0; page < kPages; ++page) {
      target.fault(page);
    }
  }
  const std::uint64_t of_faults = counted_allocations();
  const auto counted = std::make_unique<int>(1);
  const std::uint64_t of_this = counted_allocations() - of_faults;
  count_allocations_of(0);
  CHECK(of_faults == 0);
  CHECK(of_this == 1);                                    // It does count.
  CHECK(target.sender->sent() < target.requests.size());  // The socket was full.
}

/// A source that answers each request before it reads the next one, and waits for whoever does not
/// read its answers.
class HonestSource {
 public:
  explicit HonestSource(std::unique_ptr<Lane> lane)
      : lane_(std::move(lane)), thread_([this] { serve(); }) {}

  HonestSource(const HonestSource&) = delete;
  HonestSource& operator=(const HonestSource&) = delete;

  ~HonestSource() {
    lane_->shutdown();
    thread_.join();
  }

 private:
  void serve() {
    while (const auto request = next_request(*lane_)) {
      FrameHeader answer;
      answer.type = FrameType::kPages;
      answer.flags = static_cast<std::uint16_t>(wire::kFlagDemanded | request->flags);
      answer.first = request->first;
      answer.count = request->count;
      answer.round = wire::kPostcopyRound;
      const std::vector<std::byte> pages(request->count * base::kSmallPage.value, std::byte{7});
      if (!lane_->send(answer, pages).ok()) {
        return;
      }
    }
  }

  std::unique_ptr<Lane> lane_;
  std::thread thread_;
};

/// A target in post-copy with its lanes' threads.
struct LanesOfTarget : Target, private Receivers::Owner {
  LanesOfTarget() {
    lanes.deliver_to(*receiver, *sender);
    lanes.open_postcopy();
  }

  void attach_urgent(std::unique_ptr<Lane> lane) {
    lanes.attach({wire::LaneRole::kUrgent, 0}, std::move(lane));
  }

  void wait_until_all_is_here() {
    const base::Lock lock(mutex);
    changed.wait(mutex, [this] { return map.missing().value == 0; });
  }

  base::Mutex mutex;
  base::Condition changed;
  bool broken GUARDED_BY(mutex) = false;
  Receivers lanes{layout, map, 1, *this};

 private:
  void on_progress() override {
    const base::Lock lock(mutex);
    changed.notify_all();
  }

  void on_lane_ended(LaneName /*lane*/, std::uint32_t /*attempt*/,
                     const base::Error& /*reason*/) override {
    const base::Lock lock(mutex);
    broken = true;
    changed.notify_all();
  }

  /// As the driver does: on the thread that reads the answers.
  void on_lane_replaced(LaneName /*lane*/, std::uint32_t /*attempt*/) override {
    lanes.ask_again();
    lanes.sweep_again();
  }

  [[nodiscard]] base::Outcome room() const override { return base::Done{}; }

  base::Outcome wait_for_room(const base::Error& reason) override {
    return base::Err<base::Error>{reason};
  }

  void found_room() override {}
};

TEST_CASE("more pages wait than both sockets take requests and answers: all of them come") {
  LanesOfTarget target;
  for (std::uint64_t page = 0; page < kPages; ++page) {
    target.fault(page);
  }
  Ends ends = narrow_lane();
  const HonestSource source(std::move(ends.source));
  target.attach_urgent(std::move(ends.target));
  target.wait_until_all_is_here();
  CHECK(target.receiver->counters().installed == kPages);
  target.lanes.shutdown();
}

TEST_CASE("a replaced urgent lane is asked for more than both sockets take: all of it comes") {
  LanesOfTarget target;
  Ends first = narrow_lane();
  target.attach_urgent(std::move(first.target));
  for (std::uint64_t page = 0; page < kPages; ++page) {
    target.fault(page);
  }
  first.source->shutdown();
  {
    const base::Lock lock(target.mutex);
    target.changed.wait(target.mutex, [&]() UNDER_LOCK { return target.broken; });
  }
  Ends second = narrow_lane();
  const HonestSource source(std::move(second.source));
  target.lanes.replace({wire::LaneRole::kUrgent, 0}, std::move(second.target), 1);
  target.wait_until_all_is_here();
  CHECK(target.receiver->counters().installed == kPages);
  target.lanes.shutdown();
}

}  // namespace
}  // namespace towline::runtime
