// Whole moves between two machines of this process: real sockets, real userfaultfd, real threads,
// and no KVM, so that the sanitizers see the drivers.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/migration.h"
#include "tests/support/huge_pages.h"
#include "tests/support/lane_proxy.h"
#include "tests/support/test_machine.h"

namespace towline::tests {
namespace {

using runtime::MigrationStatus;

/// Remembers what it was told, and lets a test wait for it.
class Recorder final : public runtime::MigrationObserver {
 public:
  void on_status(MigrationStatus status) override {
    const base::Lock lock(mutex_);
    seen_.push_back(status);
    changed_.notify_all();
  }

  void on_pass(std::uint64_t /*pass*/) override {}

  void on_guest_stopped() override {}

  void on_guest_started() override {}

  void wait_for(MigrationStatus status) {
    const base::Lock lock(mutex_);
    changed_.wait(mutex_, [&]() UNDER_LOCK { return has(status); });
  }

  /// Waits until this is the newest.
  void wait_for_latest(MigrationStatus status) {
    const base::Lock lock(mutex_);
    changed_.wait(mutex_, [&]() UNDER_LOCK { return !seen_.empty() && seen_.back() == status; });
  }

  /// Waits for any of the ends and tells which.
  MigrationStatus wait_for_end() {
    const base::Lock lock(mutex_);
    changed_.wait(mutex_, [this]() UNDER_LOCK { return !seen_.empty() && ends(seen_.back()); });
    return seen_.back();
  }

  [[nodiscard]] bool saw(MigrationStatus status) {
    const base::Lock lock(mutex_);
    return has(status);
  }

 private:
  static bool ends(MigrationStatus status) {
    return runtime::is_final(status) || status == MigrationStatus::kPostcopyPaused;
  }

  [[nodiscard]] bool has(MigrationStatus status) const REQUIRES(mutex_) {
    return std::find(seen_.begin(), seen_.end(), status) != seen_.end();
  }

  base::Mutex mutex_;
  base::Condition changed_;
  std::vector<MigrationStatus> seen_ GUARDED_BY(mutex_);
};

runtime::MigrationOptions default_options() {
  runtime::MigrationOptions options;
  options.paused_after = std::chrono::milliseconds(0);  // What the session is in shows at once.
  options.switch_policy = runtime::SwitchPolicy::kAfterPass;
  options.max_bandwidth = 0;
  return options;
}

runtime::Uri loopback() {
  auto uri = runtime::Uri::parse("tcp:127.0.0.1:0");
  REQUIRE(uri.ok());
  return uri.value();
}

/// Ends the guard of a machine's memory behind everybody's back, so that its threads, which are no
/// process that could end, come back from the pages that they wait for.
void end_guard(const TestMachine& machine) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code none;
    if (std::filesystem::read_symlink(entry, none) != "anon_inode:[userfaultfd]") {
      continue;
    }
    for (const runtime::Region& region : machine.regions()) {
      uffdio_range range{.start = region.mapping.value, .len = region.size.value};
      (void)::ioctl(std::stoi(entry.path().filename()), UFFDIO_UNREGISTER, &range);
    }
  }
}

