// What the target tells of itself.
#include "runtime/target/driver.h"
#include "runtime/target/fault_report.h"

namespace towline::runtime {

bool TargetDriver::misses_pages() const {
  const Transfer* transfer = published_;
  return running_here_ && transfer != nullptr && transfer->map.missing().value != 0;
}

MigrationReport TargetDriver::report() const {
  MigrationReport report;
  const Transfer* transfer = published_;
  {
    const base::Lock lock(mutex_);
    brain_.report_to(report, clock_.now());
  }
  report.listening = listener_->at();
  report.strangers_refused = listener_->strangers();
  report.total_bytes = layout_.bytes().value;
  report.page_size = layout_.mean_page().value;
  report.remaining_bytes = report.total_bytes;
  if (transfer == nullptr) {
    return report;
  }
  report.source_loss.poisoned_pages = transfer->map.poisoned().value;
  report.remaining_bytes = transfer->map.missing().value * report.page_size;
  report.transferred = transfer->lanes.bytes_received();
  report.postcopy_requests = transfer->sender->sent();
  report.pages_after_switch = transfer->lanes.postcopy_pages();
  const auto& counters = transfer->receiver->counters();
  report.normal_pages = counters.installed;
  report.zero_pages = counters.zeros;
  report.duplicate_frames = counters.duplicates;
  report.faults = fault_report(counters.stalls, counters.local_faults, transfer->requests.size());
  return report;
}

}  // namespace towline::runtime
