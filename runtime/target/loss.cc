// What the target does when its source is given up: the fence, as for a new epoch, then the end of
// what is missing.
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/target/driver.h"
#include "uffd/capabilities.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::fail;
using base::LogLevel;
using base::Outcome;

std::string amount(const MissingMemory& missing) {
  return fmt::format("{} pages ({} bytes)", missing.pages, missing.bytes);
}

}  // namespace

Outcome check_source_loss(SourceLoss policy) {
  const auto& can = uffd::capabilities();
  if (policy == SourceLoss::kPoison && can.ok() &&
      !can.value().features.contains(uffd::feature::kPoison)) {
    return fail(ErrorKind::kUnsupported, "source loss",
                "this kernel cannot poison pages (Linux 6.6 can); use wait or give-up");
  }
  return base::Done{};
}

Outcome TargetDriver::set_source_loss(SourceLoss policy, std::chrono::seconds deadline) {
  TRY(check_source_loss(policy));
  return feed({.kind = TargetInput::Kind::kSourceLoss, .policy = policy, .deadline = deadline});
}

Outcome TargetDriver::give_up_source(SourceLoss how) {
  TRY(check_source_loss(how));
  return feed({.kind = TargetInput::Kind::kGiveUpSource, .policy = how});
}

MissingMemory TargetDriver::missing_memory() const {
  const std::uint64_t pages = transfer_->map.missing().value;
  return MissingMemory{pages, pages * layout_.mean_page().value};
}

// What is at stake, for the log and for who watches.
void TargetDriver::tell_source_away() {
  const MissingMemory missing = missing_memory();
  base::log(LogLevel::kWarning, "source.away missing={} policy={} deadline_s={}", amount(missing),
            to_string(brain_.source_loss()), brain_.source_loss_deadline().count());
  observer_.on_source_lost(missing);
}

void TargetDriver::give_up(SourceLoss how) {
  base::log_owner(LogLevel::kWarning, "source.given_up policy={} missing_pages={}", to_string(how),
                  transfer_->map.missing().value);
  listener_->post([this] { shut_out(); });
}

// On tl-listen, which alone changes control_thread_.
void TargetDriver::shut_out() {
  {
    const base::Lock lock(mutex_);
    if (brain_.ending()) {
      return;
    }
    shut_control();
  }
  transfer_->lanes.shutdown();
  const auto before = std::make_shared<base::NamedThread>(std::move(control_thread_));
  control_thread_ = base::NamedThread("tl-control", [this, before] {
    before->join();
    transfer_->lanes.renew();
    transfer_->lanes.shutdown();
    const MissingMemory missing = missing_memory();
    [[maybe_unused]] const auto fed = feed({.kind = TargetInput::Kind::kNothingArrives,
                                            .number = missing.pages,
                                            .text = amount(missing)});
  });
}

Outcome TargetDriver::poison(const TargetTask& task) {
  machine_.pages_lost(task.number);
  const auto poisoned = transfer_->receiver->poison_missing();
  std::string told = fmt::format(
      "the source was given up (policy poison): {} were only there and are poisoned; the guest "
      "runs on without them",
      task.text);
  if (!poisoned.ok()) {
    told = fmt::format(
        "the source was given up (policy poison): {} were only there, and {} of them could not be "
        "poisoned ({}); the guest is stopped",
        task.text, transfer_->map.missing().value, base::to_string(poisoned.error()));
    machine_.guest_failed(told);
  }
  base::log_owner(LogLevel::kError, "source.lost reason={}", told);
  return feed({.kind = TargetInput::Kind::kDone, .task = task, .text = told});
}

Outcome TargetDriver::end_guest(const TargetTask& task) {
  machine_.guest_failed(task.text);
  base::log_owner(LogLevel::kError, "source.lost reason={}", task.text);
  return feed({.kind = TargetInput::Kind::kDone, .task = task, .text = task.text});
}

}  // namespace towline::runtime
