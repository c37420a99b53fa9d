#pragma once

#include <optional>

#include "vmm/monitor/json.h"
#include "vmm/monitor/migration_control.h"

namespace towline::monitor {

/// The answer of query-migrate: QEMU's fields under QEMU's names, and what QEMU does not tell
/// under "x-towline". Differs from QEMU in keeping the numbers whatever the end, and in giving
/// them at the target too. Empty when there never was a migration.
Json query_migrate_json(const std::optional<RoleReport>& latest);

/// A SocketAddress, as in query-migrate's socket-address.
Json address_json(const runtime::Uri& at);

/// The reverse of address_json().
/// Errors: kRefused, naming the member and what it may be.
base::Expected<runtime::Uri> address_from_json(const Json& address);

/// The address in `channels` of migrate and migrate-incoming: one main channel on a socket.
base::Expected<runtime::Uri> address_from_channels(const Json& channels);

}  // namespace towline::monitor
