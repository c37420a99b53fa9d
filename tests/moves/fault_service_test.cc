// The thread that answers the guest's faults, with real faults and a source that is played by the
// test.
#include "runtime/target/fault_service.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/target/request_sender.h"
#include "tests/support/allocations.h"
#include "tests/support/test_machine.h"

namespace towline::tests {
namespace {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using runtime::Lane;
using runtime::wire::Direction;
using runtime::wire::LaneRole;

constexpr std::uint64_t kPages = 128;
constexpr std::uint64_t kBytes = kPages * base::kSmallPage.value;

PageRange one(std::uint64_t page) {
  return {PageIndex{page}, PageCount{1}};
}

/// A target's memory, what decides about its pages, and its fault thread.
class FaultyMemory {
 public:
  FaultyMemory() {
    REQUIRE(::ftruncate(file_.get(), static_cast<off_t>(kBytes)) == 0);
    void* const mapped =
        ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
    REQUIRE(mapped != MAP_FAILED);
    bytes_ = static_cast<const volatile std::byte*>(mapped);
    runtime::Region ram;
    ram.name = "ram";
    ram.size = base::Bytes{kBytes};
    ram.fd = file_.get();
    ram.mapping = base::HostAddress{reinterpret_cast<std::uintptr_t>(mapped)};
    regions_ = {ram};
    layout_ = std::make_unique<runtime::MemoryLayout>(regions_);
    auto memory = runtime::TargetMemory::prepare(regions_, *layout_);
    REQUIRE_MESSAGE(memory.ok(), base::to_string(memory.error()));
    memory_ = std::move(memory).value();
    auto sender = runtime::RequestSender::start(requests_);
    REQUIRE(sender.ok());
    sender_ = std::move(sender).value();
    const auto ask = [this] { sender_->ask(); };
    receiver_ = std::make_unique<runtime::PageReceiver>(*layout_, *memory_, map_, requests_,
                                                        base::system_clock(), ask);
    auto faults = runtime::FaultService::start(*memory_, *receiver_, ask,
                                               [](const std::string& reason) { FAIL(reason); });
    REQUIRE(faults.ok());
    faults_ = std::move(faults).value();
  }

  FaultyMemory(const FaultyMemory&) = delete;
  FaultyMemory& operator=(const FaultyMemory&) = delete;

  ~FaultyMemory() {
    faults_.reset();
    memory_.reset();
    ::munmap(const_cast<std::byte*>(bytes_), kBytes);
  }

  [[nodiscard]] std::byte touch(std::uint64_t page) const {
    return bytes_[page * base::kSmallPage.value];
  }

  /// As the kernel does now and then: the page is here, and the guest faults on it once more.
  void unmap(std::uint64_t page) const {
    const auto* at = bytes_ + page * base::kSmallPage.value;
    REQUIRE(::madvise(const_cast<std::byte*>(at), base::kSmallPage.value, MADV_DONTNEED) == 0);
  }

  runtime::PageReceiver& receiver() { return *receiver_; }

  runtime::RequestSender& sender() { return *sender_; }

  [[nodiscard]] std::size_t waiting() const { return requests_.size(); }

 private:
  base::OwnedFd file_{::memfd_create("test", MFD_CLOEXEC)};
  const volatile std::byte* bytes_ = nullptr;
  std::vector<runtime::Region> regions_;
  std::unique_ptr<runtime::MemoryLayout> layout_;
  runtime::PageMap map_{PageCount{kPages}};
  runtime::RequestTable requests_{1U << 16U};
  std::unique_ptr<runtime::RequestSender> sender_;
  std::unique_ptr<runtime::TargetMemory> memory_;
  std::unique_ptr<runtime::PageReceiver> receiver_;
  std::unique_ptr<runtime::FaultService> faults_;
};

pid_t thread_named(const std::string& wanted) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(entry.path() / "comm"), name);
    if (name == wanted) {
      return std::stoi(entry.path().filename());
    }
  }
  return 0;
}

TEST_CASE("the guest's zeros and local faults are answered while its source reads no request") {
  if (!can_serve_faults()) {
    return;
  }
  constexpr std::uint64_t kMissing = kPages - 3;
  constexpr std::uint64_t kZero = kPages - 2;
  constexpr std::uint64_t kHere = kPages - 1;
  FaultyMemory memory;
  REQUIRE(memory.receiver().on_zeros(one(kZero)).ok());
  const std::vector<std::byte> sevens(base::kSmallPage.value, std::byte{7});
  REQUIRE(memory.receiver().on_pages(one(kHere), sevens).ok());
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  constexpr int kFewBytes = 1;  // The least that the kernel gives: some requests.
  REQUIRE(::setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &kFewBytes, sizeof kFewBytes) == 0);
  Lane source(base::OwnedFd(ends[1]), LaneRole::kUrgent, Direction::kToSource);
  memory.sender().use(
      std::make_shared<Lane>(base::OwnedFd(ends[0]), LaneRole::kUrgent, Direction::kToTarget));
  pid_t fault_thread = 0;
  while (fault_thread == 0) {  // It names itself.
    fault_thread = thread_named("tl-fault");
  }
  std::array<std::byte, kMissing> found{};
  std::vector<std::thread> vcpus;
  for (std::uint64_t page = 0; page < kMissing; ++page) {
    vcpus.emplace_back([&, page] { found[page] = memory.touch(page); });
    if (page == 0) {
      while (memory.waiting() == 0) {
        std::this_thread::yield();
      }
      count_allocations_of(fault_thread);  // It has begun its work.
    }
  }
  while (memory.waiting() < kMissing) {
    std::this_thread::yield();
  }
  CHECK(memory.touch(kZero) == std::byte{0});
  CHECK(memory.touch(kHere) == std::byte{7});
  memory.unmap(kHere);
  CHECK(memory.touch(kHere) == std::byte{7});
  CHECK(memory.receiver().counters().local_faults >= 2);
  CHECK(memory.sender().sent() < kMissing);
  CHECK(counted_allocations() == 0);
  count_allocations_of(0);

  for (std::uint64_t i = 0; i < kMissing; ++i) {
    const auto request = source.receive_header();
    REQUIRE(request.ok());
    REQUIRE(request.value().has_value());
    REQUIRE(memory.receiver().on_demanded(one(request.value()->first), sevens).ok());
  }
  for (std::thread& vcpu : vcpus) {
    vcpu.join();
  }
  for (const std::byte byte : found) {
    CHECK(byte == std::byte{7});
  }
}

}  // namespace
}  // namespace towline::tests
