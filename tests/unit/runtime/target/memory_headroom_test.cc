#include "runtime/target/memory_headroom.h"

#include <sys/mman.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "base/fd.h"

namespace towline::runtime {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMib = 1U << 20U;

/// A tree of control groups, as files.
class Groups {
 public:
  Groups() {
    std::string made = fs::temp_directory_path() / "towline-groups-XXXXXX";
    REQUIRE(::mkdtemp(made.data()) != nullptr);
    root_ = made;
  }

  ~Groups() { fs::remove_all(root_); }

  Groups(const Groups&) = delete;
  Groups& operator=(const Groups&) = delete;

  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }

  [[nodiscard]] MemoryHeadroom headroom() const {
    return MemoryHeadroom({.cgroup_of_process = root_ / "self",
                           .version_1 = root_ / "v1",
                           .version_2 = {root_ / "v2"}});
  }

 private:
  fs::path root_;
};

std::string mib(std::uint64_t number) {
  return fmt::format("{}\n", number * kMib);
}

TEST_CASE("without a limit there is nothing to run out of") {
  const Groups groups;
  CHECK_FALSE(groups.headroom().tightest().has_value());
  groups.write("self", "4:memory:/a\n0::/\n");
  CHECK_FALSE(groups.headroom().tightest().has_value());
  groups.write("v1/a/memory.limit_in_bytes", "9223372036854771712\n");
  groups.write("v1/a/memory.usage_in_bytes", mib(5));
  groups.write("v2/memory.max", "max\n");
  groups.write("v2/memory.current", mib(5));
  CHECK_FALSE(groups.headroom().tightest().has_value());
}

TEST_CASE("version 1: clean file pages count as free") {
  const Groups groups;
  groups.write("self", "9:cpu:/x\n4:memory:/a/b\n");
  groups.write("v1/a/b/memory.limit_in_bytes", mib(512));
  groups.write("v1/a/b/memory.usage_in_bytes", mib(500));
  CHECK(groups.headroom().tightest()->left == base::Bytes{12 * kMib});
  groups.write("v1/a/b/memory.stat",
               fmt::format("cache 1\ninactive_file 1\ntotal_inactive_file {}\n"
                           "total_active_file {}\ntotal_shmem 77\n",
                           100 * kMib, 20 * kMib));
  const auto limit = groups.headroom().tightest();
  REQUIRE(limit.has_value());
  CHECK(limit->left == base::Bytes{132 * kMib});
  CHECK(limit->limit == base::Bytes{512 * kMib});
}

TEST_CASE("version 2: a limit of any group above holds too, and the tightest is named") {
  const Groups groups;
  groups.write("self", "0::/outer/inner\n");
  groups.write("v2/outer/inner/memory.max", mib(400));
  groups.write("v2/outer/inner/memory.current", mib(100));
  groups.write("v2/outer/memory.max", mib(1000));
  groups.write("v2/outer/memory.current", mib(950));
  const auto limit = groups.headroom().tightest();
  REQUIRE(limit.has_value());
  CHECK(limit->left == base::Bytes{50 * kMib});
  const std::string words = explain(*limit, base::Bytes{64 * kMib});
  CHECK(words.find("/outer'") != std::string::npos);
  CHECK(words.find("50 MiB left of 1000 MiB") != std::string::npos);
  CHECK(words.find("64 MiB") != std::string::npos);
}

TEST_CASE("a group that uses more than its limit has nothing left") {
  const Groups groups;
  groups.write("self", "0::/\n");
  groups.write("v2/memory.max", mib(10));
  groups.write("v2/memory.current", mib(11));
  CHECK(groups.headroom().tightest()->left == base::Bytes{0});
}

TEST_CASE("a memfd has no file system around it that could be full, a file has") {
  const base::OwnedFd memfd(::memfd_create("room", MFD_CLOEXEC));
  CHECK_FALSE(room_around(memfd.get()).has_value());
  std::FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  const auto room = room_around(::fileno(file));
  std::fclose(file);
  REQUIRE(room.has_value());
  CHECK(room->size.value >= room->free.value);
  const std::string told =
      explain(FileRoom{"/ram/guest", base::Bytes{72 * kMib}, base::Bytes{8192}});
  CHECK(told.find("'/ram/guest' has 8 KiB free of 72 MiB") != std::string::npos);
}

}  // namespace
}  // namespace towline::runtime
