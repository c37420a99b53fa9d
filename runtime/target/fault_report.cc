#include "runtime/target/fault_report.h"

namespace towline::runtime {
namespace {

double to_us(base::Duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

}  // namespace

FaultReport fault_report(const base::LatencyHistogram& stalls, std::uint64_t local,
                         std::uint64_t outstanding) {
  FaultReport report;
  report.served = stalls.count();
  report.local = local;
  report.outstanding = outstanding;
  report.p50_us = to_us(stalls.quantile(0.50));
  report.p90_us = to_us(stalls.quantile(0.90));
  report.p99_us = to_us(stalls.quantile(0.99));
  report.max_us = to_us(stalls.max());
  report.log2_us = stalls.log2_us();
  return report;
}

}  // namespace towline::runtime
