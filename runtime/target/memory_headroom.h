#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/units.h"

namespace towline::runtime {

/// What is left of the memory that this process may use. Looked at ahead, because a control group's
/// limit is no error that could be handled: the kernel kills (docs/kernel-contract.md).
///
/// Memory that the kernel gives back by itself before it kills (clean file pages) counts as free.
/// Threads: any.
class MemoryHeadroom {
 public:
  /// Where to look; tests have their own.
  struct Places {
    std::string cgroup_of_process = "/proc/self/cgroup";
    std::string version_1 = "/sys/fs/cgroup/memory";
    std::vector<std::string> version_2{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
  };

  MemoryHeadroom() = default;

  explicit MemoryHeadroom(Places places) : places_(std::move(places)) {}

  /// A limit, and what is left below it.
  struct Limit {
    std::string group;  ///< Its folder.
    base::Bytes limit;
    base::Bytes left;
  };

  /// The tightest limit of all groups that hold this process; nullopt: there is none.
  [[nodiscard]] std::optional<Limit> tightest() const;

 private:
  Places places_;
};

/// Room in the file system of a file, when that has a size: a tmpfs, not the kernel's own mount for
/// memfds.
struct FileRoom {
  std::string file;
  base::Bytes size;  ///< Of the file system.
  base::Bytes free;
};

std::optional<FileRoom> room_around(int fd);

/// For the user: which file system, what is left of it, and what to do.
std::string explain(const FileRoom& room);

/// For the user: which limit, what is left of it, and what to do.
std::string explain(const MemoryHeadroom::Limit& limit, base::Bytes reserve);

}  // namespace towline::runtime
