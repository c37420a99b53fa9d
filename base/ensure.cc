#include "base/ensure.h"

#include <cstdio>
#include <cstdlib>

namespace towline::base {

void ensure_failed(const char* condition, const char* why, const char* file, int line) noexcept {
  (void)std::fprintf(stderr, "towline: broken invariant: %s (%s) at %s:%d\n", why, condition, file,
                     line);
  std::abort();
}

}  // namespace towline::base
