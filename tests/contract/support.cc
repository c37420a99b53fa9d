#include "tests/contract/support.h"

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include <doctest/doctest.h>

namespace towline::contract {
namespace {

int skipped = 0;  // doctest runs its cases on one thread.

/// Says at the end how many cases could not be tried here.
struct SkipReporter : public doctest::IReporter {
  explicit SkipReporter(const doctest::ContextOptions& /*options*/) {}

  void report_query(const doctest::QueryData& /*data*/) override {}

  void test_run_start() override {}

  void test_run_end(const doctest::TestRunStats& /*stats*/) override {
    std::printf("SKIPPED: %d\n", skipped);
  }

  void test_case_start(const doctest::TestCaseData& /*data*/) override {}

  void test_case_reenter(const doctest::TestCaseData& /*data*/) override {}

  void test_case_end(const doctest::CurrentTestCaseStats& /*stats*/) override {}

  void test_case_exception(const doctest::TestCaseException& /*what*/) override {}

  void subcase_start(const doctest::SubcaseSignature& /*subcase*/) override {}

  void subcase_end() override {}

  void log_assert(const doctest::AssertData& /*data*/) override {}

  void log_message(const doctest::MessageData& /*data*/) override {}

  void test_case_skipped(const doctest::TestCaseData& /*data*/) override {}
};

REGISTER_LISTENER("skips", 1, SkipReporter);

}  // namespace

void note_skip(const std::string& reason) {
  ++skipped;
  std::printf("SKIP: %s: %s\n", doctest::getContextOptions()->currentTest->m_name, reason.c_str());
}

std::string no_userfaultfd(uffd::FeatureSet needed) {
  const auto& can = uffd::capabilities();
  if (!can.ok()) {
    return base::to_string(can.error());
  }
  if (!can.value().features.contains(needed)) {
    return "this kernel's userfaultfd lacks " +
           uffd::to_string(needed.without(can.value().features));
  }
  return {};
}

base::OwnedFd make_memfd(std::size_t length, unsigned flags) {
  base::OwnedFd fd(::memfd_create("contract", MFD_CLOEXEC | flags));
  REQUIRE(fd.valid());
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(length)) == 0);
  return fd;
}

Mapping::Mapping(int fd, std::size_t length, std::size_t alignment) : length_(length) {
  // Reserve more than is needed, then place the mapping at the first aligned address in it.
  const std::size_t reserved = length + alignment;
  void* area = ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(area != MAP_FAILED);
  auto* const base = static_cast<std::byte*>(area);
  const std::size_t over = reinterpret_cast<std::uintptr_t>(base) % alignment;
  start_ = over == 0 ? base : base + (alignment - over);
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  REQUIRE(::mmap(start_, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == start_);
  // Give the borders back: guard areas beside the mapping keep it a VMA of its own.
  if (start_ != base) {
    ::munmap(base, static_cast<std::size_t>(start_ - base));
  }
  std::byte* const end = start_ + length;
  if (base + reserved != end) {
    ::munmap(end, static_cast<std::size_t>(base + reserved - end));
  }
}

Mapping::Mapping(Mapping&& other) noexcept
    : start_(std::exchange(other.start_, nullptr)), length_(std::exchange(other.length_, 0)) {
}

Mapping::~Mapping() {
  if (start_ != nullptr) {
    ::munmap(start_, length_);
  }
}

TwoMappings::TwoMappings(std::size_t pages)
    : fd(make_memfd(pages * kPage)), guest(fd.get(), pages * kPage) {
  auto mapped = uffd::Alias::map(fd.get(), {0, pages * kPage}, uffd::Alias::Access::kReadWrite);
  REQUIRE(mapped.ok());
  alias = std::move(mapped).value();
  REQUIRE(uffd::keep_private(guest.at(), Bytes{guest.size()}).ok());
}

void TwoMappings::fill(std::size_t page, std::uint8_t value) const {
  std::ranges::fill(alias.bytes({page * kPage, kPage}), std::byte{value});
}

std::uint8_t peek(const std::byte* at) {
  return *reinterpret_cast<const volatile std::uint8_t*>(at);
}

void poke(std::byte* at, std::uint8_t value) {
  *reinterpret_cast<volatile std::uint8_t*>(at) = value;
}

bool all_bytes(const std::byte* at, std::size_t length, std::uint8_t value) {
  return std::all_of(at, at + length, [value](std::byte b) { return b == std::byte{value}; });
}

uffd::Userfault open_userfault(uffd::FeatureSet needed) {
  auto opened = uffd::Userfault::open(needed);
  if (!opened.ok()) {
    FAIL(base::to_string(opened.error()));
  }
  return std::move(opened).value();
}

void await_event(const uffd::Userfault& userfault) {
  pollfd wait{.fd = userfault.fd(), .events = POLLIN, .revents = 0};
  REQUIRE(::poll(&wait, 1, -1) == 1);
}

uffd::Event next_event(const uffd::Userfault& userfault) {
  std::array<uffd::Event, 1> one{};
  for (;;) {
    await_event(userfault);
    const auto got = userfault.read_events(one);
    REQUIRE(got.ok());
    if (got.value() == 1) {
      return one[0];
    }
  }
}

bool is_silent(const uffd::Userfault& userfault) {
  pollfd wait{.fd = userfault.fd(), .events = POLLIN, .revents = 0};
  return ::poll(&wait, 1, 0) == 0;
}

std::size_t waiters(const uffd::Userfault& userfault) {
  return waiters_of(userfault.fd());
}

std::size_t waiters_of(int userfault_fd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(userfault_fd));
  std::string key;
  std::size_t value = 0;
  while (info >> key) {
    if (key == "total:" && info >> value) {
      return value;
    }
  }
  FAIL("/proc/self/fdinfo does not count the waiters of a userfaultfd");
  return 0;
}

bool is_mapped(HostAddress at) {
  const auto pagemap = uffd::Pagemap::open();
  REQUIRE(pagemap.ok());
  const auto mapped = pagemap.value().is_mapped(at);
  REQUIRE(mapped.ok());
  return mapped.value();
}

std::string flags_of(HostAddress start) {
  std::ostringstream head;
  head << std::hex << start.value << '-';
  std::ifstream smaps("/proc/self/smaps");
  bool ours = false;
  for (std::string line; std::getline(smaps, line);) {
    ours = ours || line.rfind(head.str(), 0) == 0;
    if (ours && line.rfind("VmFlags:", 0) == 0) {
      return line;
    }
  }
  return {};
}

}  // namespace towline::contract

namespace towline::uffd {

std::ostream& operator<<(std::ostream& out, const RunOutcome& outcome) {
  return out << "installed " << outcome.installed.value << ", already " << outcome.already.value
             << ", end " << static_cast<int>(outcome.end);
}

}  // namespace towline::uffd
