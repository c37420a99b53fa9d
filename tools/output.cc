#include "tools/output.h"

#include <cerrno>
#include <cstring>

#include <fmt/format.h>

namespace towline::tools {

void put(std::FILE* out, const std::string& text) {
  [[maybe_unused]] const auto written = std::fwrite(text.data(), 1, text.size(), out);
}

bool output_is_written() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) {
    return true;
  }
  put(stderr, fmt::format("towline: standard output cannot be written ({}); the result is lost\n",
                          std::strerror(errno)));
  return false;
}

}  // namespace towline::tools
