#include "base/ensure.h"

#include <array>
#include <cstdio>

#include "base/last_words.h"

namespace towline::base {

void ensure_failed(const char* condition, const char* why, const char* file, int line) noexcept {
  std::array<char, 512> words{};
  std::snprintf(words.data(), words.size(),
                "process.broken_invariant why=\"%s\" at=%s:%d condition=\"%s\"", why, file, line,
                condition);
  end_with(words.data());
}

}  // namespace towline::base
