// A memory limit of a control group is no error that could be handled: it kills.
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <string>

#include <doctest/doctest.h>

#include "tests/contract/support.h"
#include "tests/contract/tcp.h"

namespace towline::contract {
namespace {

bool write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.flush();
  return file.good();
}

/// A group of its own with a limit on memory, below the root of version 1 or 2; empty again and
/// removed at the end of the scope.
class LimitedGroup {
 public:
  explicit LimitedGroup(std::size_t limit) {
    const std::string name = "/towline-contract-" + std::to_string(::getpid());
    const std::string bytes = std::to_string(limit);
    if (make("/sys/fs/cgroup/memory" + name)) {
      (void)write_text(path_ + "/memory.swappiness", "0");
      limited_ = write_text(path_ + "/memory.limit_in_bytes", bytes);
    } else if (make("/sys/fs/cgroup" + name)) {
      (void)write_text(path_ + "/memory.swap.max", "0");
      limited_ = write_text(path_ + "/memory.max", bytes);
    }
  }

  LimitedGroup(const LimitedGroup&) = delete;
  LimitedGroup& operator=(const LimitedGroup&) = delete;

  ~LimitedGroup() {
    if (!path_.empty()) {
      ::rmdir(path_.c_str());
    }
  }

  [[nodiscard]] std::string missing() const {
    return limited_ ? "" : "no control group with a memory limit can be made";
  }

  [[nodiscard]] bool admit(pid_t pid) const {
    return write_text(path_ + "/cgroup.procs", std::to_string(pid));
  }

 private:
  bool make(const std::string& path) {
    if (::mkdir(path.c_str(), 0755) != 0) {
      return false;
    }
    path_ = path;
    return true;
  }

  std::string path_;
  bool limited_ = false;
};

TEST_CASE("memory beyond the limit of a control group kills the process instead of failing") {
  constexpr std::size_t kLimit = 16UL << 20U;
  const LimitedGroup group(kLimit);
  SKIP_IF(group.missing());
  const auto fd = make_memfd(4 * kLimit);
  std::array<int, 2> gate{};
  REQUIRE(::pipe(gate.data()) == 0);
  Child child([&] {
    char go = 0;
    (void)!::read(gate[0], &go, 1);
    (void)uffd::allocate(fd.get(), {0, 4 * kLimit});
  });
  const bool admitted = group.admit(child.pid());
  REQUIRE(::write(gate[1], "g", 1) == 1);
  const int status = child.wait_until_ended();
  ::close(gate[0]);
  ::close(gate[1]);
  REQUIRE(admitted);
  REQUIRE(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGKILL);
}

}  // namespace
}  // namespace towline::contract
