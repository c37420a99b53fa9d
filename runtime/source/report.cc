// What a source is asked by its user, and what it tells of itself.
#include "runtime/source/driver.h"

namespace towline::runtime {
std::uint64_t SourceDriver::bytes_sent() const {
  return statistics_.bytes_of_past_epochs + (epoch_ != nullptr ? epoch_->bytes_sent() : 0);
}

void SourceDriver::fill_rates(MigrationReport& report) const {
  const base::Instant now = is_final(brain_.shown()) ? statistics_.ended : clock_.now();
  const double elapsed = std::chrono::duration<double>(now - statistics_.window.at).count();
  if (elapsed >= 0.1) {
    const std::uint64_t pages = report.normal_pages + report.zero_pages;
    statistics_.mbps =
        static_cast<double>(report.transferred - statistics_.window.bytes) * 8 / elapsed / 1e6;
    statistics_.pages_per_second =
        static_cast<std::uint64_t>(static_cast<double>(pages - statistics_.window.pages) / elapsed);
    statistics_.window = SourceStatistics::Sample{now, report.transferred, pages};
  }
  report.mbps = statistics_.mbps;
  report.pages_per_second = statistics_.pages_per_second;
}

MigrationReport SourceDriver::report() const {
  using std::chrono::duration_cast;
  using std::chrono::milliseconds;
  MigrationReport report;
  const base::Lock lock(mutex_);
  report.status = brain_.shown();
  report.link = brain_.link();
  report.error = brain_.reason();
  report.overdue = statistics_.overdue;
  report.waits_for = brain_.no_room();
  const base::Instant end = is_final(brain_.shown()) ? statistics_.ended : clock_.now();
  report.total_time = duration_cast<milliseconds>(end - statistics_.started);
  if (statistics_.set_up > statistics_.started) {
    report.setup_time = duration_cast<milliseconds>(statistics_.set_up - statistics_.started);
  }
  report.downtime_ms = statistics_.downtime_ms;
  report.downtime_error_ms = static_cast<double>(statistics_.clock.error_ns()) / 1e6;
  report.expected_downtime_ms = 1;
  report.total_bytes = layout_.bytes().value;
  report.transferred = bytes_sent();
  const bool ordered = statistics_.bytes_before_flight != 0 || statistics_.heir;
  report.precopy_bytes = ordered ? statistics_.bytes_before_flight : report.transferred;
  report.downtime_bytes =
      ordered ? statistics_.bytes_after_flight - statistics_.bytes_before_flight : 0;
  report.postcopy_bytes = statistics_.heir || statistics_.bytes_after_flight != 0
                              ? report.transferred - statistics_.bytes_after_flight
                              : 0;
  report.normal_pages = counters_.normal;
  report.zero_pages = counters_.zeros;
  const std::uint64_t scanned = brain_.state() == SourceState::kPassing && brain_.passes_done() == 0
                                    ? counters_.scanned.load()
                                    : layout_.pages().value;
  const std::uint64_t left =
      layout_.pages().value - scanned + statistics_.left_before.value_or(owed_.count()).value;
  report.page_size = layout_.mean_page().value;
  report.remaining_bytes =
      brain_.shown() == MigrationStatus::kCompleted ? 0 : left * report.page_size;
  report.dirty_sync_count = statistics_.dirty_syncs;
  report.dirty_pages_rate =
      brain_.shown() == MigrationStatus::kCompleted ? 0 : statistics_.dirty_rate;
  report.postcopy_requests = counters_.requests;
  report.pages_after_switch = counters_.after_switch;
  report.epoch = brain_.epoch();
  report.recoveries = brain_.recoveries();
  report.lanes_replaced = brain_.lanes_replaced();
  report.last_recovery_ms = brain_.last_recovery_ms();
  report.page_server = standby_.report();
  fill_rates(report);
  return report;
}

}  // namespace towline::runtime
