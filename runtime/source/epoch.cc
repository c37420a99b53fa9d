#include "runtime/source/epoch.h"

#include "runtime/core/link_watch.h"

namespace towline::runtime {

void SourceEpoch::close() {
  if (bulk_ != nullptr) {
    bulk_->stop();
  }
  if (server_ != nullptr) {
    server_->stop();
  }
  control_->shutdown();
}

std::uint64_t SourceEpoch::bytes_sent() const {
  return bytes_of_past_lanes_ + control_->bytes_sent() +
         (bulk_ != nullptr ? bulk_->bytes_sent() : 0) +
         (server_ != nullptr ? server_->bytes_sent() : 0);
}

SourceEpoch::Glance SourceEpoch::glance() const {
  Glance seen;
  seen.epoch = number_;
  seen.control = control_;
  seen.bytes_received = control_->bytes_received();
  seen.of_control = unacknowledged_for(control_->fd());
  seen.open = server_ != nullptr && bulk_ != nullptr;
  if (seen.open) {
    seen.bytes_received += server_->bytes_received();
    seen.of_urgent = unacknowledged_for(server_->fd());
    seen.urgent_waits = server_->waits();
    seen.urgent_bytes = server_->bytes_received() + server_->bytes_sent();
    seen.bulk = bulk_->glance();
  }
  return seen;
}

}  // namespace towline::runtime
