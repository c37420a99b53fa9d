#include "runtime/migration.h"

namespace towline::runtime {

std::string_view to_string(MigrationStatus status) {
  switch (status) {
    case MigrationStatus::kNone:
      return "none";
    case MigrationStatus::kSetup:
      return "setup";
    case MigrationStatus::kActive:
      return "active";
    case MigrationStatus::kPreSwitchover:
      return "pre-switchover";
    case MigrationStatus::kDevice:
      return "device";
    case MigrationStatus::kPostcopyDevice:
      return "postcopy-device";
    case MigrationStatus::kPostcopyActive:
      return "postcopy-active";
    case MigrationStatus::kPostcopyPaused:
      return "postcopy-paused";
    case MigrationStatus::kPostcopyRecoverSetup:
      return "postcopy-recover-setup";
    case MigrationStatus::kPostcopyRecover:
      return "postcopy-recover";
    case MigrationStatus::kCompleted:
      return "completed";
    case MigrationStatus::kFailed:
      return "failed";
    case MigrationStatus::kCancelling:
      return "cancelling";
    case MigrationStatus::kCancelled:
      return "cancelled";
  }
  __builtin_unreachable();
}

bool is_final(MigrationStatus status) {
  return status == MigrationStatus::kCompleted || status == MigrationStatus::kFailed ||
         status == MigrationStatus::kCancelled;
}

bool shows_a_loss(MigrationStatus status) {
  return status == MigrationStatus::kPostcopyPaused ||
         status == MigrationStatus::kPostcopyRecoverSetup ||
         status == MigrationStatus::kPostcopyRecover;
}

std::string_view to_string(LinkState state) {
  switch (state) {
    case LinkState::kUp:
      return "up";
    case LinkState::kLost:
      return "lost";
    case LinkState::kRecovering:
      return "recovering";
  }
  __builtin_unreachable();
}

}  // namespace towline::runtime
