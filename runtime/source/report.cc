// What a source is asked by its user, and what it tells of itself.
#include <algorithm>

#include <fmt/format.h>

#include "runtime/source/driver.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::Outcome;

}  // namespace

void SourceDriver::start_postcopy() {
  const base::Lock lock(mutex_);
  inbox_.switch_asked = true;
  if (bulk_ != nullptr && before_order(state_)) {
    bulk_->cut_pass();
  }
  changed_.notify_all();
}

Outcome SourceDriver::cancel() {
  const base::Lock lock(mutex_);
  if (is_final(shown_)) {
    return base::Done{};
  }
  if (!before_order(state_)) {
    return fail(ErrorKind::kRefused, "cancel",
                "Postcopy migration in progress, cannot cancel: the guest belongs to the target "
                "since the run order");
  }
  inbox_.cancel = true;
  show(MigrationStatus::kCancelling);
  if (bulk_ != nullptr) {
    bulk_->stop();
  }
  end_waiting();
  changed_.notify_all();
  return base::Done{};
}

void SourceDriver::set_bandwidth(std::uint64_t max_bandwidth, std::uint64_t max_postcopy) {
  const base::Lock lock(mutex_);
  options_.max_bandwidth = max_bandwidth;
  options_.max_postcopy_bandwidth = max_postcopy;
  if (bulk_ != nullptr) {
    bulk_->set_bandwidth(before_order(state_) ? max_bandwidth : max_postcopy);
  }
}

bool SourceDriver::holds_the_guest() const {
  const base::Lock lock(mutex_);
  return !before_order(state_) && state_ != SourceState::kCompleted &&
         machine_.gate().ownership() != Ownership::kHere;
}

std::uint64_t SourceDriver::bytes_sent() const {
  return bytes_of_past_epochs_ + (control_ != nullptr ? control_->bytes_sent() : 0) +
         (bulk_ != nullptr ? bulk_->bytes_sent() : 0) +
         (server_ != nullptr ? server_->bytes_sent() : 0);
}

void SourceDriver::fill_rates(MigrationReport& report) const {
  const base::Instant now = is_final(shown_) ? ended_ : clock_.now();
  const double elapsed = std::chrono::duration<double>(now - window_.at).count();
  if (elapsed >= 0.1) {
    const std::uint64_t pages = report.normal_pages + report.zero_pages;
    mbps_ = static_cast<double>(report.transferred - window_.bytes) * 8 / elapsed / 1e6;
    pages_per_second_ =
        static_cast<std::uint64_t>(static_cast<double>(pages - window_.pages) / elapsed);
    window_ = Sample{now, report.transferred, pages};
  }
  report.mbps = mbps_;
  report.pages_per_second = pages_per_second_;
}

MigrationReport SourceDriver::report() const {
  using std::chrono::duration_cast;
  using std::chrono::milliseconds;
  MigrationReport report;
  const base::Lock lock(mutex_);
  report.status = shown_;
  report.error =
      attempt_error_.empty() ? error_ : fmt::format("{}; last attempt: {}", error_, attempt_error_);
  report.overdue = overdue_;
  if (before_order(state_) && !is_final(shown_)) {
    report.waits_for = inbox_.no_room.value_or("");
  }
  const base::Instant end = is_final(shown_) ? ended_ : clock_.now();
  report.total_time = duration_cast<milliseconds>(end - started_);
  if (set_up_ > started_) {
    report.setup_time = duration_cast<milliseconds>(set_up_ - started_);
  }
  report.downtime_ms = downtime_ms_;
  report.downtime_error_ms = static_cast<double>(clock_offset_.error_ns()) / 1e6;
  report.expected_downtime_ms = 1;
  report.total_bytes = layout_.bytes().value;
  report.transferred = bytes_sent();
  const bool ordered = bytes_before_flight_ != 0 || heir_;
  report.precopy_bytes = ordered ? bytes_before_flight_ : report.transferred;
  report.downtime_bytes = ordered ? bytes_after_flight_ - bytes_before_flight_ : 0;
  report.postcopy_bytes =
      heir_ || bytes_after_flight_ != 0 ? report.transferred - bytes_after_flight_ : 0;
  report.normal_pages = counters_.normal;
  report.zero_pages = counters_.zeros;
  const std::uint64_t scanned = state_ == SourceState::kPassing && passes_done_ == 0
                                    ? counters_.scanned.load()
                                    : layout_.pages().value;
  const std::uint64_t left =
      layout_.pages().value - scanned + left_before_.value_or(owed_.count()).value;
  report.page_size = layout_.mean_page().value;
  report.remaining_bytes = shown_ == MigrationStatus::kCompleted ? 0 : left * report.page_size;
  report.dirty_sync_count = dirty_syncs_;
  report.dirty_pages_rate = shown_ == MigrationStatus::kCompleted ? 0 : dirty_rate_;
  report.postcopy_requests = counters_.requests;
  report.pages_after_switch = counters_.after_switch;
  report.epoch = identity_.epoch;
  report.recoveries = recoveries_;
  report.lanes_replaced = lanes_replaced_;
  report.last_recovery_ms = last_recovery_ms_;
  report.page_server = standby_ != nullptr ? standby_->report() : past_standby_;
  fill_rates(report);
  return report;
}

}  // namespace towline::runtime