/// A file system of its own that holds so much and no more, and of which somebody else has taken a
/// part. Mounted nowhere.
class SmallFileSystem {
 public:
  SmallFileSystem(std::uint64_t size, std::uint64_t taken) {
    const base::OwnedFd context(::fsopen("tmpfs", FSOPEN_CLOEXEC));
    const std::string limit = std::to_string(size);
    if (!context.valid() ||
        ::fsconfig(context.get(), FSCONFIG_SET_STRING, "size", limit.c_str(), 0) != 0 ||
        ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
      return;
    }
    mount_.reset(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
    if (!mount_.valid()) {
      return;
    }
    memory_.reset(::openat(mount_.get(), "memory", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    other_.reset(::openat(mount_.get(), "other", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    REQUIRE(::posix_fallocate(other_.get(), 0, static_cast<off_t>(taken)) == 0);
  }

  /// It could be made; says why not otherwise.
  [[nodiscard]] bool there() const {
    if (!memory_.valid()) {
      std::puts("SKIP: no tmpfs of limited size can be mounted");
    }
    return memory_.valid();
  }

  [[nodiscard]] int memory() const { return memory_.get(); }

  /// The other one keeps no more than that.
  void make_room(std::uint64_t taken = 0) const {
    REQUIRE(::ftruncate(other_.get(), static_cast<off_t>(taken)) == 0);
  }

 private:
  base::OwnedFd mount_;
  base::OwnedFd memory_;
  base::OwnedFd other_;
};

/// TCP_USER_TIMEOUT of every bulk lane that a source of this process has open.
std::set<int> bounds_of_bulk_lanes() {
  std::set<int> bounds;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(entry.path().filename());
    int low_water = 0;
    int bound = 0;
    socklen_t size = sizeof low_water;
    if (::getsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &low_water, &size) == 0 &&
        low_water > 0 &&  // Of all sockets here they alone have one.
        ::getsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &bound, &size) == 0) {
      bounds.insert(bound);
    }
  }
  return bounds;
}

/// One source, one target, one move.
struct Move {
  explicit Move(TestMachine::Config config = {},
                runtime::MigrationOptions source_options = default_options(),
                const runtime::MigrationOptions& target_options = default_options(),
                int target_memory = -1, bool huge_target = true)
      : source(config),
        target([&] {
          TestMachine::Config there = config;
          there.incoming = true;
          there.memory = target_memory;
          there.huge = config.huge && huge_target;
          return there;
        }()),
        options(std::move(source_options)) {
    auto listening = runtime::Incoming::listen(target, loopback(), target_options, target_events);
    REQUIRE_MESSAGE(listening.ok(), base::to_string(listening.error()));
    incoming = std::move(listening).value();
    source.start();
    source.wait_for_accesses(1000);
  }

  ~Move() {
    outgoing.reset();
    incoming.reset();
    end_guard(target);
  }

  Move(const Move&) = delete;
  Move& operator=(const Move&) = delete;

  void begin() {
    auto started =
        runtime::Outgoing::start(source, *incoming->report().listening, options, source_events);
    REQUIRE_MESSAGE(started.ok(), base::to_string(started.error()));
    outgoing = std::move(started).value();
  }

  void check_complete() {
    REQUIRE_MESSAGE(source_events.wait_for_end() == MigrationStatus::kCompleted,
                    outgoing->report().error);
    target_events.wait_for(MigrationStatus::kCompleted);
    target.wait_for_accesses(1000);
    target.stop();
    source.stop();
    INFO(outgoing->report().error, incoming->report().error);
    CHECK(source.corrupt() == 0);
    CHECK(target.corrupt() == 0);
    CHECK(target.sweep() == 0);
    CHECK(source.gate().ownership() == runtime::Ownership::kGone);
    CHECK(target.gate().ownership() == runtime::Ownership::kHere);
  }

  void check_runs_on_at_the_source() {
    CHECK(source.gate().ownership() == runtime::Ownership::kHere);
    CHECK(target.gate().ownership() == runtime::Ownership::kIncoming);
    source.wait_for_accesses(1000);
    source.stop();
    CHECK(source.corrupt() == 0);
    CHECK(source.sweep() == 0);
  }

  Recorder source_events;
  Recorder target_events;
  TestMachine source;
  TestMachine target;
  runtime::MigrationOptions options;
  std::unique_ptr<runtime::Incoming> incoming;
  std::unique_ptr<runtime::Outgoing> outgoing;
};

TEST_CASE("a guest that writes all the time arrives with every page right") {
  if (!can_serve_faults()) {
    return;
  }
  Move move;
  move.begin();
  move.check_complete();
  const auto report = move.outgoing->report();
  CHECK(report.pages_after_switch > 0);
  CHECK(report.remaining_bytes == 0);
  CHECK(move.incoming->report().remaining_bytes == 0);
  CHECK(report.downtime_ms.has_value());
  CHECK_FALSE(move.outgoing->holds_the_guest());
  CHECK_FALSE(move.incoming->misses_pages());
}

TEST_CASE("several guests, passes and lanes change nothing in the bytes") {
  if (!can_serve_faults()) {
    return;
  }
  for (const std::uint32_t passes : {0U, 1U, 3U}) {
    for (const std::uint32_t lanes : {1U, 4U}) {
      CAPTURE(passes);
      CAPTURE(lanes);
      auto options = default_options();
      options.passes = passes;
      options.bulk_lanes = lanes;
      TestMachine::Config config;
      config.guests = 3;
      config.pages = 5000;  // No multiple of 64.
      config.working_set = 3000;
      Move move(config, options);
      move.begin();
      move.check_complete();
    }
  }
}

/// 16 huge pages at each end, the last four of them untouched.
TestMachine::Config on_huge_pages() {
  TestMachine::Config config;
  config.pages = 8192;
  config.working_set = 4096;
  config.log = 2048;
  config.huge = true;
  return config;
}

constexpr std::size_t kHugePagesOfAMove = 32;

/// A case on huge pages can be tried here; prints a SKIP line with the reason otherwise.
bool can_use(const HugePages& pages) {
  if (!pages.missing().empty()) {
    std::printf("SKIP: %s\n", pages.missing().c_str());
  }
  return pages.missing().empty() && can_serve_faults();
}

TEST_CASE("a guest on huge pages arrives with every page right, after however many passes") {
  const HugePages pages(kHugePagesOfAMove);
  if (!can_use(pages)) {
    return;
  }
  for (const std::uint32_t passes : {0U, 1U, 3U}) {
    CAPTURE(passes);
    auto options = default_options();
    options.passes = passes;
    auto config = on_huge_pages();
    config.guests = 2;
    Move move(config, options);
    move.begin();
    move.check_complete();
    CHECK(move.outgoing->report().page_size == base::kHugePage.value);
    CHECK(move.outgoing->report().remaining_bytes == 0);
  }
}

TEST_CASE("memory on huge pages does not go to a target without them, and nothing moves") {
  const HugePages pages(kHugePagesOfAMove);
  if (!can_use(pages)) {
    return;
  }
  Move move(on_huge_pages(), default_options(), default_options(), -1, false);
  move.begin();
  CHECK(move.source_events.wait_for_end() == MigrationStatus::kFailed);
  CHECK(move.outgoing->report().error.find("pages of 2097152 bytes at the source") !=
        std::string::npos);
  CHECK(move.outgoing->report().error.find("pages of 4096 at the target") != std::string::npos);
  CHECK(move.outgoing->report().normal_pages == 0);
  move.check_runs_on_at_the_source();
}

TEST_CASE("the word to switch ends a pass that would take for ever") {
  if (!can_serve_faults()) {
    return;
  }
  auto options = default_options();
  options.switch_policy = runtime::SwitchPolicy::kManual;
  options.max_bandwidth = 10'000;
  Move move({}, options);
  move.begin();
  move.source_events.wait_for(MigrationStatus::kActive);
  move.outgoing->start_postcopy();
  move.check_complete();
}

TEST_CASE("without the word to switch, the guest stays until it comes") {
  if (!can_serve_faults()) {
    return;
  }
  auto options = default_options();
  options.switch_policy = runtime::SwitchPolicy::kManual;
  Move move({}, options);
  move.begin();
  while (move.outgoing->report().dirty_sync_count < 3) {
    move.source.wait_for_accesses(100);
  }
  CHECK_FALSE(move.source_events.saw(MigrationStatus::kPostcopyActive));
  move.outgoing->start_postcopy();
  move.check_complete();
}

TEST_CASE("a cancelled move leaves the guest at the source, and it can be moved again") {
  if (!can_serve_faults()) {
    return;
  }
  auto options = default_options();
  options.switch_policy = runtime::SwitchPolicy::kManual;
  Move move({}, options);
  move.begin();
  move.source_events.wait_for(MigrationStatus::kActive);
  REQUIRE(move.outgoing->cancel().ok());
  CHECK(move.source_events.wait_for_end() == MigrationStatus::kCancelled);
  CHECK(move.target_events.wait_for_end() == MigrationStatus::kFailed);
  move.source.wait_for_accesses(1000);
  move.outgoing.reset();
  move.incoming.reset();

  TestMachine::Config config;
  config.incoming = true;
  TestMachine second(config);
  Recorder second_events;
  auto listening = runtime::Incoming::listen(second, loopback(), default_options(), second_events);
  REQUIRE(listening.ok());
  Recorder again;
  auto started = runtime::Outgoing::start(move.source, *listening.value()->report().listening,
                                          default_options(), again);
  REQUIRE(started.ok());
  REQUIRE(again.wait_for_end() == MigrationStatus::kCompleted);
  second_events.wait_for(MigrationStatus::kCompleted);
  second.wait_for_accesses(1000);
  second.stop();
  CHECK(second.corrupt() == 0);
  CHECK(second.sweep() == 0);
}

TEST_CASE("a cancel after the run order is refused and changes nothing") {
  if (!can_serve_faults()) {
    return;
  }
  auto options = default_options();
  options.max_postcopy_bandwidth = 10'000;
  Move move({}, options);
  move.begin();
  move.source_events.wait_for(MigrationStatus::kPostcopyActive);
  const auto cancelled = move.outgoing->cancel();
  REQUIRE_FALSE(cancelled.ok());
  CHECK(cancelled.error().kind == base::ErrorKind::kRefused);
  CHECK(move.outgoing->holds_the_guest());
  CHECK(move.incoming->misses_pages());
  move.outgoing->set_bandwidth(0, 0);
  move.check_complete();
}

/// So many times the link is ended by `end`, and the move goes on by `again`.
template <typename End, typename Again>
void lose_and_recover(Move& move, int times, End end, Again again) {
  move.begin();
  move.target_events.wait_for(MigrationStatus::kPostcopyActive);
  for (int done = 0; done < times; ++done) {
    move.source_events.wait_for_latest(MigrationStatus::kPostcopyActive);
    move.target_events.wait_for_latest(MigrationStatus::kPostcopyActive);
    const auto before = move.outgoing->report().recoveries;
    REQUIRE(end().ok());
    move.source_events.wait_for_latest(MigrationStatus::kPostcopyPaused);
    move.target_events.wait_for_latest(MigrationStatus::kPostcopyPaused);
    again();
    while (move.outgoing->report().recoveries == before) {
      move.target.wait_for_accesses(1);
    }
  }
  move.outgoing->set_bandwidth(0, 0);
  move.source_events.wait_for(MigrationStatus::kCompleted);
  move.check_complete();
}

runtime::MigrationOptions slow_options() {
  auto options = default_options();
  options.switch_policy = runtime::SwitchPolicy::kImmediate;
  options.max_postcopy_bandwidth = 10'000;
  return options;
}

TEST_CASE("a move that its source's user pauses and resumes, again and again, loses nothing") {
  if (!can_serve_faults()) {
    return;
  }
  Move move({}, slow_options());
  lose_and_recover(
      move, 5, [&] { return move.outgoing->pause(); },
      [&] { REQUIRE(move.outgoing->resume(std::nullopt).ok()); });
}

TEST_CASE("a run order that the network does not take can be paused, and the guest is given back") {
  if (!can_serve_faults()) {
    return;
  }
  TestMachine::Config config;
  config.first_pages = 64;  // More than a unix socket takes unread.
  auto options = default_options();
  options.passes = 0;
  options.switch_policy = runtime::SwitchPolicy::kManual;
  Move move(config, options);
  const std::string path = std::filesystem::temp_directory_path() / "towline-proxy-XXXXXX";
  std::vector<char> folder(path.begin(), path.end());
  folder.push_back('\0');
  REQUIRE(::mkdtemp(folder.data()) != nullptr);
  {
    LaneProxy proxy(*move.incoming->report().listening,
                    "unix:" + std::string(folder.data()) + "/proxy");
    auto started = runtime::Outgoing::start(move.source, proxy.at(), options, move.source_events);
    REQUIRE(started.ok());
    move.outgoing = std::move(started).value();
    move.source_events.wait_for(MigrationStatus::kActive);
    proxy.stall_control(true);
    move.outgoing->start_postcopy();
    move.source_events.wait_for(MigrationStatus::kPostcopyDevice);
    REQUIRE(move.outgoing->pause().ok());
    move.source_events.wait_for_latest(MigrationStatus::kPostcopyPaused);
    CHECK(move.source.gate().ownership() == runtime::Ownership::kOrdered);
    // What arrives of the order is no order; the target says so, and never will run the guest.
    proxy.stall_control(false);
    REQUIRE(move.outgoing->resume(std::nullopt).ok());
    move.source_events.wait_for(MigrationStatus::kFailed);
    move.check_runs_on_at_the_source();
    move.outgoing.reset();
  }
  std::filesystem::remove_all(folder.data());
}

TEST_CASE("a move on huge pages that is paused and resumed, again and again, loses nothing") {
  const HugePages pages(kHugePagesOfAMove);
  if (!can_use(pages)) {
    return;
  }
  Move move(on_huge_pages(), slow_options());
  lose_and_recover(
      move, 3, [&] { return move.outgoing->pause(); },
      [&] { REQUIRE(move.outgoing->resume(std::nullopt).ok()); });
}

/// A move through a proxy that harms its lanes.
struct HarmedMove : Move {
  explicit HarmedMove(const runtime::MigrationOptions& of_source = slow_options())
      : Move({}, of_source), proxy(*incoming->report().listening) {
    auto started = runtime::Outgoing::start(source, proxy.at(), options, source_events);
    REQUIRE_MESSAGE(started.ok(), base::to_string(started.error()));
    outgoing = std::move(started).value();
    source_events.wait_for(MigrationStatus::kPostcopyActive);
    target_events.wait_for(MigrationStatus::kPostcopyActive);
  }

  /// Harms the lane, and waits until both ends have replaced it. The guest goes on meanwhile.
  void lose(runtime::LaneName lane, LaneProxy::Harm how) {
    const auto here = outgoing->report().lanes_replaced;
    const auto there = incoming->report().lanes_replaced;
    while (!proxy.harm(lane, how)) {
      target.wait_for_accesses(1);
    }
    while (outgoing->report().lanes_replaced == here ||
           incoming->report().lanes_replaced == there) {
      if (how == LaneProxy::Harm::kFlip) {
        outgoing->set_bandwidth(0, 10'000);  // What was sent long ago is forgiven: more is sent.
      }
      target.wait_for_accesses(1);
    }
  }

  void check_never_paused() {
    CHECK_FALSE(source_events.saw(MigrationStatus::kPostcopyPaused));
    CHECK_FALSE(target_events.saw(MigrationStatus::kPostcopyPaused));
    CHECK(outgoing->report().recoveries == 0);
    CHECK(incoming->report().recoveries == 0);
    CHECK(outgoing->report().epoch == 1);
  }

  void finish() {
    outgoing->set_bandwidth(0, 0);
    source_events.wait_for(MigrationStatus::kCompleted);
    check_complete();
  }

  LaneProxy proxy;
};

constexpr runtime::LaneName kUrgentLane{runtime::wire::LaneRole::kUrgent, 0};

runtime::LaneName bulk_lane(std::uint8_t number) {
  return {runtime::wire::LaneRole::kBulk, number};
}

TEST_CASE("a request that is lost while the machine is loaded is missed, and asked again") {
  if (!can_serve_faults()) {
    return;
  }
  TestMachine::Config config;
  config.read_by_load = config.working_set + config.log / 2;
  auto options = default_options();
  options.passes = 0;
  options.switch_policy = runtime::SwitchPolicy::kManual;
  options.heartbeat = std::chrono::milliseconds(10);
  options.frozen_patience = std::chrono::milliseconds(200);
  Move move(config, options, options);
  LaneProxy proxy(*move.incoming->report().listening);
  auto started = runtime::Outgoing::start(move.source, proxy.at(), options, move.source_events);
  REQUIRE(started.ok());
  move.outgoing = std::move(started).value();
  move.source_events.wait_for(MigrationStatus::kActive);
  while (!proxy.harm(kUrgentLane, LaneProxy::Harm::kSwallow)) {
    move.source.wait_for_accesses(1);  // The lanes are being opened.
  }
  move.outgoing->start_postcopy();
  move.source_events.wait_for(MigrationStatus::kCompleted);
  move.check_complete();
  CHECK(move.outgoing->report().recoveries >= 1);
  CHECK(move.outgoing->report().overdue.find("running: all is sent") == 0);
}

TEST_CASE("a data lane that breaks alone is replaced, however it breaks, and nobody pauses") {
  if (!can_serve_faults()) {
    return;
  }
  using Harm = LaneProxy::Harm;
  for (const auto lane : {kUrgentLane, bulk_lane(0), bulk_lane(1)}) {
    for (const Harm how :
         {Harm::kReset, Harm::kClose, Harm::kResetAtSource, Harm::kResetAtTarget}) {
      CAPTURE(runtime::to_string(lane));
      CAPTURE(static_cast<int>(how));
      HarmedMove move;
      for (int times = 0; times < 3; ++times) {
        move.lose(lane, how);
      }
      move.check_never_paused();
      move.finish();
      CHECK(move.outgoing->report().lanes_replaced >= 3);
    }
  }
}

TEST_CASE("a lane that carries a wrong bit is replaced, and the bit goes nowhere") {
  if (!can_serve_faults()) {
    return;
  }
  for (const auto lane : {kUrgentLane, bulk_lane(1)}) {
    CAPTURE(runtime::to_string(lane));
    HarmedMove move;
    move.lose(lane, LaneProxy::Harm::kFlip);
    move.check_never_paused();
    move.finish();
  }
}

TEST_CASE("lanes that break all the time, one after the other, lose nothing") {
  if (!can_serve_faults()) {
    return;
  }
  auto options = slow_options();
  options.max_postcopy_bandwidth = 20'000'000;
  options.bulk_lanes = 3;
  HarmedMove move(options);
  const runtime::LaneName lanes[] = {bulk_lane(0), kUrgentLane, bulk_lane(2), bulk_lane(1)};
  const LaneProxy::Harm harms[] = {LaneProxy::Harm::kReset, LaneProxy::Harm::kClose,
                                   LaneProxy::Harm::kResetAtSource, LaneProxy::Harm::kResetAtTarget,
                                   LaneProxy::Harm::kFlip};
  // Some meet a lane that is being replaced, some two at once: those are a new epoch.
  for (std::size_t i = 0; !move.source_events.saw(MigrationStatus::kCompleted) && i < 400; ++i) {
    move.proxy.harm(lanes[i % 4], harms[i % 5]);
    move.target.wait_for_accesses(5);
  }
  move.finish();
  CHECK(move.outgoing->report().lanes_replaced + move.outgoing->report().recoveries > 0);
}

TEST_CASE("a lane that cannot be replaced is the loss of the link, which is tied again") {
  if (!can_serve_faults()) {
    return;
  }
  for (const auto lane : {kUrgentLane, bulk_lane(0)}) {
    HarmedMove move;
    move.proxy.refuse_lanes(3);
    REQUIRE(move.proxy.harm(lane, LaneProxy::Harm::kReset));
    move.source_events.wait_for(MigrationStatus::kPostcopyPaused);
    while (move.outgoing->report().recoveries == 0) {
      move.target.wait_for_accesses(1);
    }
    CHECK(move.outgoing->report().lanes_replaced == 0);
    CHECK(move.outgoing->report().epoch > 1);
    move.lose(lane, LaneProxy::Harm::kReset);  // In its epoch a lane is replaced as in the first.
    move.finish();
  }
}

TEST_CASE("a link that is lost while a lane is being replaced is tied again") {
  if (!can_serve_faults()) {
    return;
  }
  for (const auto lane : {kUrgentLane, bulk_lane(0)}) {
    HarmedMove move;
    for (std::uint64_t times = 1; times <= 5; ++times) {
      while (!move.proxy.harm(lane, LaneProxy::Harm::kReset)) {
        move.target.wait_for_accesses(1);
      }
      move.proxy.cut();
      while (move.outgoing->report().recoveries < times ||
             move.incoming->report().recoveries < times) {
        move.target.wait_for_accesses(1);
      }
    }
    move.finish();
  }
}

TEST_CASE("nothing that grows with memory is done between a loss and the link that is tied again") {
  if (!can_serve_faults()) {
    return;
  }
  auto options = slow_options();
  options.switch_policy = runtime::SwitchPolicy::kAfterPass;  // With a pass the writes are logged.
  Move move({}, options);
  // What the move had reached when the log of the guest's writes was switched off, each time.
  std::vector<std::pair<std::uint64_t, MigrationStatus>> ends;
  const runtime::Outgoing* outgoing = nullptr;
  move.source.dirty_log().when_it_ends([&] {
    const auto report = outgoing->report();
    ends.emplace_back(report.recoveries, report.status);
  });
  LaneProxy proxy(*move.incoming->report().listening);
  auto started =
      runtime::Outgoing::start(move.source, proxy.at(), move.options, move.source_events);
  REQUIRE_MESSAGE(started.ok(), base::to_string(started.error()));
  move.outgoing = std::move(started).value();
  outgoing = move.outgoing.get();
  move.source_events.wait_for(MigrationStatus::kPostcopyActive);
  move.target_events.wait_for(MigrationStatus::kPostcopyActive);
  for (std::uint64_t times = 1; times <= 3; ++times) {
    proxy.cut();
    while (move.outgoing->report().recoveries < times) {
      move.target.wait_for_accesses(1);
    }
    CHECK(ends.empty());
  }
  move.outgoing->set_bandwidth(0, 0);
  move.source_events.wait_for(MigrationStatus::kCompleted);
  move.check_complete();
  move.outgoing.reset();
  REQUIRE(ends.size() == 1);
  CHECK(ends[0] == std::pair(std::uint64_t{3}, MigrationStatus::kCompleted));
}

TEST_CASE("a move that its target's user pauses goes on by itself once that is lifted") {
  if (!can_serve_faults()) {
    return;
  }
  Move move({}, slow_options());
  const runtime::Uri there = *move.incoming->report().listening;
  lose_and_recover(
      move, 3, [&] { return move.incoming->pause(); },
      [&] { REQUIRE(move.incoming->recover_at(there).ok()); });
}

TEST_CASE("a paused move goes on at a further address") {
  if (!can_serve_faults()) {
    return;
  }
  Move move({}, slow_options());
  lose_and_recover(
      move, 2, [&] { return move.outgoing->pause(); },
      [&] {
        REQUIRE(move.incoming->recover_at(loopback()).ok());
        REQUIRE(move.outgoing->resume(*move.incoming->report().listening).ok());
      });
}

TEST_CASE("what is not paused cannot be resumed, recovered or taken back") {
  if (!can_serve_faults()) {
    return;
  }
  Move move({}, slow_options());
  CHECK_FALSE(move.incoming->pause().ok());
  move.begin();
  move.source_events.wait_for(MigrationStatus::kPostcopyActive);
  CHECK_FALSE(move.outgoing->resume(std::nullopt).ok());
  CHECK_FALSE(move.outgoing->take_back().ok());
  CHECK_FALSE(move.incoming->recover_at(loopback()).ok());
  move.outgoing->set_bandwidth(0, 0);
  move.check_complete();
  CHECK_FALSE(move.outgoing->pause().ok());
  CHECK_FALSE(move.incoming->pause().ok());
}

TEST_CASE("both ends of a paused move may go, and the guest runs nowhere that it did not") {
  if (!can_serve_faults()) {
    return;
  }
  Move move({}, slow_options());
  move.begin();
  move.source_events.wait_for(MigrationStatus::kPostcopyActive);
  REQUIRE(move.outgoing->pause().ok());
  move.source_events.wait_for_latest(MigrationStatus::kPostcopyPaused);
  CHECK(move.outgoing->holds_the_guest());
  move.outgoing.reset();
  CHECK(move.source.gate().ownership() == runtime::Ownership::kGone);
}

TEST_CASE("a target of another shape refuses, tells why, and listens on") {
  if (!can_serve_faults()) {
    return;
  }
  Move move;
  TestMachine::Config other;
  other.pages = 4096;
  other.model = "other";
  TestMachine stranger(other);
  stranger.start();
  Recorder events;
  auto started = runtime::Outgoing::start(stranger, *move.incoming->report().listening,
                                          default_options(), events);
  REQUIRE(started.ok());
  CHECK(events.wait_for_end() == MigrationStatus::kFailed);
  const std::string error = started.value()->report().error;
  CHECK(error.find("16 MiB at the source and 8 MiB at the target") != std::string::npos);
  CHECK(error.find("'other' at the source and 'test' at the target") != std::string::npos);
  stranger.wait_for_accesses(100);
  move.begin();
  move.check_complete();
}

TEST_CASE("a target that cannot load the state says never, and the guest runs on at the source") {
  if (!can_serve_faults()) {
    return;
  }
  TestMachine::Config config;
  config.refuses_state = true;
  Move move(config);
  move.begin();
  CHECK(move.source_events.wait_for_end() == MigrationStatus::kFailed);
  CHECK(move.outgoing->report().error.find("this machine takes no state") != std::string::npos);
  move.check_runs_on_at_the_source();
}

TEST_CASE("a target that goes away before the order costs nothing") {
  if (!can_serve_faults()) {
    return;
  }
  auto options = default_options();
  options.switch_policy = runtime::SwitchPolicy::kManual;
  Move move({}, options);
  move.begin();
  move.source_events.wait_for(MigrationStatus::kActive);
  move.incoming.reset();
  CHECK(move.source_events.wait_for_end() == MigrationStatus::kFailed);
  move.check_runs_on_at_the_source();
}

TEST_CASE("a target that is not there is named") {
  if (!can_serve_faults()) {
    return;
  }
  Move move;
  const runtime::Uri nowhere = *move.incoming->report().listening;
  move.incoming.reset();
  Recorder events;
  auto started = runtime::Outgoing::start(move.source, nowhere, default_options(), events);
  REQUIRE(started.ok());
  CHECK(events.wait_for_end() == MigrationStatus::kFailed);
  CHECK(started.value()->report().error.find("Connection refused") != std::string::npos);
  CHECK(started.value()->report().error.find(nowhere.to_string()) != std::string::npos);
}

TEST_CASE("both sides must have the same secret") {
  if (!can_serve_faults()) {
    return;
  }
  auto with = [](const char* secret) {
    auto options = default_options();
    if (secret != nullptr) {
      options.secret = secret;
    }
    return options;
  };
  const char* const secrets[] = {nullptr, "one", "two"};
  for (const char* at_source : secrets) {
    for (const char* at_target : secrets) {
      Move move({}, with(at_source), with(at_target));
      move.begin();
      const auto end = move.source_events.wait_for_end();
      if (at_source == at_target) {
        CHECK(end == MigrationStatus::kCompleted);
      } else {
        CHECK(end == MigrationStatus::kFailed);
        CHECK(move.outgoing->report().error.find("--secret FILE") != std::string::npos);
        move.check_runs_on_at_the_source();
      }
      move.target_events.wait_for(end == MigrationStatus::kCompleted ? MigrationStatus::kCompleted
                                                                     : MigrationStatus::kSetup);
    }
  }
}

TEST_CASE("a link that dies in post-copy pauses both sides and frees nothing") {
  if (!can_serve_faults()) {
    return;
  }
  auto options = default_options();
  options.max_postcopy_bandwidth = 10'000;
  Move move({}, options);
  move.begin();
  move.source_events.wait_for(MigrationStatus::kPostcopyActive);
  REQUIRE(move.incoming->misses_pages());
  // The source's threads end: to the target it is a link that went away.
  move.outgoing.reset();
  move.target_events.wait_for(MigrationStatus::kPostcopyPaused);
  CHECK(move.source.gate().ownership() == runtime::Ownership::kGone);
  CHECK(move.target.gate().ownership() == runtime::Ownership::kHere);
  CHECK(move.incoming->misses_pages());
  CHECK(move.target.corrupt() == 0);
  CHECK(move.source.sweep() == 0);
}

constexpr std::uint64_t kMiB = 1U << 20U;

/// A move to a target whose memory is in a small file system: 2 of some 6 MiB find room.
struct CrampedMove {
  explicit CrampedMove(const runtime::MigrationOptions& of_source = default_options(),
                       std::uint64_t taken = 7 * kMiB)
      : small(9 * kMiB, taken) {
    if (can_serve_faults() && small.there()) {
      move.emplace(TestMachine::Config{}, of_source, default_options(), small.memory());
      move->begin();
    }
  }

  /// Until both ends say what is waited for.
  void wait_for_the_pause() {
    while (move->outgoing->report().waits_for.empty() ||
           move->incoming->report().waits_for.empty()) {
      move->source.wait_for_accesses(100);
    }
  }

  SmallFileSystem small;
  std::optional<Move> move;
};

TEST_CASE("a target without room before the switch waits for it, and the move goes on by itself") {
  for (const std::uint32_t passes : {1U, 3U}) {
    for (const std::uint32_t lanes : {1U, 4U}) {
      CAPTURE(passes);
      CAPTURE(lanes);
      auto options = default_options();
      options.passes = passes;
      options.bulk_lanes = lanes;
      CrampedMove cramped(options);
      if (!cramped.move.has_value()) {
        return;
      }
      Move& move = *cramped.move;
      cramped.wait_for_the_pause();
      const auto report = move.outgoing->report();
      CHECK(report.waits_for.find("KiB free of 9 MiB") != std::string::npos);
      CHECK(report.status == MigrationStatus::kActive);
      CHECK(report.error.empty());
      CHECK(bounds_of_bulk_lanes() == std::set<int>{0});
      move.source.wait_for_accesses(1000);
      cramped.small.make_room();
      move.check_complete();
      CHECK_FALSE(move.source_events.saw(MigrationStatus::kPostcopyPaused));
      CHECK(move.outgoing->report().waits_for.empty());
      CHECK(move.incoming->report().waits_for.empty());
    }
  }
}

TEST_CASE("room that comes and goes again costs nothing but time") {
  auto options = default_options();
  options.passes = 2;
  CrampedMove cramped(options);
  if (!cramped.move.has_value()) {
    return;
  }
  for (const std::uint64_t taken : {6 * kMiB, 5 * kMiB, 4 * kMiB}) {
    cramped.wait_for_the_pause();
    cramped.small.make_room(taken);
  }
  cramped.wait_for_the_pause();
  cramped.small.make_room();
  cramped.move->check_complete();
}

TEST_CASE("the word to switch during the wait for room takes effect behind it") {
  auto options = default_options();
  options.switch_policy = runtime::SwitchPolicy::kManual;
  CrampedMove cramped(options);
  if (!cramped.move.has_value()) {
    return;
  }
  Move& move = *cramped.move;
  cramped.wait_for_the_pause();
  move.outgoing->start_postcopy();
  move.source.wait_for_accesses(1000);
  CHECK(move.source.gate().ownership() == runtime::Ownership::kHere);
  CHECK_FALSE(move.outgoing->report().waits_for.empty());
  cramped.small.make_room();
  move.source_events.wait_for(MigrationStatus::kPostcopyActive);
  move.check_complete();
  CHECK_FALSE(move.source_events.saw(MigrationStatus::kPostcopyPaused));
}

TEST_CASE("lanes that were borne with have their bound again in post-copy") {
  auto options = default_options();
  options.max_postcopy_bandwidth = 10'000;
  CrampedMove cramped(options);
  if (!cramped.move.has_value()) {
    return;
  }
  Move& move = *cramped.move;
  cramped.wait_for_the_pause();
  CHECK(bounds_of_bulk_lanes() == std::set<int>{0});
  cramped.small.make_room();
  while (bounds_of_bulk_lanes() != std::set<int>{20'000}) {
    move.source.wait_for_accesses(0);
    REQUIRE_FALSE(move.source_events.saw(MigrationStatus::kCompleted));
  }
  move.outgoing->set_bandwidth(0, 0);
  move.check_complete();
}

TEST_CASE("a move that is cancelled while it waits for room is cancelled at both ends") {
  CrampedMove cramped;
  if (!cramped.move.has_value()) {
    return;
  }
  Move& move = *cramped.move;
  cramped.wait_for_the_pause();
  REQUIRE(move.outgoing->cancel().ok());
  CHECK(move.source_events.wait_for_end() == MigrationStatus::kCancelled);
  CHECK(move.target_events.wait_for_end() == MigrationStatus::kFailed);
  CHECK(move.outgoing->report().waits_for.empty());
  CHECK(move.incoming->report().waits_for.empty());
  move.check_runs_on_at_the_source();
}

TEST_CASE("an end that goes while the target waits for room ends the other's part, and no more") {
  {
    CrampedMove cramped;
    if (!cramped.move.has_value()) {
      return;
    }
    cramped.wait_for_the_pause();
    cramped.move->incoming.reset();
    CHECK(cramped.move->source_events.wait_for_end() == MigrationStatus::kFailed);
    cramped.move->check_runs_on_at_the_source();
  }
  CrampedMove cramped;
  cramped.wait_for_the_pause();
  cramped.move->outgoing.reset();
  CHECK(cramped.move->target_events.wait_for_end() == MigrationStatus::kFailed);
  cramped.move->check_runs_on_at_the_source();
}

TEST_CASE("a target that is full when the flight arrives loads when there is room") {
  auto options = default_options();
  options.switch_policy = runtime::SwitchPolicy::kImmediate;
  CrampedMove cramped(options, 9 * kMiB);
  if (!cramped.move.has_value()) {
    return;
  }
  Move& move = *cramped.move;
  move.source_events.wait_for(MigrationStatus::kPostcopyPaused);
  cramped.small.make_room();
  move.source_events.wait_for(MigrationStatus::kCompleted);
  move.check_complete();
}

}  // namespace
}  // namespace towline::tests
