#include "tools/page_server/kept_guest.h"

namespace towline::tools {
namespace {

base::Outcome no_vcpus(const char* command) {
  return base::fail(base::ErrorKind::kRefused, command,
                    "This is a page server: it holds a guest's memory and has no vCPUs to run it");
}

}  // namespace

vmm::RunState KeptGuest::run_state() const {
  if (machine_ == nullptr) {
    return vmm::RunState::kPrelaunch;
  }
  if (away_) {
    return vmm::RunState::kPostmigrate;
  }
  return machine_->gate().ownership() == runtime::Ownership::kHere ? vmm::RunState::kPaused
                                                                   : vmm::RunState::kFinishMigrate;
}

base::Bytes KeptGuest::memory() const {
  base::Bytes all;
  if (machine_ != nullptr) {
    for (const runtime::Region& region : machine_->regions()) {
      all.value += region.size.value;
    }
  }
  return all;
}

base::Outcome KeptGuest::stop() {
  return no_vcpus("stop");
}

base::Outcome KeptGuest::cont() {
  return no_vcpus("cont");
}

base::Outcome KeptGuest::system_reset() {
  return no_vcpus("system_reset");
}

void KeptGuest::on_leaving(runtime::MigrationStatus status) {
  if (status == runtime::MigrationStatus::kCompleted) {
    away_ = true;
  }
  if (told_) {
    told_(status);
  }
}

std::optional<std::string> KeptGuest::danger_of_ending() const {
  if (kept_elsewhere_ || run_state() != vmm::RunState::kPaused) {
    return std::nullopt;
  }
  return "the guest's process died before the target had the guest: its memory and state are here "
         "and nowhere else, and ending this process destroys it. 'migrate' brings it to another "
         "target";
}

}  // namespace towline::tools
