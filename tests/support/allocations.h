#pragma once

#include <sys/types.h>

#include <cstdint>

/// Counts what one thread of this process asks operator new for.
namespace towline::tests {

/// From here on those of `thread` (gettid()) are counted, from zero.
void count_allocations_of(pid_t thread);

[[nodiscard]] std::uint64_t counted_allocations();

}  // namespace towline::tests
