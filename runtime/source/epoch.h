#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/thread.h"
#include "runtime/link/lane.h"
#include "runtime/source/bulk_sender.h"
#include "runtime/source/request_server.h"

namespace towline::runtime {

/// The lanes of one epoch at the source, and their threads. The destructor is the fence: every
/// thread of the epoch has ended when it returns.
///
/// Threads: tl-source makes, opens and destroys it; the driver's mutex guards the rest, except
/// where a call says otherwise.
class SourceEpoch {
 public:
  SourceEpoch(std::uint64_t number, std::unique_ptr<Lane> control)
      : number_(number), control_(std::move(control)) {}

  SourceEpoch(const SourceEpoch&) = delete;
  SourceEpoch& operator=(const SourceEpoch&) = delete;

  ~SourceEpoch() {
    close();
    read_to_the_end();
  }

  [[nodiscard]] std::uint64_t number() const { return number_; }

  [[nodiscard]] const std::shared_ptr<Lane>& control() const { return control_; }

  /// nullptr until open().
  [[nodiscard]] BulkSender* bulk() const { return bulk_.get(); }

  [[nodiscard]] RequestServer* server() const { return server_.get(); }

  /// Starts tl-control.
  void read_control(std::function<void()> body) {
    control_thread_ = base::NamedThread("tl-control", std::move(body));
  }

  void open(std::unique_ptr<BulkSender> bulk, std::unique_ptr<RequestServer> server) {
    bulk_ = std::move(bulk);
    server_ = std::move(server);
  }

  /// A new urgent lane; the returned one ends with its last reference.
  [[nodiscard]] std::unique_ptr<RequestServer> replace(std::unique_ptr<RequestServer> server) {
    bytes_of_past_lanes_ += server_->bytes_sent();
    return std::exchange(server_, std::move(server));
  }

  /// No lane carries anything any more; blocked senders and readers return.
  void close();

  /// Waits for tl-control, without the driver's mutex, which that may want.
  void read_to_the_end() { control_thread_.join(); }

  [[nodiscard]] std::uint64_t bytes_sent() const;

  /// What can be seen of it at one moment.
  struct Glance {
    std::uint64_t epoch = 0;
    std::shared_ptr<Lane> control;  ///< Signs of life go there; may be closed by then.
    std::uint64_t bytes_received = 0;
    std::optional<base::Duration> of_control;  ///< As unacknowledged_for().
    bool open = false;                         ///< The data lanes are there.
    std::optional<base::Duration> of_urgent;
    bool urgent_waits = false;
    std::uint64_t urgent_bytes = 0;  ///< Both ways.
    std::vector<BulkSender::Glance> bulk;
  };

  [[nodiscard]] Glance glance() const;

 private:
  std::uint64_t number_;
  std::shared_ptr<Lane> control_;
  std::unique_ptr<BulkSender> bulk_;
  std::unique_ptr<RequestServer> server_;
  std::uint64_t bytes_of_past_lanes_ = 0;
  base::NamedThread control_thread_;
};

}  // namespace towline::runtime
