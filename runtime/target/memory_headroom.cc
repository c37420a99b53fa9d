#include "runtime/target/memory_headroom.h"

#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <fstream>
#include <sstream>
#include <utility>

#include <fmt/format.h>

namespace towline::runtime {
namespace {

// No machine has as much: how both versions of control groups say "no limit".
constexpr std::uint64_t kNoLimit = 1ULL << 60U;

/// The names that one version gives to the same things.
struct Files {
  const char* limit;
  const char* usage;
  const char* stat_prefix;  ///< Of the hierarchy's sums in memory.stat.
};

constexpr Files kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_"};
constexpr Files kVersion2{"memory.max", "memory.current", ""};

std::optional<std::uint64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;  // "max" is no number.
}

// Clean file pages, which the kernel drops before it kills anybody.
std::uint64_t reclaimable(const std::string& folder, const char* prefix) {
  std::ifstream file(folder + "/memory.stat");
  const std::string active = std::string(prefix) + "active_file";
  const std::string inactive = std::string(prefix) + "inactive_file";
  std::string name;
  std::uint64_t value = 0;
  std::uint64_t sum = 0;
  while (file >> name >> value) {
    sum += name == active || name == inactive ? value : 0;
  }
  return sum;
}

std::optional<MemoryHeadroom::Limit> limit_of(const std::string& folder, const Files& files) {
  const auto limit = number_in(folder + "/" + files.limit);
  const auto usage = number_in(folder + "/" + files.usage);
  if (!limit.has_value() || !usage.has_value() || *limit >= kNoLimit) {
    return std::nullopt;
  }
  const std::uint64_t held = *usage - std::min(*usage, reclaimable(folder, files.stat_prefix));
  return MemoryHeadroom::Limit{folder, base::Bytes{*limit},
                               base::Bytes{*limit - std::min(*limit, held)}};
}

void keep_tighter(std::optional<MemoryHeadroom::Limit>& tightest,
                  std::optional<MemoryHeadroom::Limit> one) {
  if (one.has_value() && (!tightest.has_value() || one->left < tightest->left)) {
    tightest = std::move(one);
  }
}

// The group itself and every one above it: each may have a limit.
void look_up_from(const std::string& root, std::string path, const Files& files,
                  std::optional<MemoryHeadroom::Limit>& tightest) {
  while (true) {
    keep_tighter(tightest, limit_of(root + (path == "/" ? "" : path), files));
    const std::size_t slash = path.rfind('/');
    if (slash == std::string::npos || path == "/") {
      return;
    }
    path = slash == 0 ? "/" : path.substr(0, slash);
  }
}

}  // namespace

std::optional<MemoryHeadroom::Limit> MemoryHeadroom::tightest() const {
  std::optional<Limit> tightest;
  std::ifstream file(places_.cgroup_of_process);
  for (std::string line; std::getline(file, line);) {
    // "4:memory:/path" in version 1, "0::/path" in version 2.
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) {
      continue;
    }
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      look_up_from(places_.version_1, path, kVersion1, tightest);
    } else if (controllers.empty()) {
      for (const std::string& root : places_.version_2) {
        look_up_from(root, path, kVersion2, tightest);
      }
    }
  }
  return tightest;
}

std::optional<FileRoom> room_around(int fd) {
  struct statvfs system {};

  if (::fstatvfs(fd, &system) != 0 || system.f_blocks == 0) {
    return std::nullopt;
  }
  std::array<char, PATH_MAX> name{};
  const ssize_t length =
      ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), name.data(), name.size());
  return FileRoom{std::string(name.data(), length < 0 ? 0 : static_cast<std::size_t>(length)),
                  base::Bytes{system.f_blocks * system.f_frsize},
                  base::Bytes{system.f_bavail * system.f_frsize}};
}

std::string explain(const FileRoom& room) {
  return fmt::format(
      "memory: the file system of '{}' has {} KiB free of {} MiB; make room there, or give it more "
      "(mount -o remount,size=…), and the move goes on",
      room.file, room.free.value >> 10U, room.size.value >> 20U);
}

std::string explain(const MemoryHeadroom::Limit& limit, base::Bytes reserve) {
  return fmt::format(
      "memory: control group '{}' has {} MiB left of {} MiB, and {} MiB are kept in reserve "
      "because "
      "the kernel kills at the limit; raise the limit, and the move goes on",
      limit.group, limit.left.value >> 20U, limit.limit.value >> 20U, reserve.value >> 20U);
}

}  // namespace towline::runtime
