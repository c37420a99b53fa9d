#include "tools/output.h"

#include <fmt/format.h>

#include "base/error.h"

namespace towline::tools {

void put(std::FILE* out, const std::string& text) {
  [[maybe_unused]] const auto written = std::fwrite(text.data(), 1, text.size(), out);
}

bool output_is_written() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) {
    return true;
  }
  const auto why = base::fail_errno(base::ErrorKind::kFailed, "write",
                                    "standard output cannot be written; the result is lost");
  put(stderr, fmt::format("towline: {}\n", base::to_string(why.error)));
  return false;
}

}  // namespace towline::tools
