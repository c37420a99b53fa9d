#pragma once

#include <atomic>
#include <cstdint>

namespace towline::runtime {

/// What the source has sent. Pages unless said otherwise. Threads: any.
struct SourceCounters {
  std::atomic<std::uint64_t> normal{0};
  std::atomic<std::uint64_t> zeros{0};
  std::atomic<std::uint64_t> scanned{0};       ///< Pages that the pass in progress has dealt with.
  std::atomic<std::uint64_t> after_switch{0};  ///< Sent with bytes after the run order.
  std::atomic<std::uint64_t> requests{0};      ///< Pages asked for by the target.
  std::atomic<std::uint64_t> service_ns_sum{0};  ///< From reading a request to having sent it.
};

}  // namespace towline::runtime
