// What happens when no page can be had: a full tmpfs, and hugetlb without free pages. Both are
// mounts of their own with a size, so that nobody else on the machine runs out of anything.
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/contract/support.h"
#include "tests/contract/tcp.h"

namespace towline::contract {
namespace {

using uffd::Allocation;
using uffd::Backing;
using uffd::Mode;
using uffd::RunEnd;

constexpr Bytes kSmall{kPage};
constexpr Mode kBoth{.missing = true, .minor = true, .write_protect = false};

/// A file on a file system of its own that holds `size` bytes and no more. Mounted nowhere.
class SmallFile {
 public:
  SmallFile(const char* type, std::size_t size, std::size_t file_length) {
    const base::OwnedFd context(::fsopen(type, FSOPEN_CLOEXEC));
    const std::string limit = std::to_string(size);
    if (!context.valid() ||
        ::fsconfig(context.get(), FSCONFIG_SET_STRING, "size", limit.c_str(), 0) != 0 ||
        ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
      missing_ = std::string("no ") + type + " of limited size can be made: " + explain();
      return;
    }
    mount_.reset(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
    if (!mount_.valid()) {
      missing_ = std::string("no ") + type + " can be mounted: " + explain();
      return;
    }
    file_.reset(::openat(mount_.get(), "memory", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    REQUIRE(file_.valid());
    REQUIRE(::ftruncate(file_.get(), static_cast<off_t>(file_length)) == 0);
  }

  [[nodiscard]] const std::string& missing() const { return missing_; }

  [[nodiscard]] int fd() const { return file_.get(); }

  [[nodiscard]] std::size_t allocated() const {
    struct stat status {};

    REQUIRE(::fstat(fd(), &status) == 0);
    return static_cast<std::size_t>(status.st_blocks) * 512;
  }

 private:
  static std::string explain() {
    return base::to_string(base::fail_errno(base::ErrorKind::kFailed, "fsopen").error);
  }

  base::OwnedFd mount_;
  base::OwnedFd file_;
  std::string missing_;
};

Allocation allocated(int fd, uffd::Extent extent) {
  const auto outcome = uffd::allocate(fd, extent);
  if (!outcome.ok()) {
    FAIL(base::to_string(outcome.error()));
  }
  return outcome.value();
}

TEST_CASE("a full tmpfs says no memory, and keeps nothing of what it could not give whole") {
  const SmallFile file("tmpfs", 4 * kPage, 16 * kPage);
  SKIP_IF(file.missing());
  CHECK(allocated(file.fd(), {0, 2 * kPage}) == Allocation::kDone);
  CHECK(allocated(file.fd(), {4 * kPage, 4 * kPage}) == Allocation::kNoMemory);
  CHECK(file.allocated() == 2 * kPage);
  CHECK(allocated(file.fd(), {4 * kPage, 2 * kPage}) == Allocation::kDone);
}

TEST_CASE("hugetlb without free pages says no memory, but keeps the part that it could give") {
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const SmallFile file("hugetlbfs", kHuge, 2 * kHuge);
  SKIP_IF(file.missing());
  CHECK(allocated(file.fd(), {0, 2 * kHuge}) == Allocation::kNoMemory);
  CHECK(file.allocated() == kHuge);
  REQUIRE(uffd::punch(file.fd(), {0, 2 * kHuge}, Bytes{kHuge}).ok());
  CHECK(file.allocated() == 0);
}

TEST_CASE("a copy into a full tmpfs ends with no memory and succeeds after a page was freed") {
  const auto needed = uffd::features_for(Backing::kShmem, kBoth);
  SKIP_IF(no_userfaultfd(needed));
  const SmallFile file("tmpfs", 2 * kPage, 4 * kPage);
  SKIP_IF(file.missing());
  const Mapping guest(file.fd(), 4 * kPage);
  const auto userfault = open_userfault(needed);
  REQUIRE(userfault.register_range(guest.at(), Bytes{4 * kPage}, kBoth, Backing::kShmem).ok());
  const uffd::Installer installer(userfault.fd());
  const std::vector<std::byte> source(3 * kPage, std::byte{1});
  const auto outcome = installer.copy_run(guest.at(), source, kSmall);
  REQUIRE(outcome.ok());
  CHECK(outcome.value() == uffd::RunOutcome{PageCount{2}, PageCount{0}, RunEnd::kNoMemory});

  REQUIRE(uffd::punch(file.fd(), {0, kPage}, kSmall).ok());
  const auto rest = installer.copy_run(guest.at(2 * kPage), std::span(source).first(kPage), kSmall);
  REQUIRE(rest.ok());
  CHECK(rest.value().installed == PageCount{1});
}

TEST_CASE("a copy into hugetlb without free pages says that a page was there, and there is none") {
  const auto needed = uffd::features_for(Backing::kHugetlb, kBoth);
  SKIP_IF(no_userfaultfd(needed));
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const SmallFile file("hugetlbfs", kHuge, 2 * kHuge);
  SKIP_IF(file.missing());
  const Mapping place(-1, 2 * kHuge, kHuge);
  REQUIRE(::mmap(place.data(), 2 * kHuge, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file.fd(), 0) == place.data());
  const auto userfault = open_userfault(needed);
  REQUIRE(userfault.register_range(place.at(), Bytes{2 * kHuge}, kBoth, Backing::kHugetlb).ok());
  const std::vector<std::byte> source(2 * kHuge, std::byte{1});
  const uffd::Installer installer(userfault.fd());
  const auto outcome = installer.copy_run(place.at(), source, Bytes{kHuge});
  REQUIRE(outcome.ok());
  // The kernel asks whether a page-table slot exists, which it has just made, and says EEXIST.
  CHECK(outcome.value() == uffd::RunOutcome{PageCount{1}, PageCount{1}, RunEnd::kComplete});
  CHECK_FALSE(is_mapped(place.at(kHuge)));
  // Who takes `already` of a copy for what it is, a reason to continue the page, learns the truth.
  const auto truth = installer.continue_run(place.at(kHuge), PageCount{1}, Bytes{kHuge});
  REQUIRE(truth.ok());
  CHECK(truth.value().end == RunEnd::kNoPage);
}

// TargetMemory writes huge pages by a mapping: this is why it asks for each page first.
TEST_CASE(
    "a store into a huge page that cannot be had is SIGBUS, and one that was allocated is not") {
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const SmallFile file("hugetlbfs", kHuge, 2 * kHuge);
  SKIP_IF(file.missing());
  const auto alias = uffd::Alias::map(file.fd(), {0, 2 * kHuge}, uffd::Alias::Access::kReadWrite);
  REQUIRE(alias.ok());
  REQUIRE(allocated(file.fd(), {0, kHuge}) == Allocation::kDone);  // The last free page.
  poke(alias.value().bytes().data() + 5 * kPage, 7);
  CHECK(peek(alias.value().bytes().data() + 5 * kPage) == 7);
  REQUIRE(::madvise(alias.value().bytes().data(), 2 * kHuge, MADV_DOFORK) == 0);
  Child child([&] {
    ::signal(SIGBUS, SIG_DFL);  // doctest's own handler would report it.
    poke(alias.value().bytes().data() + kHuge, 7);
  });
  const int status = child.wait_until_ended();
  REQUIRE(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGBUS);
}

// A target maps more memory than there are free huge pages, and takes them as they arrive.
TEST_CASE("a mapping without reserve promises itself no huge pages, any other one does") {
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const SmallFile file("hugetlbfs", kHuge, 4 * kHuge);
  SKIP_IF(file.missing());
  CHECK(::mmap(nullptr, 4 * kHuge, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd(), 0) == MAP_FAILED);
  CHECK(errno == ENOMEM);
  const auto alias = uffd::Alias::map(file.fd(), {0, 4 * kHuge}, uffd::Alias::Access::kReadWrite);
  CHECK(alias.ok());
  CHECK(allocated(file.fd(), {0, kHuge}) == Allocation::kDone);
}

// TargetMemory does not write by system call there.
TEST_CASE("a hugetlb file takes no write") {
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const auto fd = make_memfd(kHuge, kHugeMemfd);
  const std::vector<std::byte> bytes(kHuge, std::byte{1});
  CHECK(::pwrite(fd.get(), bytes.data(), bytes.size(), 0) == -1);
  CHECK(errno == EINVAL);
}

void receive_into_a_page_that_cannot_be_had(const SmallFile& file, std::size_t page_size) {
  const auto alias =
      uffd::Alias::map(file.fd(), {0, 2 * page_size}, uffd::Alias::Access::kReadWrite);
  REQUIRE(alias.ok());
  REQUIRE(allocated(file.fd(), {0, page_size}) == Allocation::kDone);  // The last free page.
  TcpPair link = TcpPair::connect();
  const std::vector<std::byte> sent = numbered_bytes(3000);
  REQUIRE(base::write_all(link.near.get(), sent).ok());
  wait_until_readable(link.far.get(), sent.size());

  // First straight into the absent page, then across the border into it.
  std::byte* const absent = alias.value().bytes().data() + page_size;
  for (std::byte* const where : {absent, absent - 1000}) {
    iovec into{.iov_base = where, .iov_len = sent.size()};
    CHECK(::readv(link.far.get(), &into, 1) == -1);
    CHECK(errno == EFAULT);
  }
  std::vector<std::byte> received(sent.size());
  REQUIRE(base::read_exactly(link.far.get(), received).ok());
  CHECK(received == sent);
}

TEST_CASE("receiving into a page that a full tmpfs cannot give fails and consumes nothing") {
  const SmallFile file("tmpfs", kPage, 2 * kPage);
  SKIP_IF(file.missing());
  receive_into_a_page_that_cannot_be_had(file, kPage);
}

TEST_CASE("receiving into a huge page that cannot be had fails and consumes nothing") {
  const HugePages pages(1);
  SKIP_IF(pages.missing());
  const SmallFile file("hugetlbfs", kHuge, 2 * kHuge);
  SKIP_IF(file.missing());
  receive_into_a_page_that_cannot_be_had(file, kHuge);
}

}  // namespace
}  // namespace towline::contract
